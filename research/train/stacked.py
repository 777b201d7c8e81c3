"""Arms over one frozen base that go together: one step, vmapped over what each of them trains."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.checkpoint import CheckpointError
from research.core.layout import Placement
from research.core.protocols import Model, Tree
from research.core.records import Batch
from research.score.pool import ScoringError
from research.train.loop import (
    Done,
    NonFiniteError,
    PreemptedError,
    Run,
    Watch,
    Work,
    build_batch,
    fixed_for,
    loop,
    never,
)
from research.train.prepare import Prepared
from research.train.step import initialise, step_program, structure_of

LEAST_FROZEN = 0.5  # of the base's parameters; below it an arm is mostly weights of its own
STOPS = (NonFiniteError, PreemptedError, CheckpointError, ScoringError, ValueError, OSError)
End = Any  # a State, or the Exception that came instead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the runs that go together; it keeps its own folder, curriculum and record."""

    prepared: Prepared
    workdir: Path
    watch: Watch
    asked_to_leave: Callable[[], bool] = never


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that can go together, or one that cannot.

    Attributes:
      members: their places among the runs that were asked about.
      alone: why there is one only; empty where there are several.
    """

    members: tuple[int, ...]
    alone: str = ""


def train_stacked(arms: Sequence[Arm]) -> Iterator[tuple[int, End]]:
    """Run experiments to their last steps, cycle by cycle together, each from its own checkpoint.

    Every arm walks the loop of `train` and writes the same files, so that either goes on with what
    the other has begun. Those that are behind go first. An arm that is not in a turn, such as one
    that is ahead, has its lane in the program all the same: what it computes is thrown away, and
    the numbers of the others do not depend on who else goes. Once an arm has ended there is a
    program with a lane less.

    Yields:
      (its place among the arms, its last state or the error that stopped it), as each ends.

    Raises:
      ValueError: they cannot go together; the message names what differs.

    Law: losses and adapters are those of separate runs, within 1e-5.
    """
    refuse_unlike([arm.prepared for arm in arms])
    base = arms[0].prepared
    _, frozen = initialise(base.place, base.experiment.update(), base.params(), seed=0)
    with contextlib.ExitStack() as opened:
        runs = [opened.enter_context(contextlib.closing(_loop(arm, frozen))) for arm in arms]
        waiting: dict[int, Work] = {}
        turn: Mapping[int, Done | None] = dict.fromkeys(range(len(arms)))
        while turn:
            for index, done in turn.items():
                try:
                    waiting[index] = runs[index].send(done)  # type: ignore[arg-type]
                except StopIteration as end:
                    yield index, end.value
                except STOPS as error:
                    yield index, error
            turn = run_together(waiting)


def _loop(arm: Arm, frozen: Tree) -> Run:
    return loop(
        arm.prepared, arm.workdir, arm.watch, asked_to_leave=arm.asked_to_leave, frozen=frozen
    )


def run_together(waiting: dict[int, Work]) -> Mapping[int, Done]:
    """Run the next cycle of all who wait for the same one, the earliest; they wait no more.

    Lanes of others repeat the first of these.
    """
    if not waiting:
        return {}
    lanes = sorted(waiting)
    turn = {index: waiting.pop(index) for index in furthest_behind(waiting)}
    waited_s = {index: work.wait_for_scores() for index, work in turn.items()}
    begun = time.perf_counter()
    some = next(iter(turn.values()))
    works = [turn.get(lane, some) for lane in lanes]
    place, structure = some.prepared.place, structure_of(some.state.learner)
    programs = compile_stacked(some.prepared.model, place, structure, len(lanes))
    fixed = [place.put_everywhere(fixed_for(work)) for work in works]
    fixed = place.put_everywhere(jax.tree.map(lambda *leaves: jnp.stack(leaves), *fixed))
    learner, seen = programs.stack([work.state.learner for work in works]), []
    for batch in stream(works):
        learner, report = programs.step(learner, some.state.frozen, batch, *fixed)
        seen.append(report)
    seen, learners = jax.device_get(seen), programs.unstack(learner)
    share_s = (time.perf_counter() - begun) / len(turn)
    return {
        index: Done(
            learner=learners[lanes.index(index)],
            seen=[_lane(report, lanes.index(index)) for report in seen],
            seconds=share_s,
            waited_s=waited_s[index],
            together=len(turn),
        )
        for index in turn
    }


def furthest_behind(waiting: Mapping[int, Work]) -> list[int]:
    """Name the runs whose next cycle is the earliest."""
    cycles = {index: (work.cycle.first, work.cycle.last) for index, work in waiting.items()}
    return [index for index in sorted(cycles) if cycles[index] == min(cycles.values())]


def stream(works: Sequence[Work]) -> Iterator[Batch]:
    """Put the batches of one step of all runs on the devices, one ahead of the step that runs."""
    place = works[0].prepared.place
    for step in zip(*(work.steps for work in works), strict=True):
        rows = [
            build_batch(work.prepared, rows) for work, (_, rows) in zip(works, step, strict=True)
        ]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        yield jax.device_put(stacked, jax.tree.map(beside, place.batch(rows[0])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """What learners of several runs go through in a cycle, compiled."""

    stack: Callable[[list[Any]], Any]
    step: Callable[..., tuple[Any, Any]]
    unstack: Callable[[Any], list[Any]]


@functools.lru_cache(maxsize=8)
def compile_stacked(model: Model, place: Placement, structure: Any, lanes: int) -> Programs:
    """Give the programs of `lanes` runs whose learners look alike (`structure_of`).

    The step is that of `research/train/step.py`, vmapped over learners, batches, the scalars of
    the update, spans and dropout keys; frozen weights are the same in all lanes.
    """
    treedef, leaves = structure
    one = jax.tree.unflatten(treedef, [sharding for _, _, sharding in leaves])
    many = jax.tree.map(beside, one)

    def stack(learners: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *learners)

    def unstack(learner: Any) -> list[Any]:
        return [_lane(learner, lane) for lane in range(lanes)]

    return Programs(
        stack=jax.jit(stack, out_shardings=many),
        step=jax.jit(
            jax.vmap(step_program(model, place), in_axes=(0, None, 0, 0, 0, 0)),
            donate_argnums=0,
            out_shardings=(many, place.replicated),
        ),
        unstack=jax.jit(unstack, out_shardings=[one] * lanes),
    )


def _lane(tree: Tree, lane: int) -> Tree:
    return jax.tree.map(lambda leaf: leaf[lane], tree)


def beside(sharding: NamedSharding) -> NamedSharding:
    """Give the sharding of arrays that are stacked on a new first axis, which is not split."""
    return NamedSharding(sharding.mesh, P(None, *sharding.spec), memory_kind=sharding.memory_kind)


# Who can go with whom


def groups(prepared: Sequence[Prepared]) -> list[Group]:
    """Sort runs into groups that can go together, in the order of their first members."""
    alike: dict[Any, list[int]] = {}
    for index, run in enumerate(prepared):
        key = index if refusal(run) else tuple(likeness(run).values())
        alike.setdefault(key, []).append(index)
    return [
        Group(members=tuple(members), alone="" if members[1:] else _alone(prepared, members[0]))
        for members in alike.values()
    ]


def refuse_unlike(prepared: Sequence[Prepared]) -> None:
    """Check that runs can go together.

    Raises:
      ValueError: one cannot go with any other, or two of them differ in what all must share.
    """
    for run in prepared:
        if problem := refusal(run):
            raise ValueError(f"{_named(run)} cannot be stacked: {problem}")
    for run in prepared[1:]:
        if names := unlike(prepared[0], run):
            raise ValueError(
                f"{_named(run)} cannot be stacked with {_named(prepared[0])}: they differ in "
                f"{' and in '.join(names)}; run them apart"
            )


def likeness(prepared: Prepared) -> dict[str, Any]:
    """Give what runs that go together have in common, by name."""
    experiment, data = prepared.experiment, prepared.experiment.data
    numbers, structure = jax.tree.flatten(experiment.update())
    return {
        "the model, its compute or its layout": prepared.model,
        "the starting weights": json.dumps(prepared.source, sort_keys=True),
        "more than numbers of tuning, objective, optimizer, schedule or micro_batches": (
            structure,
            tuple(map(np.shape, numbers)),
        ),
        "the shape of batches": (data.rows, data.row_tokens, data.segments),
        "the clock or curriculum.rounds": (experiment.clock, experiment.curriculum.rounds),
    }


def unlike(one: Prepared, other: Prepared) -> list[str]:
    """Name what keeps two runs from going together."""
    theirs = likeness(other)
    return [name for name, held in likeness(one).items() if held != theirs[name]]


def refusal(prepared: Prepared) -> str | None:
    """Say why a run cannot go with any other; None: it can."""
    place, model = prepared.place, prepared.model
    if place.mesh.is_multi_process:
        return "its mesh spans several processes, and stacked arms run in one"
    if model.arch.moe is not None and (place.platform != "cpu" or place.mesh.size > 1):
        return (
            f"it has experts on {place.mesh.size} x {place.platform}. A grouped product "
            "(jax.lax.ragged_dot) batches only if all of its operands are stacked, and frozen "
            "experts are shared; one CPU device can"
        )
    if place.layout.optimizer_on_host:
        return "layout.optimizer_on_host keeps its optimiser off the devices; leave it out"
    split = functools.partial(prepared.experiment.tuning.split, key=jax.random.key(0))
    whole, frozen = _size(model.abstract()), _size(jax.eval_shape(split, model.abstract())[1])
    if frozen < LEAST_FROZEN * whole:
        return (
            f"{type(prepared.experiment.tuning).__name__} freezes {frozen / whole:.0%} of the "
            "model, so that there is no base to share; choose Lora"
        )
    return None


def _alone(prepared: Sequence[Prepared], index: int) -> str:
    """Say why a run has no companion."""
    others = [run for place, run in enumerate(prepared) if place != index and not refusal(run)]
    if problem := refusal(prepared[index]):
        return problem
    if not others:
        return "there is no other to go with"
    nearest = min(others, key=lambda other: len(unlike(prepared[index], other)))
    differ = " and in ".join(unlike(prepared[index], nearest))
    return f"it differs from {_named(nearest)} in {differ}"


def _named(prepared: Prepared) -> str:
    return f"{prepared.experiment.name}, seed {prepared.experiment.seed}"


def _size(tree: Tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
