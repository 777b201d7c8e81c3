"""Plans of the smaller studies by the real compilers fit, and agree with a table of parameters."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from research.plan.chips import CHIPS

REPOSITORY = Path(__file__).parents[2]
LORA_8B = "experiments/scale/llama3p1_8b_lora.py"
FULL_8B = "experiments/scale/llama3p1_8b_full.py"
PARAMETERS = 8_030_261_248  # of Llama 3.1 8B, as its model card and safetensors index have it
SMALL = 0.01  # of the formula: norms' scales, sums of losses and norms of gradients travel too
FEED_FORWARD = 32 * 3 * 4096 * 14336  # parameters of all layers
ATTENTION = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
TABLE = 128256 * 4096  # embedding and head each
TINY = """
from configs import curricula, layouts
from research.clock import Clock
from research.data.pool import Data
from research.data.sources import Jsonl
from research.experiment import Experiment
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Constant
from research.tuning.full import Full


def get_config():
    return Experiment(
        name="tiny",
        model=Architecture(
            vocab_size=640, model_dim=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=128,
            ffw_dim=384, max_positions=512, tied_head=True,
        ),
        data=Data(sources=(Jsonl(path="none"),), rows=8, row_tokens=512, needs_no_text=True),
        tuning=Full(),
        objective=CrossEntropy(),
        optimizer=AdamW(),
        schedule=Constant(peak_lr=1e-3),
        curriculum=curricula.random(),
        clock=Clock(steps=2, cycle_steps=1),
        compute=Compute(dtype="DTYPE"),
        layout=LAYOUT,
    )
"""
TINY_KERNELS = 2 * (3 * 256 * 384 + 256 * 128 * (4 + 2 + 2 + 4))  # parameters that multiply
TINY_TOKENS, TINY_TABLE = 8 * 512, 640 * 256
PLAIN = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"  # gathers are not cut into rings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
needs_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jax[tpu]'",
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="the CUDA plugin is not installed: pip install jax-cuda13-plugin jax-cuda13-pjrt",
)


def planned(tmp_path: Path, code: int, *words: str, flags: str = "") -> dict:
    """Run `maktab plan` in a process of its own, with flags of libtpu; give what it wrote."""
    out = tmp_path / "plan.json"
    done = subprocess.run(
        [sys.executable, "-m", "launch", "plan", *words, "--out", str(out)],
        cwd=REPOSITORY,
        env=os.environ | ({"LIBTPU_INIT_ARGS": flags} if flags else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


@needs_tpu
def test_lora_of_8b_with_its_curriculum_fits_eight_small_chips(tmp_path):
    plan = planned(tmp_path, 0, LORA_8B, "--topology", "v5e-8")
    assert plan["fits"]
    frozen, adapters = 2 * PARAMETERS / 8, plan["gradient_bytes"]
    assert frozen <= plan["parameter_bytes"] <= 1.001 * (frozen + adapters)
    assert [p["compiled"]["name"] for p in plan["programs"]] == ["training", "scoring", "decoding"]
    for program in plan["programs"]:
        assert program["compiled"]["peak_bytes"] < plan["usable_bytes"]
        assert program["compiled"]["unknown_loops"] == []
    training = plan["programs"][0]
    executed = 8 * training["compiled"]["flops"] / training["time"]["model_flops"]
    assert 1.0 < executed < 1.5  # a forward pass again, but for the last product of each layer


@needs_tpu
@pytest.mark.parametrize(
    ("topology", "devices", "layout", "dtype"),
    [
        ("v4:2x2x1", 4, "layouts.fsdp()", "float32"),
        ("v6e:2x2", 4, "layouts.fsdp()", "bfloat16"),
        ("7x:2x2x1", 8, "layouts.fsdp()", "bfloat16"),  # two devices a chip
        ("2*v5e:2x2", 8, "layouts.pod(2)", "bfloat16"),
    ],
)
def test_every_kind_of_tpu_is_planned_and_slices_too(tmp_path, topology, devices, layout, dtype):
    file = tmp_path / "tiny.py"
    file.write_text(TINY.replace("LAYOUT", layout).replace("DTYPE", dtype))
    plan = planned(tmp_path, 0, str(file), "--topology", topology, "--program", "training")
    slices = plan["mesh"].get("replica", 1)
    assert (math.prod(plan["mesh"].values()), plan["topology"]) == (devices, topology)
    chip = CHIPS[topology.split("*")[-1].split(":")[0]]
    assert plan["usable_bytes"] == chip.usable_bytes
    parameters = TINY_KERNELS + TINY_TABLE + (2 * 2 + 1) * 256
    assert plan["parameter_bytes"] == 4 * parameters * slices / devices
    (training,) = plan["programs"]
    compiled, time = training["compiled"], training["time"]
    assert compiled["unknown_loops"] == []
    weights = 6 * TINY_TOKENS * (TINY_KERNELS + TINY_TABLE) / devices
    assert (
        weights < compiled["flops"] < 2 * weights
    )  # attention too; each product once, exact or not
    assert time["compute_s"] == compiled["flops"] / chip.peak_flops_per_s[dtype]
    sent = training["sent_bytes"]
    assert sent["fsdp"] > 0
    assert (slices > 1) == any("replica" in axes for axes in sent)


@needs_tpu
def test_fsdp_gathers_weights_and_reduces_gradients_once(tmp_path):
    rows = ("--set", "data.rows=32")
    words = (FULL_8B, "--topology", "v5p:2x2x2", "--program", "training", *rows)
    plan = planned(tmp_path, 0, *words, flags=PLAIN)
    (training,) = plan["programs"]
    gathered = 2 * (2 * FEED_FORWARD + 3 * ATTENTION + 2 * TABLE)
    reduced = 2 * 2 * (FEED_FORWARD + ATTENTION) + 2 * 4 * 2 * TABLE
    formula = 7 / 8 * (gathered + reduced)
    assert math.isclose(training["sent_bytes"]["fsdp"], formula, rel_tol=SMALL)


@needs_tpu
def test_what_is_too_large_is_refused_with_the_compilers_figures(tmp_path):
    words = ("--topology", "v5e:2x2", "--program", "training")
    plan = planned(tmp_path, 3, FULL_8B, *words)
    assert not plan["fits"]
    assert "training does not fit" in plan["refused"]
    assert "15.75G" in plan["refused"]


@needs_cuda
def test_gpus_are_planned_and_compared_with_their_memory(tmp_path):
    words = ("--topology", "h200:8", "--program", "training")
    plan = planned(tmp_path, 0, LORA_8B, *words)
    assert plan["fits"]
    assert plan["programs"][0]["time"]["step_s"] > 0
    assert any("blockwise" in note for note in plan["notes"])
    small = planned(tmp_path, 3, FULL_8B, "--topology", "a100:8", "--program", "training",
                    "--set", "compute.remat=none", "--set", "data.rows=64")  # fmt: skip
    assert not small["fits"]
