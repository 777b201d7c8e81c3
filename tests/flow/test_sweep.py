"""Sweeps of real runs: shared programs, halving, several processes, and owners that died."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
from rich.console import Console

from configs import curricula
from launch.devices import Share
from launch.runs import run
from launch.sweep import Scheduler, SweepError, adapted, run_sweep
from launch.sweep_board import table
from launch.sweep_crew import Crew, environment, leave
from launch.sweep_task import attempt, task_of, told
from launch.sweep_worker import work
from research.clock import Clock
from research.core.parts import vary
from research.evaluate.likelihood import Likelihood
from research.optimizers.schedules import Constant
from research.report.runs import read_arms
from research.sweep.halving import Halving
from research.sweep.kfold import kfold
from research.sweep.methods import Random
from research.sweep.plan import Arms, Search
from research.sweep.space import LogUniform
from research.sweep.standing import stand
from research.train.loop import PreemptedError
from research.train.prepare import prepare
from research.train.step import compile_step
from research.train.watchdog import FOLDER, HeldError, Patience, claim, file_of, myself, write
from research.tuning.lora import Lora
from tests.flow.crew import LIMIT_S, ONE_DEVICE, ROOT, until
from tests.flow.runs import NUM_EXAMPLES, tiny_run

ONE_CPU = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ONE_DEVICE}
METRIC = "test/loss_nats"
RATES = {"low": 1e-5, "good": 3e-2, "fair": 3e-3, "least": 1e-6}


def judged_run(folder: Path, **clock: int):
    """Give a LoRA run of 8 steps that is evaluated on its own rows every 2."""
    changes = {
        "curriculum": curricula.random(),
        "tuning": Lora(rank=3, dropout=0.1),
        "schedule": Constant(peak_lr=1e-3),
        "clock": Clock(**{"steps": 8, "cycle_steps": 2, "evaluate_every": 1, **clock}),
        "max_leaked_fraction": 1.0,
    }
    experiment = tiny_run(folder, changes)
    tested = Likelihood(name="test", data=vary(experiment.data, {"pack": False}))
    return vary(experiment, {"evaluators": (tested,)})


def quiet_console() -> Console:
    return Console(file=io.StringIO(), width=200)


def sweep_in(folder: Path, sweep) -> str:
    """Run a sweep in this process; give what it said."""
    console = quiet_console()
    run_sweep(sweep, folder, console, command=["maktab", "sweep"])
    return console.file.getvalue()


def steps_of(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    """Four arms that differ in numbers, halved twice; and how many steps were compiled for them."""
    folder = tmp_path_factory.mktemp("halved")
    base = judged_run(folder)
    changes = [
        {
            "name": name,
            "schedule.peak_lr": rate,
            "optimizer.weight_decay": rate,
            "tuning.dropout": rate,
        }
        for name, rate in RATES.items()
    ]
    arms = Arms(
        runs=tuple(vary(base, {**each, "seed": seed}) for seed, each in enumerate(changes)),
        metric=METRIC,
        halving=Halving(),
    )
    compile_step.cache_clear()
    jax.clear_caches()
    said = sweep_in(folder / "runs", arms)
    return arms, folder / "runs", said, compile_step.cache_info().misses


def test_arms_that_differ_in_numbers_are_compiled_once_over_all_rungs(halved):
    """Learning rate, weight decay, dropout rate and seed; ten starts of four runs."""
    _, _, said, misses = halved
    assert said.count("resuming at step") == 3
    assert misses == 1


def test_hopeless_arms_stop_at_their_rung_and_say_so(halved):
    _, folder, said, _ = halved
    steps = {
        arm.name: steps_of(folder / arm.name / f"seed-{i}")[-1]
        for i, arm in enumerate(by_name(folder))
    }
    assert steps == {"low": 2, "good": 8, "fair": 4, "least": 2}
    assert "low, seed 0: hopeless at rung 1 of 2 (step 2): test/loss_nats" in said
    assert "best of 4: good: test/loss_nats" in said
    arms = {arm.name: arm.runs[0].hopeless for arm in read_arms([folder])}
    assert arms["good"] is None
    assert (arms["fair"]["rung"], arms["fair"]["step"]) == (2, 4)
    assert arms["low"]["value"] > arms["low"]["bar"]


def by_name(folder: Path):
    arms = {arm.name: arm for arm in read_arms([folder])}
    return [arms[name] for name in RATES]


def test_an_arm_that_was_taken_rung_by_rung_is_the_one_that_ran_through(halved, tmp_path):
    arms, folder, _, _ = halved
    good = arms.arm("good").runs[0]
    run(good, tmp_path / "whole", quiet_console(), command=["maktab"])
    for name in ("metrics.jsonl", "order.jsonl", "evaluations.jsonl", "losses.jsonl"):
        there = folder / "good" / "seed-1" / name
        assert there.read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_sweep_that_is_done_does_nothing_again_and_one_without_halving_goes_on(halved, tmp_path):
    arms, folder, _, _ = halved
    before = steps_of(folder / "fair" / "seed-2")
    assert "[2/4] good, seed 1: finished before" in sweep_in(folder, arms)
    assert steps_of(folder / "fair" / "seed-2") == before
    only = Arms(runs=arms.arm("fair").runs)
    assert "resuming at step 4 of 8" in sweep_in(folder, only)
    assert stand(folder / "fair" / "seed-2").state == "finished"
    assert not (folder / "fair" / "seed-2" / "hopeless.json").exists()


def test_a_search_leaves_runs_and_names_the_best(tmp_path):
    search = Search(
        base=judged_run(tmp_path, steps=2, cycle_steps=1),
        space={"schedule.peak_lr": LogUniform(low=1e-6, high=3e-2)},
        method=Random(trials=3),
        metric=METRIC,
    )
    said = sweep_in(tmp_path / "runs", search)
    found = {
        arm.name: arm.runs[0].final("test")["metrics"]["loss_nats"]["value"]
        for arm in read_arms([tmp_path / "runs"])
    }
    assert list(found) == ["tiny-0000", "tiny-0001", "tiny-0002"]
    assert f"best of 3: {min(found, key=found.get)} (peak_lr" in said
    assert sweep_in(tmp_path / "runs", search).count("finished before") == 3


def test_the_folds_of_an_experiment_can_be_run(tmp_path):
    base = judged_run(tmp_path)
    whole = vary(base, {"data.pack": False, "max_leaked_fraction": 0.0})
    folds = [prepare(run) for run in kfold(whole, 3)]
    held = [NUM_EXAMPLES - len(prepared.pool) for prepared in folds]
    assert sum(held) == NUM_EXAMPLES
    assert min(held) > 0
    assert not any(prepared.leaks for prepared in folds)


def test_sigterm_in_the_last_cycle_of_a_run_keeps_the_next_from_beginning(
    two, tmp_path, monkeypatch
):
    def late(*given, **more):
        outcome = attempt(*given, **more)
        os.kill(os.getpid(), signal.SIGTERM)
        return outcome

    monkeypatch.setattr("launch.sweep.attempt", late)
    with pytest.raises(PreemptedError, match="asked to leave"):
        sweep_in(tmp_path / "runs", two)
    assert stand(tmp_path / "runs" / "first" / "seed-0").state == "finished"
    assert stand(tmp_path / "runs" / "second" / "seed-0").state == "waiting"


# Who holds what


@pytest.fixture
def two(tmp_path):
    base = tiny_run(tmp_path, {"clock": Clock(steps=2, cycle_steps=1), "curriculum.rounds": 2})
    return Arms(runs=tuple(vary(base, {"name": name}) for name in ("first", "second")))


def hold(workdir: Path, **more) -> Path:
    """Write the pulse of a process that runs there: of this one, but for what is said otherwise."""
    (workdir / FOLDER).mkdir(parents=True)
    file = file_of(workdir / FOLDER, 0)
    write(file, myself(0, "another start") | {"beat": 3, "beat_s": 0.01} | more)
    return file


def test_a_held_run_is_passed_over_and_looked_at_again(two, tmp_path):
    pulse = hold(tmp_path / "runs" / "first" / "seed-0")
    scheduler = Scheduler(two, tmp_path / "runs", lambda _: None)
    task = scheduler.next()
    assert task.run.name == "second"
    scheduler.begins(task)
    assert isinstance(scheduler.next(), float)  # nothing to do but wait
    pulse.unlink()
    assert scheduler.next().run.name == "first"


def test_of_many_that_claim_a_folder_at_once_one_gets_it(tmp_path):
    def try_to_claim(_):
        try:
            return claim(tmp_path, Patience(), lambda _: None)
        except HeldError:
            return None

    with ThreadPoolExecutor(max_workers=8) as pool:
        got = [start for start in pool.map(try_to_claim, range(24)) if start]
    assert len(got) == 1


def test_what_a_dead_owner_held_is_taken_over_at_once(two, tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    hold(tmp_path / "runs" / "first" / "seed-0", pid=int(dead.stdout), born="1")
    assert Scheduler(two, tmp_path / "runs", lambda _: None).next().run.name == "first"


def test_a_run_that_stopped_elsewhere_meanwhile_is_not_tried_again(two, tmp_path):
    scheduler = Scheduler(two, tmp_path / "runs", lambda _: None)
    workdir = tmp_path / "runs" / "first" / "seed-0"
    hold(workdir, left={"code": 3, "why": "it diverged", "sure": True, "other": False})
    described = {"experiment": {"clock": {"steps": 2}}}
    (workdir / "experiment.json").write_text(json.dumps(described))
    assert scheduler.next().run.name == "second"
    with pytest.raises(SweepError, match="1 of 2 runs stopped"):
        scheduler.conclude()
    later = Scheduler(two, tmp_path / "runs", lambda _: None)  # another command tries it again
    assert later.next().run.name == "first"


def test_the_table_says_how_runs_stand(halved):
    arms, folder, _, _ = halved
    scheduler = Scheduler(arms, folder, lambda _: None)
    rows = [(arm, each, stand(workdir)) for arm, each, workdir in scheduler.rows()]
    console = Console(file=io.StringIO(), width=160)
    console.print(table(rows, room=20))
    said = console.file.getvalue()
    assert "test/loss_nats" in said
    assert "2/8" in said
    assert "hopeless" in said
    few = Console(file=io.StringIO(), width=160)
    few.print(table(rows, room=1))
    assert len(few.file.getvalue().splitlines()) == 3  # header, one row, counts


def test_runs_may_be_chosen_unless_they_depend_on_one_another(two):
    chosen = adapted(two, eta=0, rungs=2, metric="", only=["second/seed-0"])
    assert [each.name for each in chosen.runs] == ["second"]
    with pytest.raises(ValueError, match="no run of this sweep; it has first/seed-0"):
        adapted(two, eta=0, rungs=2, metric="", only=["third/seed-0"])
    with pytest.raises(ValueError, match="--halving needs --metric"):
        adapted(two, eta=2, rungs=2, metric="", only=[])


def test_a_trial_that_is_chosen_is_made_out_by_whoever_is_told_of_it(tmp_path):
    search = Search(
        base=judged_run(tmp_path),
        space={"schedule.peak_lr": LogUniform(low=1e-6, high=3e-2)},
        method=Random(trials=5),
        metric=METRIC,
    )
    for sweep in (search, adapted(search, eta=0, rungs=1, metric="", only=["tiny-0003/seed-0"])):
        task = Scheduler(sweep, tmp_path, lambda _: None).next()
        again = task_of(sweep, tmp_path, json.loads(json.dumps(told(task))))
        assert again == task
    assert task.run == search.batch((), lambda _: None)[3].runs[0]


# Several processes

FILE = """
from pathlib import Path

from configs import curricula
from research.core.parts import vary
from tests.flow.runs import tiny_run


def sweep():
    changes = {"clock.steps": 6, "curriculum": curricula.random()}
    base = tiny_run(Path(__file__).parent, changes)
    for name in ("first", "second", "third"):
        yield vary(base, {"name": name})
"""
COUNT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import jax
from jax import monitoring
from launch.experiment_file import load_sweep
from launch.runs import run
from rich.console import Console

found = []
monitoring.register_event_listener(lambda name, **_: found.append(name))
first = load_sweep(Path(sys.argv[1])).runs[0]
run(first, Path(sys.argv[2]), Console(stderr=True), command=["maktab"])
print(found.count("/jax/compilation_cache/cache_hits"))
"""


def test_a_worker_runs_what_it_is_told_of_and_says_what_came_of_it(tmp_path):
    file, runs = tmp_path / "three.py", tmp_path / "runs"
    file.write_text(FILE)
    tasks, answers = queue.SimpleQueue(), io.StringIO()
    for name in ("first", "second"):
        tasks.put({"arm": name, "seed": 0, "point": None, "until": 1.0})
    tasks.put(None)
    hold(runs / "second" / "seed-0")
    settings = {"file": str(file), "set": ["clock.steps=2"], "generator": "sweep"}
    settings |= {
        "only": ["first/seed-0", "second/seed-0"],
        "folder": str(runs),
        "command": ["maktab"],
        "patience": {"peer_s": 60.0},
    }
    work(settings, tasks, answers)
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [each["kind"] for each in said] == ["done", "held"]
    assert "is held by process 0" in said[1]["says"]
    assert steps_of(runs / "first" / "seed-0")[-1] == 2


STUB = """
import json, os, signal, sys

told = json.loads(sys.stdin.readline())
if told["arm"] == "first":
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, lambda *_: print('{"kind": "done"}', flush=True))
open(json.loads(sys.argv[1])["folder"] + "/begun", "w").close()
assert sys.stdin.readline() == "null\\n"
"""


def test_a_run_that_ends_by_itself_when_asked_to_leave_keeps_nobody_waiting(two, tmp_path):
    program = [sys.executable, "-c", STUB]
    crew = Crew([Share("all")], {"folder": str(tmp_path)}, program)
    scheduler = Scheduler(two, tmp_path / "runs", lambda _: None)
    first = scheduler.next()
    crew.give(first)
    assert not crew.idle
    task, outcome = crew.hear(LIMIT_S)
    assert (task, outcome.kind) == (first, "lost")  # its process was killed; another one comes
    assert crew.idle
    scheduler.begins(first)
    crew.give(scheduler.next())
    until((tmp_path / "begun").exists, "the second run begins")
    leave(crew)
    assert not crew.busy


def start(file: Path, runs: Path, *words: str) -> subprocess.Popen:
    """Start `maktab sweep`."""
    command = ["-m", "launch", "sweep", str(file), "--workdir", str(runs), *words]
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **ONE_CPU, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def owner_of(workdir: Path) -> int | None:
    """Give the process that trains in a folder, once it has made a step."""
    pulse = json.loads(file.read_text()) if (file := file_of(workdir / FOLDER, 0)).exists() else {}
    return (
        pulse.get("pid") if (workdir / "metrics.jsonl").exists() and "left" not in pulse else None
    )


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_its_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    file, runs = tmp_path / "three.py", tmp_path / "runs"
    file.write_text(FILE)
    process = start(file, runs, "--jobs", "2")
    first = runs / "first" / "seed-0"
    until(lambda: owner_of(first) or process.poll() is not None, "the first run makes a step")
    os.kill(owner_of(first), signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "was killed by SIGKILL" in said
    for name, starts in (("first", 2), ("second", 1), ("third", 1)):
        workdir = runs / name / "seed-0"
        assert steps_of(workdir)[-1] == 6
        assert len(json.loads((workdir / "run.json").read_text())) == starts
    losses = [
        [
            json.loads(line)["loss_nats"]
            for line in (runs / name / "seed-0" / "metrics.jsonl").open()
        ]
        for name in ("first", "second", "third")
    ]
    assert losses[0] == losses[1] == losses[2]
    steps = list((runs / "compiled").glob("*/jit__step-*"))
    assert len(steps) == 1  # three processes, one program
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(file), str(tmp_path / "again")],
        cwd=ROOT,
        env={**environment(runs), **ONE_CPU},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 0
    assert list((runs / "compiled").glob("*/jit__step-*")) == steps
    again = (tmp_path / "again" / "metrics.jsonl").read_bytes()
    assert again == (runs / "first" / "seed-0" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_told_to_leave_takes_its_workers_along_and_goes_on_later(tmp_path, number):
    file, runs = tmp_path / "three.py", tmp_path / "runs"
    file.write_text(FILE.replace('clock.steps": 6', 'clock.steps": 4000'))
    process = start(file, runs, "--jobs", "2")
    first = runs / "first" / "seed-0"
    until(lambda: owner_of(first) or process.poll() is not None, "the first run makes a step")
    owner = owner_of(first)
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == (75 if number == signal.SIGTERM else 130), said
    assert "the same command goes on" in said
    assert not Path(f"/proc/{owner}").exists()
    left = stand(first)
    assert left.state == "left"
    assert 0 < left.step < 4000
    saved = [int(folder.name) for folder in (first / "checkpoints").iterdir() if folder.is_dir()]
    assert max(saved) == left.step


@pytest.mark.slow
def test_workers_whose_sweep_was_killed_save_and_leave(tmp_path):
    file, runs = tmp_path / "three.py", tmp_path / "runs"
    file.write_text(FILE.replace('clock.steps": 6', 'clock.steps": 4000'))
    process = start(file, runs, "--jobs", "2")
    first = runs / "first" / "seed-0"
    until(lambda: owner_of(first) or process.poll() is not None, "the first run makes a step")
    owner = owner_of(first)
    process.kill()
    process.wait()
    until(lambda: not Path(f"/proc/{owner}").exists(), "the worker leaves")
    assert stand(first).state == "left"


@pytest.mark.slow
def test_two_commands_in_one_folder_share_the_work(tmp_path):
    file, runs = tmp_path / "three.py", tmp_path / "runs"
    file.write_text(FILE)
    both = [start(file, runs) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for name in ("first", "second", "third"):
        workdir = runs / name / "seed-0"
        assert steps_of(workdir)[-1] == 6
        assert len(json.loads((workdir / "run.json").read_text())) == 1
    assert all("finished: " in each for each in said)
