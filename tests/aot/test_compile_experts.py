"""A layer of experts compiles for TPU and CUDA, with each platform's own grouped product."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PLATFORMS = [
    pytest.param(
        platform,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
        ),
    )
    for platform, package in (("tpu", "libtpu"), ("cuda", "jax_cuda13_plugin"))
]
PRODUCTS = 3 + 2 * 2  # gate, up and down, and two factors of two of them
PASSES = 3  # forward, and the gradients of rows and of matrices


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("arrangement", ["dropless", "exchanged"])
def test_experts_compile_with_the_platforms_grouped_product(platform, arrangement):
    done = subprocess.run(
        [sys.executable, "-m", "tests.aot.compile_experts", platform, arrangement],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    if platform == "cuda":
        assert (seen["ragged"], seen["triton"]) == (0, PRODUCTS * PASSES)
    else:
        assert seen["ragged"] >= PRODUCTS * PASSES
    # Rows there and back, their gradients likewise, and how many rows come.
    assert seen["exchanges"] == (5 if arrangement == "exchanged" else 0)
