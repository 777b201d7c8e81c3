"""Several real processes of one command, over loopback: the same run as one, or its end by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from research.core.parts import vary
from research.evaluate.likelihood import Likelihood
from research.train.loop import train
from research.train.prepare import prepare
from research.train.watchdog import AGAIN, FOLDER, file_of, myself, write
from tests.flow import slurm
from tests.flow.crew import LIMIT_S, ONE_DEVICE, ROOT, crew, free_port, pid_of, training
from tests.flow.launched import clone_of
from tests.flow.runs import Silent, tiny_run

pytestmark = pytest.mark.timeout(1800)  # a busy machine compiles for minutes

LOSS_TOLERANCE = 2e-5  # relative; float32 sums over processes come in another order, 24 steps long
SCORE_TOLERANCE = 1e-4  # nats; entropies after steps whose sums came in another order
PEER_S = 10.0  # longer than a busy machine keeps a process that lives from its beat
EXACT = ("metrics.jsonl", "order.jsonl", "losses.jsonl", "evaluations.jsonl")
EXPERIMENT = """
from pathlib import Path
from research.core.layout import Layout
from research.core.parts import vary
from tests.flow.test_processes import small_run

def get_config():
    spread = {"layout": Layout(axes=(("data", -1),))}
    return vary(small_run(Path(__file__).parent), spread)
"""
SHARDED = """
def get_config():
    layout = Layout(
        axes=(("fsdp", -1),), weights=(("D", ("fsdp",)),), activations=(("B", ("fsdp",)),),
        overrides=(("embed_V_D", (("V", ()), ("D", ("fsdp",)))),),
    )
    return vary(small_run(Path(__file__).parent), {"layout": layout})
"""
ROWS = """
import sys
import jax
import numpy as np
from research.core.layout import Layout

coordinator, count, index = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(coordinator, int(count), int(index))
place = Layout(axes=(("data", -1),)).on(jax.devices())
built = []

def build(part):
    built.append((part.start, part.stop))
    return np.arange(part.start, part.stop, dtype=np.float32)

squares = jax.jit(lambda rows: (rows * rows).sum(), out_shardings=place.replicated)
total = squares(place.put_rows(6, build))
print(f"built {built}, total {float(total)}", flush=True)
"""


def small_run(folder: Path):
    """Give 24 steps in 2 rounds, scored and evaluated, saved every 2 steps."""
    run = tiny_run(folder, {"clock.steps": 24, "model.num_layers": 1, "clock.evaluate_every": 4})
    tested = vary(run.data, {"pack": False})
    return vary(run, {"evaluators": (Likelihood(data=tested),), "max_leaked_fraction": 1.0})


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def experiment_in(folder: Path, text: str = EXPERIMENT) -> Path:
    file = folder / "experiment.py"
    file.write_text(text)
    return file


def trained(folder: Path, workdir: Path, count: int) -> None:
    """Run the experiment to its end in `count` processes."""
    logs = folder / f"logs-{workdir.name}-{count}"
    with training(folder / "experiment.py", workdir, count, logs) as together:
        assert together.codes() == [0] * count, together.said(0)[-3000:] + together.said(1)[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with an experiment and its run in two processes."""
    folder = tmp_path_factory.mktemp("processes")
    experiment_in(folder)
    trained(folder, folder / "whole", 2)
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    """The same run in one process."""
    train(prepare(small_run(folder)), folder / "alone", Silent())
    return folder / "alone"


def same_but_for_sums(one: Path, other: Path) -> None:
    """Two runs saw the same examples, and their numbers differ by the order of sums."""
    assert (one / "order.jsonl").read_bytes() == (other / "order.jsonl").read_bytes()
    losses = [[m["loss_nats"] for m in lines(run / "metrics.jsonl")] for run in (one, other)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=LOSS_TOLERANCE)
    for round_ in ("rounds/0000.npz", "rounds/0001.npz"):
        with np.load(one / round_) as a, np.load(other / round_) as b:
            np.testing.assert_array_equal(a["selected"], b["selected"])
            np.testing.assert_allclose(a["score_X"], b["score_X"], atol=SCORE_TOLERANCE)
    values = [
        [line["metrics"]["loss_nats"]["value"] for line in lines(run / "evaluations.jsonl")]
        for run in (one, other)
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=LOSS_TOLERANCE)


def same(one: Path, other: Path) -> None:
    """Two runs are the same bit for bit, weights included."""
    for name in (*EXACT, "rounds/0000.npz", "rounds/0001.npz"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)


def weights(run: Path) -> list[np.ndarray]:
    """Read what a finished run has learnt, as one process restores it."""
    state = train(prepare(small_run(run.parent)), run, Silent())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.learner)]


def test_two_processes_are_one_run(folder, alone):
    same_but_for_sums(folder / "whole", alone)
    said = (folder / "logs-whole-2" / "1.log").read_text()
    for index in (0, 1):
        assert re.search(rf"joined: process {index} of 2: host \S+, pid \d+, 1 x cpu", said)
    assert "step 2" not in said  # only process 0 speaks of the run
    assert "step 2  round 0" in (folder / "logs-whole-2" / "0.log").read_text()


def test_preempted_then_run_to_its_end_is_bit_for_bit_the_same(folder, alone):
    cut, file = folder / "cut", folder / "experiment.py"
    with training(file, cut, 2, folder / "logs-term", "--peer-s", "10") as together:
        together.says(0, "step 2  round 0")
        os.kill(pid_of(cut, 1), signal.SIGTERM)
        assert together.codes() == [AGAIN, AGAIN]
        asked = r"asked to leave, as by SIGTERM: saved at step (\d+) of 24"
        step = int(re.search(asked, together.said(0))[1])
    shutil.copytree(cut, folder / "moved")  # for one process to go on with
    trained(folder, cut, 2)
    said = (folder / "logs-cut-2" / "0.log").read_text()
    assert f"resuming at step {step} of 24" in said
    same(folder / "whole", cut)
    train(prepare(small_run(folder)), folder / "moved", Silent())  # written by 2, restored by 1
    same_but_for_sums(folder / "moved", alone)


def test_a_process_builds_the_rows_of_its_own_devices_only(tmp_path):
    coordinator = f"127.0.0.1:{free_port()}"
    commands = [("-c", ROWS, coordinator, "2", str(index)) for index in range(2)]
    with crew(commands, tmp_path) as together:
        assert together.codes() == [0, 0]
        assert "built [(0, 3)], total 55.0" in together.said(0)
        assert "built [(3, 6)], total 55.0" in together.said(1)


@pytest.mark.slow
def test_a_work_directory_has_one_run_at_a_time(folder, tmp_path):
    (tmp_path / FOLDER).mkdir()
    write(file_of(tmp_path / FOLDER, 0), myself(0, "now") | {"beat": 0, "beat_s": 5.0})
    with training(folder / "experiment.py", tmp_path, 2, tmp_path / "logs") as together:
        assert together.codes() == [2, 3]
        assert f"is held by process 0 (host {os.uname().nodename}, pid {os.getpid()})" in (
            together.said(0)
        )
        assert "process 0 stopped" in together.said(1)


@pytest.mark.slow
@pytest.mark.parametrize("text", [EXPERIMENT, EXPERIMENT + SHARDED], ids=["data", "fsdp"])
def test_four_processes_are_one_run_and_fewer_go_on_with_it(folder, alone, tmp_path, text):
    experiment_in(tmp_path, text)
    trained(tmp_path, tmp_path / "whole", 4)
    same_but_for_sums(tmp_path / "whole", alone)
    with training(tmp_path / "experiment.py", tmp_path / "cut", 4, tmp_path / "logs") as together:
        together.says(0, "step 4  round 0")
        os.kill(pid_of(tmp_path / "cut", 3), signal.SIGTERM)
        assert together.codes() == [AGAIN] * 4
    shutil.copytree(tmp_path / "cut", tmp_path / "moved")
    trained(tmp_path, tmp_path / "cut", 2)
    same_but_for_sums(tmp_path / "cut", alone)
    train(prepare(small_run(tmp_path)), tmp_path / "moved", Silent())
    same_but_for_sums(tmp_path / "moved", alone)


@pytest.mark.slow
@pytest.mark.skipif(bool(slurm.why_not()), reason=slurm.why_not())
def test_two_tasks_of_slurm_find_each_other_and_are_one_run(folder, alone, tmp_path_factory):
    """This checkout, launched: jax finds the processes by what Slurm tells each of them."""
    files = {
        "several/experiment.py": EXPERIMENT,
        "several/rows.jsonl": (folder / "rows.jsonl").read_text(),
    }
    clone = clone_of(ROOT, tmp_path_factory.mktemp("clone") / "maktab", files)
    options = ["--on", "slurm", "--tasks-per-node", "2", "--sbatch=--overcommit"]
    words = [*options, "--max-restarts", "0", "several/experiment.py", "--workdir", "runs/two"]
    with slurm.one_node(tmp_path_factory.mktemp("s")) as env:
        done = subprocess.run(
            [sys.executable, "-m", "launch", "launch", *words],
            cwd=clone,
            env={**env, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ONE_DEVICE},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stderr
        job = slurm.ended(env, 1, LIMIT_S)
    (home,) = (clone / "launches").iterdir()
    logs = [(home / f"worker-{index}.log").read_text() for index in (0, 1)]
    assert "JobState=COMPLETED" in job, logs
    for index, said in enumerate(logs):
        assert re.search(rf"joined: process {index} of 2: .*, 1 x cpu \(this one\)", said)
    same_but_for_sums(clone / "runs" / "two", alone)


@pytest.mark.slow  # what a process does whose peer was killed: tests/faults/test_guard.py
@pytest.mark.parametrize("victim", [0, 3])
def test_one_of_four_is_killed_and_the_others_say_whom(folder, tmp_path, victim):
    experiment_in(tmp_path)
    workdir = tmp_path / "run"
    words = ("--peer-s", f"{PEER_S:.0f}")
    with training(tmp_path / "experiment.py", workdir, 4, tmp_path / "logs", *words) as together:
        together.says(0, "step 6  round 0")
        pid = pid_of(workdir, victim)
        os.kill(pid, signal.SIGKILL)
        codes = together.codes_in_time(time.monotonic(), PEER_S)
        assert codes[victim] == 128 + signal.SIGKILL
        assert [code for x, code in enumerate(codes) if x != victim] == [AGAIN] * 3
        for index in set(range(4)) - {victim}:
            assert f"process {victim} (host {os.uname().nodename}, pid {pid}" in (
                together.said(index)
            )
        assert any("has left: it was killed by SIGKILL" in together.said(x) for x in range(4))
    trained(tmp_path, tmp_path / "whole", 4)
    trained(tmp_path, workdir, 4)
    same(tmp_path / "whole", workdir)
