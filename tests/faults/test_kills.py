"""kill -9 at any moment of a run that scores, saves and evaluates: nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from research.core.parts import vary
from research.evaluate.likelihood import Likelihood
from research.train.loop import train
from research.train.prepare import prepare
from tests.flow.crew import ROOT
from tests.flow.runs import Silent, tiny_run

pytestmark = pytest.mark.timeout(1800)

KILLS = 20
RECORDED = ("metrics.jsonl", "order.jsonl", "losses.jsonl", "evaluations.jsonl")
RUN = """
import sys
from pathlib import Path
from rich.console import Console
from launch.runs import run
from tests.faults.test_kills import whole_run

folder = Path(sys.argv[1])
run(whole_run(folder), folder / sys.argv[2], Console(), command=[], quiet=True)
"""


def whole_run(folder: Path):
    """Give a run of 12 steps in 3 rounds that scores, evaluates and saves again and again."""
    run = tiny_run(folder, {"clock.steps": 12, "clock.evaluate_every": 2, "model.num_layers": 1})
    tested = vary(run.data, {"pack": False})
    changes = {
        "evaluators": (Likelihood(data=tested),),
        "max_leaked_fraction": 1.0,
        "curriculum.rounds": 3,
    }
    return vary(run, changes)


def started(folder: Path, name: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), name],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def size(workdir: Path) -> int:
    """What a run has written so far, in bytes: a clock that goes with its work."""
    total = 0
    for folder, _, names in os.walk(workdir):  # it passes over folders that were renamed meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def killed_at(folder: Path, written: int, delay_s: float) -> bool:
    """Kill -9 a run some time after it has written so many bytes; False if it ended before."""
    process = started(folder, "killed")
    while process.poll() is None and size(folder / "killed") < written:
        time.sleep(0.005)
    time.sleep(delay_s)  # into what writes nothing: scoring, a step, an evaluation
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    process = started(folder, "whole")
    assert process.wait() == 0, process.stderr.read().decode()
    return folder / "whole"


@pytest.mark.slow  # at one moment, which is an event, by default: tests/flow/test_kill.py
def test_a_run_killed_at_random_moments_ends_as_if_it_never_was(whole):
    folder, chance, done = whole.parent, random.Random(KILLS), 0
    for _ in range(4 * KILLS):  # a run may end before it is killed; most do not
        more = chance.uniform(0.0, size(whole) / KILLS)
        if killed_at(folder, int(size(folder / "killed") + more), chance.choice([0.0, 0.2, 0.6])):
            done += 1
        else:
            shutil.rmtree(folder / "killed")  # it came to its end: begin again
        if done == KILLS:
            break
    assert done == KILLS
    process = started(folder, "killed")
    assert process.wait() == 0, process.stderr.read().decode()
    rounds = sorted(file.name for file in (whole / "rounds").iterdir())
    evaluations = sorted(file.name for file in (whole / "evaluations").iterdir())
    assert len(rounds) == 3
    assert len(evaluations) == 4
    for name in (
        *RECORDED,
        *(f"rounds/{n}" for n in rounds),
        *(f"evaluations/{n}" for n in evaluations),
    ):
        assert (whole / name).read_bytes() == (folder / "killed" / name).read_bytes(), name
    same_weights(whole, folder / "killed")


def same_weights(one: Path, other: Path) -> None:
    import jax

    states = [train(prepare(whole_run(run.parent)), run, Silent()).learner for run in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)
