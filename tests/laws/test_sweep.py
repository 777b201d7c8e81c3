"""Searches, halving and folds: what is decided depends on what is known, and on nothing else."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.devices import divide
from research.clock import Clock
from research.core.parts import describe, vary
from research.data.selection import Fold
from research.data.sources import Jsonl
from research.evaluate.likelihood import Likelihood
from research.sweep.agenda import Judge
from research.sweep.halving import Halving, rung_step
from research.sweep.kfold import kfold
from research.sweep.methods import Grid, Random
from research.sweep.plan import Arm, Arms, Search, Told, key_of
from research.sweep.space import Choice, Integer, LogUniform, Uniform, said
from research.sweep.tpe import Tpe
from research.tuning.full import Full
from research.tuning.lora import Lora
from tests.flow.runs import NUM_EXAMPLES, tiny_run

METRIC = "test/loss_nats"
CLOCK = Clock(steps=40, cycle_steps=5, evaluate_every=1)
SPACE = {
    "schedule.peak_lr": LogUniform(low=1e-4, high=1e-1),
    "schedule.warmup_fraction": Uniform(low=0.0, high=0.5),
    "data.rows": Integer(low=2, high=11),
    "tuning": Choice(values=(Full(), Lora(rank=3), Lora(rank=5))),
}


@pytest.fixture
def base(tmp_path):
    experiment = tiny_run(tmp_path, {"clock": CLOCK})
    tested = Likelihood(name="test", data=vary(experiment.data, {"pack": False}))
    return vary(experiment, {"evaluators": (tested,)})


def search_of(base, method, **more):
    return Search(base=base, space=SPACE, method=method, metric=METRIC, **more)


def nothing(_):
    """No trial has been begun."""


# Points


@pytest.mark.parametrize("path", SPACE)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_value_that_a_run_wrote_down_is_found_again(path, share):
    coordinate = SPACE[path].at(share)
    written = json.loads(json.dumps(describe(SPACE[path].value(coordinate))))
    assert SPACE[path].find(written) == coordinate
    assert SPACE[path].find("elsewhere") is None


def test_a_draw_is_the_same_however_many_there_are(base):
    few, many = (search_of(base, Random(trials=n)).batch((), nothing) for n in (3, 7))
    assert few == many[:3]
    assert len({str(arm.point) for arm in many}) == 7


def test_a_grid_is_every_combination_once():
    points = Grid(points=3).propose(SPACE, (), True)
    assert len(points) == len({str(point) for point in points}) == 3 * 3 * 3 * 3
    ends = {point["schedule.peak_lr"] for point in points}
    assert min(ends) == pytest.approx(1e-4)
    assert max(ends) == pytest.approx(1e-1)


def test_a_trial_is_the_base_with_the_values_of_its_point(base):
    arm = search_of(base, Random(trials=1), seeds=(3, 7)).batch((), nothing)[0]
    assert [run.seed for run in arm.runs] == [3, 7]
    for run in arm.runs:
        changed = {path: SPACE[path].value(arm.point[path]) for path in SPACE}
        assert run == vary(base, {**changed, "name": "tiny-0000", "seed": run.seed})
    assert said(SPACE, arm.point).startswith("peak_lr ")


def test_a_trial_that_was_begun_stays_where_it_was(base):
    search = search_of(base, Random(trials=3))
    other = search_of(base, Random(trials=3, seed=5)).batch((), nothing)
    begun = {"tiny-0001": json.loads(json.dumps(describe(other[1].runs[0])))}
    arms = search.batch((), begun.get)
    assert arms[1] == other[1]
    assert arms[0] != other[0]


def told_of(search, count):
    """Run a search whose best learning rate is 1e-2, up to so many trials."""
    told = []
    while len(told) < count and (arms := search.batch(told, nothing)):
        for arm in arms:
            value = abs(math.log(arm.point["schedule.peak_lr"] / 1e-2))
            fails = len(told) == 2
            told.append(Told(arm=arm, value=None if fails else value, rungs={}))
    return told


def test_a_bayesian_search_replayed_asks_for_the_same_points(base):
    pytest.importorskip("optuna")
    search = search_of(base, Tpe(trials=9, at_once=2, startup=3))
    told = told_of(search, 99)
    assert [each.arm.name for each in told] == [f"tiny-{n:04d}" for n in range(9)]
    for known in (0, 3, 5, 7):
        again = search.batch(told[:known], nothing)
        assert again == [each.arm for each in told[known : known + len(again)]]
    assert [each.arm for each in told_of(search, 99)] == [each.arm for each in told]


def test_a_bayesian_search_finds_better_trials_than_it_began_with(base):
    pytest.importorskip("optuna")
    told = told_of(search_of(base, Tpe(trials=16, at_once=1, startup=5)), 99)
    values = [each.value for each in told if each.value is not None]
    first, later = sorted(values[:4]), sorted(values[4:])
    assert later[len(later) // 2] < first[len(first) // 2]


# Halving


@given(
    values=st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=30), eta=st.integers(2, 5)
)
def test_at_least_one_in_eta_goes_on_and_no_better_one_is_left_behind(values, eta):
    bar = Halving(eta=eta).bar(values)
    kept, left = [v for v in values if v >= bar], [v for v in values if v < bar]
    assert len(kept) >= math.ceil(len(values) / eta)
    assert not left or max(left) < min(kept)
    assert len(set(values)) < len(values) or len(kept) == math.ceil(len(values) / eta)


def test_a_rung_is_the_first_evaluation_at_or_after_its_fraction():
    clock = Clock(steps=40, cycle_steps=5, evaluate_every=2)
    assert rung_step(clock, 1, 0.25) == 10
    assert rung_step(clock, 1, 0.26) == 20
    assert rung_step(clock, 1, 1.0) == 40


def test_rungs_that_fall_on_one_evaluation_are_refused(base):
    rare = vary(base, {"clock.evaluate_every": 4})
    with pytest.raises(ValueError, match=r"come at steps \[20, 20, 40\] next; evaluate more often"):
        Arms(runs=(rare,), metric=METRIC, halving=Halving())
    with pytest.raises(ValueError, match="expected EVALUATOR/METRIC with an evaluator"):
        Arms(runs=(base,), metric="slots/exact", halving=Halving())


class Stub:
    """A folder of runs that come to a rung when they are told to, with values of their arms."""

    def __init__(self, folder, values):
        self.folder, self.values, self.finished, self.ran = folder, values, set(), []

    def run(self, task):
        self.ran.append((task.arm.name, task.until))
        workdir = task.workdir
        workdir.mkdir(parents=True, exist_ok=True)
        described = {"experiment": json.loads(json.dumps(describe(task.run)))}
        (workdir / "experiment.json").write_text(json.dumps(described))
        step = rung_step(task.run.clock, task.run.curriculum.rounds, task.until)
        value = self.values[task.arm.name] + task.run.seed
        found = {"value": value, "count": 1, "low": None, "high": None}
        line = {"step": step, "name": "test", "metrics": {"loss_nats": found}}
        with (workdir / "evaluations.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if task.until == 1.0:
            self.finished.add(workdir)

    def settle(self, sweep, batches, stopped=()):
        """Run everything that there is to do; give the agenda at the end."""
        while True:
            judge = Judge(
                sweep,
                self.folder,
                lambda run, workdir: workdir in self.finished,
                lambda workdir: workdir.parent.name in stopped,
            )
            agenda = judge.agenda(batches)
            if not agenda.tasks:
                return agenda
            self.run(agenda.tasks[0])


def arms_of(base, values, seeds=(0,)):
    runs = tuple(vary(base, {"name": name, "seed": s}) for s in seeds for name in values)
    return Arms(runs=runs, metric=METRIC, halving=Halving(eta=2, rungs=2))


def test_arms_are_halved_at_each_rung_by_their_mean_over_seeds(base, tmp_path):
    values = {"a": 5.0, "b": 1.0, "c": 4.0, "d": 2.0, "e": 3.0}
    sweep, stub = arms_of(base, values, seeds=(0, 1)), Stub(tmp_path, values)
    agenda = stub.settle(sweep, [sweep.batch((), nothing)])
    assert [(v.arm.name, v.rung, v.step) for v in agenda.verdicts] == [
        ("a", 1, 10),
        ("c", 1, 10),
        ("e", 2, 20),
    ]
    assert agenda.verdicts[0].value == 5.5
    assert agenda.verdicts[0].bar == 3.5
    finals = {each.arm.name: each.value for each in agenda.told}
    assert finals == {"a": None, "b": 1.5, "c": None, "d": 2.5, "e": None}
    assert agenda.told[4].rungs == {10: 3.5, 20: 3.5}
    assert stub.ran.count(("b", 1.0)) == 2
    assert ("a", 0.5) not in stub.ran
    assert stub.ran[:3] == [("a", 0.25), ("b", 0.25), ("c", 0.25)]  # a seed of each arm first


def test_an_arm_that_stopped_counts_as_worst_and_keeps_nobody_waiting(base, tmp_path):
    values = {"a": 5.0, "b": 1.0, "c": 4.0}
    sweep, stub = arms_of(base, values), Stub(tmp_path, values)
    agenda = stub.settle(sweep, [sweep.batch((), nothing)], stopped=("b",))
    assert {each.arm.name: each.value for each in agenda.told} == {"a": None, "b": None, "c": 4.0}


def test_later_batches_are_compared_with_all_that_were_at_the_rung_before(base, tmp_path):
    values = {"a": 3.0, "b": 4.0, "c": 2.5}
    sweep, stub = arms_of(base, values), Stub(tmp_path, values)
    batches = [[sweep.arm(name)] for name in values]
    agenda = stub.settle(sweep, batches)
    assert [v.arm.name for v in agenda.verdicts] == ["b"]
    finals = {each.arm.name: each.value for each in agenda.told}
    assert finals == {"a": 3.0, "b": None, "c": 2.5}  # two of three go on: ceil(3 / 2)


def test_what_is_next_does_not_depend_on_who_ran_what_when(base, tmp_path):
    values = {"a": 5.0, "b": 1.0, "c": 4.0, "d": 2.0}
    sweep = arms_of(base, values)
    ends = []
    for name, reverse in (("one", False), ("two", True)):
        stub, batches = Stub(tmp_path / name, values), [sweep.batch((), nothing)]
        while (
            tasks := Judge(
                sweep, stub.folder, lambda r, w, s=stub: w in s.finished, lambda w: False
            )
            .agenda(batches)
            .tasks
        ):
            for task in sorted(tasks, key=lambda t: t.arm.name, reverse=reverse):
                stub.run(task)
        ends.append((sorted(stub.ran), stub.settle(sweep, batches)))
    assert ends[0] == ends[1]


def test_arms_that_share_name_and_seed_are_refused(base):
    with pytest.raises(ValueError, match="more than once"):
        Arms(runs=(base, base))


# Folds


def test_each_row_is_held_out_once_and_never_trained_on_there(base):
    plain = vary(base, {"seed": 2})
    tested = vary(plain.evaluators[0], {"data.sources": plain.data.sources})
    folds = list(kfold(vary(plain, {"evaluators": (tested,)}), 4))
    assert [run.seed for run in folds] == [8, 9, 10, 11]
    assert {run.name for run in folds} == {"tiny"}
    held = []
    for run in folds:
        ids = [
            {rows[x]["id"] for x in range(len(rows))}
            for rows in (d.sources[0].open() for d in (run.data, run.evaluators[0].data))
        ]
        assert not ids[0] & ids[1]
        assert len(ids[0]) + len(ids[1]) == NUM_EXAMPLES
        held += ids[1]
    assert len(held) == len(set(held)) == NUM_EXAMPLES


def test_folds_that_hold_nothing_out_are_refused(base):
    with pytest.raises(ValueError, match=r"no evaluator reads data\.sources"):
        list(kfold(vary(base, {"evaluators": ()}), 3))
    with pytest.raises(ValueError, match="fold=3 is none of 3"):
        Fold(source=Jsonl(path="x.jsonl"), by="id", fold=3, folds=3)


# Devices


def test_devices_are_divided_among_workers(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    shown = [share.env["CUDA_VISIBLE_DEVICES"] for share in divide(2, {}, tmp_path)]
    assert shown == ["0,1", "2,3"]
    some = divide(2, {"CUDA_VISIBLE_DEVICES": "5,7"}, tmp_path)
    assert [share.env["CUDA_VISIBLE_DEVICES"] for share in some] == ["5", "7"]
    crowded = divide(3, {"CUDA_VISIBLE_DEVICES": "5,7"}, tmp_path)
    assert [share.env["CUDA_VISIBLE_DEVICES"] for share in crowded] == ["5", "7", "5"]
    assert crowded[0].env["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"


def test_chips_have_one_process_each(tmp_path):
    for number in range(4):
        (tmp_path / f"accel{number}").touch()
    shares = divide(2, {}, tmp_path)
    assert [share.env["TPU_VISIBLE_CHIPS"] for share in shares] == ["0,1", "2,3"]
    assert shares[0].env["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1"
    with pytest.raises(ValueError, match="4 TPU chips cannot be divided"):
        divide(5, {}, tmp_path)


def test_where_there_is_no_accelerator_cores_are_divided(tmp_path):
    (tmp_path / "nvidia0").touch()
    shares = divide(2, {"JAX_PLATFORMS": "cpu"}, tmp_path)
    assert not shares[0].env
    cores = [set(share.cores) for share in shares]
    assert len(cores[0]) == len(cores[1])


def test_a_key_names_a_folder(base):
    assert key_of(vary(base, {"seed": 4})) == "tiny/seed-4"
    assert Arm("a", (base,)).runs[0] is base
