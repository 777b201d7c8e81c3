"""The training step compiles for TPU and CUDA with the back-ends that cannot run here."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LAYER_BYTES = (
    256 * 1024 * 1024
)  # measured 107 to 208 MiB: a layer's activations, embedding and head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
needs_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jax[tpu]'",
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="the CUDA plugin is not installed: pip install jax-cuda13-plugin jax-cuda13-pjrt",
)
needs_cudnn = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None
    or importlib.util.find_spec("nvidia") is None,
    reason="cuDNN is not installed: pip install 'jax[cuda13]'",
)


def facts(platform: str, backend: str) -> dict:
    """Compile in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.aot.compile_step", platform, backend],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_tpu
def test_the_mesh_chooses_splash_for_tpu_and_it_compiles_under_fsdp():
    seen = facts("tpu", "automatic")
    assert seen["platform"] == "tpu"
    # Two kinds of layer, each with a forward, a rematerialised forward, a dq and a dkv kernel.
    assert seen["splash_kernels"] == 8
    assert seen["gathers"] > 0
    assert seen["temporary_bytes"] < LAYER_BYTES


@needs_tpu
def test_blockwise_compiles_for_tpu_under_fsdp():
    seen = facts("tpu", "blockwise")
    assert seen["splash_kernels"] == 0
    assert seen["temporary_bytes"] < LAYER_BYTES


@needs_cuda
def test_blockwise_compiles_for_cuda_under_fsdp():
    seen = facts("cuda", "blockwise")
    assert seen["platform"] == "gpu"
    assert seen["cudnn_calls"] == []
    assert seen["temporary_bytes"] < LAYER_BYTES


@needs_cudnn
def test_cudnn_attention_is_handed_the_boundaries_of_the_examples():
    """The mask reaches every forward and backward call: the variants whose names have a Bias."""
    calls = facts("cuda", "cudnn")["cudnn_calls"]
    names = [call.split("@__cudnn$")[1].split("(")[0] for call in calls]
    assert set(names) == {"fmhaScaleBiasSoftmax", "fmhaScaleBiasSoftmaxBackward"}
    for call in calls:
        assert "CAUSAL" in call
        assert "tensor<2x1x1024x1024xbf16>" in call


@needs_tpu
def test_activations_wait_on_the_host_of_a_tpu():
    done = subprocess.run(
        [sys.executable, "-m", "tests.aot.compile_remat", "full", "offload"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    inputs_of_layers = 8 * (8 * 2048) * 1024 * 2  # layers x tokens x width x bytes of bfloat16
    assert seen["full"][1] == 0
    assert seen["offload"][1] == inputs_of_layers
    assert seen["full"][0] - seen["offload"][0] >= inputs_of_layers
