"""Stacked arms: what separate runs give, each in its folder, from and to ordinary checkpoints."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from configs import curricula
from launch.processes import ALONE, Group
from launch.sweep import SweepError
from launch.sweep_stacked import run_stacked
from research.core.layout import Layout
from research.core.parts import vary
from research.core.records import State
from research.huggingface.pretrained import Pretrained
from research.models.architecture import Moe
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.sweep.plan import Arms
from research.sweep.standing import stand
from research.train.loop import NonFiniteError, PreemptedError, train
from research.train.prepare import Prepared, prepare
from research.train.stacked import Arm, End, compile_stacked, groups, train_stacked
from research.train.step import structure_of
from research.tuning.full import Full
from research.tuning.lora import Lora
from tests.flow.commands import STORIES
from tests.flow.runs import ARCHITECTURE, Silent, tiny_run

TOLERANCE = 1e-5  # relative, of a loss and of an adapter's norm; products come in another order
EPS = 1e-5  # of AdamW, whose step where a gradient is 0 is rounding noise over eps
RANDOM, SCORED = curricula.random(), curricula.dynamic_loss(fraction=0.6, rounds=2)
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "slow": {"seed": 5, "schedule.peak_lr": 5e-4, "optimizer.weight_decay": 0.4},
    "wet": {"seed": 7, "tuning.dropout": 0.45, "tuning.alpha": 8.0},
}
RECORDED = ("metrics.jsonl", "order.jsonl", "losses.jsonl")


def small(folder: Path, numbers: Mapping[str, Any], curriculum=RANDOM) -> Prepared:
    """Prepare 8 steps of LoRA on the small model, saved every 2."""
    parts = {
        "model": Pretrained(folder=str(STORIES)),
        "tuning": Lora(rank=3, dropout=0.1),
        "curriculum": curriculum,
        "optimizer.eps": EPS,
        "schedule.peak_lr": 2e-3,
    }
    return prepare(vary(tiny_run(folder, parts), numbers))


def arms_in(folder: Path, place: str, *shared: Any, watch: Any = None) -> list[Arm]:
    """Give the three arms, with their folders below `place`; shared: numbers and curriculum."""
    numbers, *curriculum = shared or ({},)
    return [
        Arm(
            prepared=small(folder, numbers | own, *curriculum),
            workdir=folder / place / name,
            watch=watch or Silent(),
        )
        for name, own in ARMS.items()
    ]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class Ended:
    """A run at its end: where it is recorded, and what it has learnt."""

    workdir: Path
    state: State


def ends_of(arms: Sequence[Arm]) -> list[End]:
    """Run arms together; give how each of them ended, in their order."""
    return [end for _, end in sorted(train_stacked(arms), key=lambda each: each[0])]


def ended_alone(prepared: Prepared, workdir: Path) -> Ended:
    return Ended(workdir, train(prepared, workdir, Silent()))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Ended]:
    """The three arms, each run for itself."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        arm.workdir.name: ended_alone(arm.prepared, arm.workdir) for arm in arms_in(folder, "runs")
    }


def same_but_for_sums(arm: Arm, state: End, other: Ended) -> None:
    """Two runs saw the same examples; losses and adapters differ by the order of sums."""
    assert isinstance(state, State)
    name = "order.jsonl"
    assert (arm.workdir / name).read_bytes() == (other.workdir / name).read_bytes()
    metrics = [lines(run / "metrics.jsonl") for run in (arm.workdir, other.workdir)]
    assert [list(line) for line in metrics[0]] == [list(line) for line in metrics[1]]
    losses = [[line["loss_nats"] for line in run] for run in metrics]
    np.testing.assert_allclose(losses[0], losses[1], rtol=TOLERANCE)
    learnt = [jax.tree.leaves(each.learner.trainable) for each in (state, other.state)]
    for a, b in zip(*learnt, strict=True):
        assert np.linalg.norm(a - b) <= TOLERANCE * np.linalg.norm(b)


def same(one: Path, other: Path, *states: State) -> None:
    """Two runs are the same bit for bit."""
    for name in (*RECORDED, *(str(f.relative_to(one)) for f in one.glob("rounds/*"))):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for a, b in zip(*(jax.tree.leaves(state.learner) for state in states), strict=True):
        np.testing.assert_array_equal(a, b)


class StopsAt(Silent):
    """Stops the run of whoever is first to have recorded a step."""

    def __init__(self, step: int):
        self._step = step

    def recorded(self, cycle: Any, metrics: Any, timing: Any) -> None:
        if cycle.last == self._step:
            raise KeyboardInterrupt


def test_arms_go_together_as_each_would_alone(tmp_path, alone):
    compile_stacked.cache_clear()
    arms = arms_in(tmp_path, "together")
    states = ends_of(arms)
    assert compile_stacked.cache_info().misses == 1
    prepared, structure = arms[0].prepared, structure_of(states[0].learner)
    step = compile_stacked(prepared.model, prepared.place, structure, len(arms)).step
    assert step._cache_size() == 1
    for arm, state in zip(arms, states, strict=True):
        same_but_for_sums(arm, state, alone[arm.workdir.name])
        assert {line["together"] for line in lines(arm.workdir / "timing.jsonl")} == {3}
    last = {lines(arm.workdir / "metrics.jsonl")[-1]["loss_nats"] for arm in arms}
    assert len(last) == len(arms)


@pytest.mark.slow
def test_micro_batches_of_arms_are_those_of_each_alone(tmp_path):
    arms = arms_in(tmp_path, "together", {"micro_batches": 4, "clock.steps": 4})
    for arm, state in zip(arms, ends_of(arms), strict=True):
        same_but_for_sums(arm, state, ended_alone(arm.prepared, tmp_path / arm.workdir.name))


def test_stopped_anywhere_they_go_on_bit_for_bit(tmp_path):
    whole = ends_of(arms_in(tmp_path, "whole", {}, SCORED))
    for step in (4, 6):  # where a round ends, and inside one; only the first arm recorded it
        with pytest.raises(KeyboardInterrupt):
            ends_of(arms_in(tmp_path, "cut", {}, SCORED, watch=StopsAt(step)))
    resumed = ends_of(arms_in(tmp_path, "cut", {}, SCORED))
    for name, *states in zip(ARMS, whole, resumed, strict=True):
        same(tmp_path / "whole" / name, tmp_path / "cut" / name, *states)


def test_alone_and_together_go_on_with_one_another(tmp_path, alone):
    begun_alone, begun_together, fresh = arms_in(tmp_path, "runs")
    with pytest.raises(KeyboardInterrupt):
        train(begun_alone.prepared, begun_alone.workdir, StopsAt(6))
    with pytest.raises(KeyboardInterrupt):
        ends_of([dataclasses.replace(begun_together, watch=StopsAt(4)), fresh])
    first, _ = ends_of([begun_alone, fresh])
    second = train(begun_together.prepared, begun_together.workdir, Silent())
    same_but_for_sums(begun_alone, first, alone[begun_alone.workdir.name])
    same_but_for_sums(begun_together, second, alone[begun_together.workdir.name])


def test_an_arm_that_diverges_stops_alone(tmp_path, alone):
    first, other, last = arms_in(tmp_path, "runs")
    wild = small(tmp_path, {**ARMS["slow"], "schedule.peak_lr": 1e38})
    states = ends_of([first, dataclasses.replace(other, prepared=wild), last])
    assert isinstance(states[1], NonFiniteError)
    assert "max_withheld=0" in str(states[1])
    same_but_for_sums(first, states[0], alone[first.workdir.name])
    same_but_for_sums(last, states[2], alone[last.workdir.name])


def test_arms_that_are_asked_to_leave_have_saved(tmp_path):
    asked = iter([False] * 3 + [True] * 3)
    arms = arms_in(tmp_path, "runs")
    leaving = [dataclasses.replace(arm, asked_to_leave=asked.__next__) for arm in arms]
    for error in ends_of(leaving):
        assert isinstance(error, PreemptedError)
        assert "saved at step 2 of 8" in str(error)


def test_arms_find_those_that_they_can_go_with(tmp_path):
    several = [
        *(small(tmp_path, numbers) for numbers in ARMS.values()),
        small(tmp_path, {"tuning.rank": 4}),
        small(tmp_path, {"clock.steps": 10}),
        small(tmp_path, {"tuning.rank": 4, "seed": 2}),
        small(tmp_path, {"tuning": Full()}),
        small(tmp_path, {"layout": Layout(axes=(("data", 2),))}),
        small(tmp_path, {"layout": Layout(optimizer_on_host=True)}),
    ]
    found = groups(several)
    assert [group.members for group in found] == [(0, 1, 2), (3, 5), (4,), (6,), (7,), (8,)]
    reasons = [group.alone for group in found]
    assert reasons[:2] == ["", ""]
    assert reasons[2] == "it differs from tiny, seed 0 in the clock or curriculum.rounds"
    assert "Full freezes 0% of the model" in reasons[3]
    assert "the model, its compute or its layout" in reasons[4]
    assert "optimizer_on_host" in reasons[5]


def test_arms_that_cannot_go_together_are_refused_by_name(tmp_path):
    def arm(prepared: Prepared) -> Arm:
        return Arm(prepared=prepared, workdir=tmp_path / "run", watch=Silent())

    plain = arm(small(tmp_path, {}))
    for numbers, words in (
        ({"tuning": Full()}, "cannot be stacked: Full freezes 0% of the model"),
        ({"tuning.dropout": None}, "differ in more than numbers of tuning"),
        ({"data.row_tokens": 21}, "differ in the shape of batches"),
    ):
        with pytest.raises(ValueError, match=words):
            ends_of([plain, arm(small(tmp_path, numbers))])
    assert not (tmp_path / "run").exists()


EXPERTS = Moe(num_experts=5, experts_per_token=2, expert_dim=10, router=SoftmaxTopK(), shared_dim=0)
TARGETS = {
    "attention": ("query_D_KGH", "value_D_KH"),
    "experts": ("up_E_D_F", "down_E_F_D", "router_D_E"),
}


def sparse(folder: Path, targets: str, numbers: Mapping[str, Any]) -> Prepared:
    parts = {
        "model": vary(ARCHITECTURE, {"moe": EXPERTS}),
        "tuning": Lora(rank=3, dropout=0.1, targets=TARGETS[targets]),
        "curriculum": RANDOM,
        "optimizer.eps": EPS,
        "schedule.peak_lr": 2e-3,
        "seeds.initialisation": 1,  # one base for all
    }
    return prepare(vary(tiny_run(folder, parts), numbers))


@pytest.mark.slow
@pytest.mark.parametrize("targets", sorted(TARGETS))
def test_arms_share_frozen_experts(tmp_path, targets):
    arms = [
        Arm(
            prepared=sparse(tmp_path, targets, numbers),
            workdir=tmp_path / "together" / name,
            watch=Silent(),
        )
        for name, numbers in ARMS.items()
    ]
    for arm, state in zip(arms, ends_of(arms), strict=True):
        same_but_for_sums(arm, state, ended_alone(arm.prepared, tmp_path / arm.workdir.name))


def test_experts_over_several_devices_are_refused(tmp_path):
    spread = sparse(tmp_path, "attention", {"layout": Layout(axes=(("data", 2),))})
    (group,) = groups([spread])
    assert "2 x cpu" in group.alone
    assert "frozen experts are shared" in group.alone


@pytest.mark.slow
def test_arms_go_together_over_several_devices(tmp_path):
    layout = Layout(
        axes=(("data", 2), ("fsdp", 4)),
        weights=(("D", ("fsdp",)),),
        activations=(("B", ("data", "fsdp")),),
    )
    arms = arms_in(tmp_path, "together", {"layout": layout})
    for arm, state in zip(arms, ends_of(arms), strict=True):
        same_but_for_sums(arm, state, ended_alone(arm.prepared, tmp_path / arm.workdir.name))


def sweep_of(folder: Path) -> Arms:
    """The three arms, one of which diverges."""
    numbers = {name: own | {"name": name} for name, own in ARMS.items()}
    numbers["slow"]["schedule.peak_lr"] = 1e38
    return Arms(runs=tuple(small(folder, each).experiment for each in numbers.values()))


def test_a_sweep_runs_stacked_what_can_be(tmp_path, alone):
    console, arms, runs = Console(file=io.StringIO(), width=300), sweep_of(tmp_path), tmp_path / "r"
    for again in (False, True):
        with pytest.raises(SweepError, match=r"1 of 3 runs stopped:\n.*slow/seed-5: steps 2 to 2"):
            run_stacked(arms, runs, console, most=8, command=[], group=ALONE)
        said = console.file.getvalue()
        assert ("[1/3] plain, seed 0: finished before" in said) == again
        assert ("[2/3] slow, seed 5: alone, since there is no other to go with" in said) == again
    assert "3 together: [1/3] plain, seed 0, [2/3] slow, seed 5, [3/3] wet, seed 7" in said
    assert "[3/3] wet, seed 7: step 8  loss" in said
    assert stand(runs / "slow/seed-5").state == "stopped"
    for name, seed in (("plain", 0), ("wet", 7)):
        assert stand(runs / f"{name}/seed-{seed}").state == "finished"
        order = runs / f"{name}/seed-{seed}" / "order.jsonl"
        assert order.read_bytes() == (alone[name].workdir / "order.jsonl").read_bytes()


def test_a_stacked_sweep_is_of_one_process(tmp_path):
    with pytest.raises(ValueError, match="--stacked 8 is for one process, not for one of 2"):
        run_stacked(
            sweep_of(tmp_path), tmp_path, Console(), most=8, command=[], group=Group(count=2)
        )
