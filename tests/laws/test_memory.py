"""Law of a process that keeps its memory: a repeated step takes no new pages from the kernel."""

import platform
import subprocess
import sys

import pytest

PAGE_BYTES = 4096
TEMPORARY_BYTES = 64 * 2**20
FEW = 0.02  # of the pages of one step's temporaries: Python itself takes some
SETTLING, MEASURED = 12, 9  # steps: until the freed blocks fit again, the heap may still grow

PROGRAM = f"""
import resource, statistics, sys
from launch.memory import keep_freed_memory
assert sys.argv[1] == "as it comes" or keep_freed_memory()
import jax, jax.numpy as jnp
x = jnp.ones((4096, {TEMPORARY_BYTES // 4 // 4096}))
step = jax.jit(lambda x: jnp.sum(jnp.cumsum(jnp.sin(x), axis=0)))
faults = []
for _ in range({SETTLING + MEASURED}):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(step(x))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(faults[{SETTLING}:])))
"""


def page_faults_of_a_step(malloc: str) -> int:
    command = [sys.executable, "-c", PROGRAM, malloc]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    return int(run.stdout.split()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is tuned")
def test_a_process_that_keeps_its_memory_takes_no_pages_for_the_next_step():
    pages = TEMPORARY_BYTES / PAGE_BYTES
    assert page_faults_of_a_step("kept") < FEW * pages
    assert page_faults_of_a_step("as it comes") > 0.5 * pages
