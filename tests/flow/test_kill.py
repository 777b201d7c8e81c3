"""kill -9 at any moment, and resume: the same weights, ids and metrics, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from research.checkpoint import CheckpointError, Store
from research.train.loop import train
from research.train.prepare import prepare
from research.tuning.lora import Lora
from tests.flow.runs import Silent, tiny_run

RUN = """
import signal, sys
from pathlib import Path
from research.train.loop import train
from research.train.prepare import prepare
from tests.flow.runs import Silent, tiny_run

folder, name, stays_at = sys.argv[1:]
folder = Path(folder)

def say(words):
    print(words, flush=True)
    if words == stays_at:
        signal.pause()  # for the one who kills; what is being saved goes on being saved

class Say(Silent):
    def begins(self, prepared, step): say(f"begins {step}")
    def scoring(self, done, total): say(f"scoring {self.last}")
    last = 0
    def recorded(self, cycle, metrics, timing):
        self.last = cycle.last
        say(f"recorded {cycle.last}")

train(prepare(tiny_run(folder)), folder / name, Say())
print("finished", flush=True)
"""
ROOT = Path(__file__).parents[2]


def start(folder: Path, name: str, stays_at: str = "") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), name, stays_at],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def kill_when(process: subprocess.Popen, word: str, delay_s: float = 0.0) -> bool:
    """Kill -9 once the process has said `word`; False if it came to its end before."""
    for line in process.stdout:
        if line.startswith(word):
            time.sleep(delay_s)
            break
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def same_run(one: Path, other: Path) -> None:
    for name in ("metrics.jsonl", "order.jsonl", "rounds/0000.npz", "rounds/0001.npz"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    states = [
        train(prepare(tiny_run(run.parent)), run, Silent()).learner.trainable
        for run in (one, other)
    ]
    for a, b in zip(leaves(states[0]), leaves(states[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def leaves(tree) -> list[np.ndarray]:
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    "word",
    [
        "scoring 4",  # while round 1 is scored, and the checkpoint of step 4 is being written
        pytest.param("scoring 0", marks=pytest.mark.slow),
        pytest.param("recorded 2", marks=pytest.mark.slow),
        pytest.param("recorded 6", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_while_scoring_or_saving_resumes_bit_for_bit(tmp_path, word):
    # "recorded n" is said when the checkpoint of step n has begun to be written.
    assert kill_when(start(tmp_path, "killed", stays_at=word), word)
    assert not (tmp_path / "killed" / "finished.json").exists()
    for name in ("whole", "killed"):
        train(prepare(tiny_run(tmp_path)), tmp_path / name, Silent())
    same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_a_run_killed_at_random_moments_resumes_bit_for_bit(tmp_path):
    start(tmp_path, "whole").wait()
    chance, kills = random.Random(7), 0
    for _ in range(8):
        kills += kill_when(start(tmp_path, "killed"), "begins", chance.uniform(0.0, 6.0))
    assert kills > 0
    assert start(tmp_path, "killed").wait() == 0
    same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_damaged_checkpoint_is_refused_and_the_last_good_one_named(tmp_path):
    experiment = tiny_run(tmp_path)
    workdir = tmp_path / "run"
    train(prepare(experiment), workdir, Silent())
    with Store(workdir / "checkpoints", experiment.checkpoints) as store:
        older, newest = store.steps[-2:]
    files = sorted((workdir / "checkpoints" / str(newest) / "learner").rglob("d/*"))
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-7])
    with pytest.raises(CheckpointError, match=rf"damaged.*last good one is step {older}"):
        train(prepare(experiment), workdir, Silent())
    files[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="other bytes than were written"):
        train(prepare(experiment), workdir, Silent())


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    experiment = tiny_run(tmp_path, {"clock.steps": 2})
    train(prepare(experiment), tmp_path / "run", Silent())
    other = tiny_run(tmp_path, {"tuning": Lora(rank=3)})
    with pytest.raises(CheckpointError, match="foreign"):
        train(prepare(other), tmp_path / "run", Silent())
