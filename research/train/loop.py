"""The loop: cycles of steps, between which the host plans, records, saves and evaluates."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from research.checkpoint import Store
from research.clock import Cycle
from research.core.protocols import Tree
from research.core.records import Batch, Learner, Report, State
from research.curriculum.ahead import ids_ahead, note_ahead, take_ahead
from research.curriculum.state import NEVER, from_arrays
from research.data.batches import pack_batch
from research.data.packing import pack
from research.evaluate.evaluate import evaluate
from research.experiment import Update
from research.report.writers import AnyRecord, open_record
from research.score.pool import IN_FLIGHT, Cost, Gauge
from research.score.terms import AskedTerms, ask_terms
from research.train.prepare import Prepared
from research.train.profile import profiled
from research.train.routing import routing
from research.train.step import (
    abstractly,
    all_finite,
    compile_reset,
    compile_step,
    initialise,
    structure_of,
)
from research.train.watchdog import AGAIN

Rows = list[list[int]]


class Watch(Protocol):
    """Someone who looks on, such as a progress bar; what it does changes nothing."""

    def begins(self, prepared: Prepared, step: int) -> None:
        """The run starts or resumes at `step`."""
        ...

    def scoring(self, done: int, total: int) -> None:
        """So many examples of the pool are scored."""
        ...

    def recorded(self, cycle: Cycle, metrics: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """A cycle has ended."""
        ...

    def evaluating(self, name: str, done: int, total: int) -> None:
        """So many items are evaluated."""
        ...


class PreemptedError(RuntimeError):
    """The run was asked to leave, and has saved; its exit code says "start me again"."""

    exit_code = AGAIN


class NonFiniteError(RuntimeError):
    """More updates than allowed were withheld because loss or gradient was not finite."""


def never() -> bool:
    """Nobody asks this run to leave."""
    return False


@dataclasses.dataclass(kw_only=True)
class Steps:
    """A cycle's rows, packed step by step as they are asked for: the devices run those before.

    Attributes:
      waiting: examples that no step has taken yet, in order.
      packed: the rows of each step so far.
    """

    prepared: Prepared
    cycle: Cycle
    waiting: list[int]
    packed: list[Rows] = dataclasses.field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        """Yield the number of each step, from 1, and its rows.

        Raises:
          ValueError: a step would have no example.
        """
        for index in range(self.cycle.num_steps):
            number = self.cycle.first + index + 1
            if index == len(self.packed):
                self._pack(number)
            yield number, self.packed[index]

    def _pack(self, number: int) -> None:
        if not self.waiting:
            raise ValueError(
                f"step {number}: round {self.cycle.round} has no example left for it; lower "
                "clock.steps, select a larger fraction, or allow repeats"
            )
        pool, data = self.prepared.pool, self.prepared.experiment.data
        most = data.rows * data.segments
        rows, left = pack(
            self.waiting[:most], pool.lengths_X, data.rows, data.row_tokens, data.segments
        )
        self.packed.append(rows)
        self.waiting = left + self.waiting[most:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A cycle's steps, which a run wants done.

    Attributes:
      asked: scores that were asked for before them, of weights that the steps will take; None:
        none were.
    """

    prepared: Prepared
    state: State
    cycle: Cycle
    steps: Steps
    asked: AskedTerms | None = None

    def wait_for_scores(self) -> float:
        """Wait for what was asked for; give the seconds that this took.

        Law: a second call takes none.
        """
        return 0.0 if self.asked is None else self.asked.wait()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """A cycle's steps, done.

    Attributes:
      seen: the report of each step, on the host.
      seconds: what they took; of several runs that went together, this one's share.
      waited_s: what waiting for scores took, before or among them.
      together: how many went together.
    """

    learner: Learner
    seen: list[Report]
    seconds: float
    waited_s: float = 0.0
    together: int = 1


Run = Generator[Work, Done, State]


def train(
    prepared: Prepared,
    workdir: Path,
    watch: Watch,
    *,
    profile: tuple[int, int] | None = None,
    asked_to_leave: Callable[[], bool] = never,
) -> State:
    """Run an experiment to its last step, resuming from `workdir` if it holds a checkpoint.

    Args:
      profile: steps (first, last) to trace into `workdir/profile`.
      asked_to_leave: asked before each cycle; all processes of a run must hear the same.

    Raises:
      PreemptedError: the run was asked to leave.
      NonFiniteError: more updates were withheld than the experiment tolerates.
      CheckpointError: the newest checkpoint cannot be used; the message says what to do.
    """
    if profile is not None and profile[1] > prepared.experiment.clock.steps:
        raise ValueError(f"profile={profile}: the run has {prepared.experiment.clock.steps} steps")
    done: Any = None
    with contextlib.closing(loop(prepared, workdir, watch, asked_to_leave=asked_to_leave)) as run:
        while True:
            try:
                work = run.send(done)
            except StopIteration as end:
                return end.value
            done = run_steps(work, profile, workdir)


def loop(
    prepared: Prepared,
    workdir: Path,
    watch: Watch,
    *,
    asked_to_leave: Callable[[], bool] = never,
    frozen: Tree | None = None,
) -> Run:
    """Walk the cycles of a run; whoever drives it runs the steps, and so several may go together.

    Args:
      frozen: the frozen parameters, where they are on the devices already; they are only read.
    """
    experiment = prepared.experiment
    with (
        contextlib.closing(open_record(workdir, experiment.sinks)) as record,
        Store(workdir / "checkpoints", experiment.checkpoints) as store,
    ):
        state, resumed = begin(prepared, store, frozen)
        first, gauge = int(state.learner.step), Gauge()
        record.truncate_to(first if resumed else -1)
        watch.begins(prepared, first)
        if not resumed and experiment.clock.evaluate_first:
            evaluate_all(prepared, state, record, watch)
        for cycle in experiment.clock.cycles(rounds=experiment.curriculum.rounds, after=first):
            if asked_to_leave():
                leave(prepared, state, store)
            clock, cost = Stopwatch(), Cost()
            refuse_other_rounds(state, cycle)
            if cycle.opens_round:  # ask the model what is hard now
                state, cost = open_round(prepared, state, cycle, gauge, record, watch)
            ids, asked = ask_ahead(prepared, state, cycle, gauge)
            clock.lap("score_s")
            steps, state = plan(prepared, state, cycle)
            clock.lap("plan_s")
            done = yield Work(prepared=prepared, state=state, cycle=cycle, steps=steps, asked=asked)
            clock.charge("steps_s", done.seconds)
            clock.charge("score_s", done.waited_s)
            if asked is not None:
                state, cost = keep_ahead(prepared, state, cycle, ids, asked, cost)
            report = functools.reduce(Report.__add__, done.seen)
            state = observe(prepared, state, done.learner, report, steps.waiting)
            record_order(record, steps, report)
            refuse_non_finite(prepared, state, cycle, done.seen, store)
            metrics = summarise(prepared, state, cycle, report)
            record.metrics(cycle.last, metrics)
            scores = evaluate_all(prepared, state, record, watch) if cycle.evaluates else {}
            clock.lap("evaluate_s")
            record.commit()
            if cycle.saves:
                save(prepared, state, store, scores)
            clock.lap("save_s")
            timing = rates(prepared, metrics, clock.laps, cost, done.together)
            record.timing(cycle.last, timing)
            watch.recorded(cycle, metrics, timing)
    return state


def leave(prepared: Prepared, state: State, store: Store) -> None:
    """Save what is not saved yet, and stop.

    Raises:
      PreemptedError: always.
    """
    step, steps = int(state.learner.step), prepared.experiment.clock.steps
    store.wait()
    if step and step not in store.steps:
        save(prepared, state, store, {})
    store.wait_for_all()
    saved = f"saved at step {step} of {steps}" if step else "no step was made yet"
    raise PreemptedError(f"asked to leave, as by SIGTERM: {saved}; the same command goes on there")


def refuse_other_rounds(state: State, cycle: Cycle) -> None:
    """Stop where a changed clock would put a step into another round than the curriculum is in.

    Raises:
      ValueError: the checkpoint's round is not the one that the clock goes on with.
    """
    held, expected = state.curriculum.round, cycle.round - cycle.opens_round
    if held != expected:
        raise ValueError(
            f"step {cycle.first} lies in round {cycle.round} of this clock, but the checkpoint is "
            f"in round {held}; go on with the clock.steps of the run's start, or begin a new run"
        )


def begin(prepared: Prepared, store: Store, frozen: Tree | None = None) -> tuple[State, bool]:
    """Start from the newest checkpoint, or from the experiment's weights: (state, resumed)."""
    experiment, pool = prepared.experiment, prepared.pool
    learner, frozen = initialise(
        prepared.place,
        experiment.update(),
        prepared.params(frozen),
        experiment.seed_of("initialisation"),
        frozen,
    )
    if store.steps:
        learner, arrays = store.restore(abstractly(learner), source=prepared.source)
        return State(learner=learner, frozen=frozen, curriculum=from_arrays(arrays)), True
    groups = (pool.groups_X, pool.group_weights) if experiment.data.weighted else ()
    curriculum = experiment.curriculum.init(len(pool), *groups)
    return State(learner=learner, frozen=frozen, curriculum=curriculum), False


def open_round(
    prepared: Prepared,
    state: State,
    cycle: Cycle,
    gauge: Gauge,
    record: AnyRecord,
    watch: Watch,
) -> tuple[State, Cost]:
    """Score what the curriculum wants scored, select the round, and reset what it resets."""
    experiment, curriculum = prepared.experiment, prepared.experiment.curriculum
    held, order, cost = state.curriculum, experiment.seed_of("order"), Cost()
    ids = curriculum.ids_to_score(held, cycle.round, order)
    ids = ids[held.ahead_step_X[ids] == NEVER]
    if len(ids):
        asked = ask(prepared, state, ids, cycle.round, gauge, IN_FLIGHT, watch.scoring)
        signals, cost = asked.finish()
        held = curriculum.rescore(held, ids, signals, cycle.round, cost.flops, step=cycle.first)
    held = take_ahead(curriculum, held, cycle.round)
    held = curriculum.open_round(held, cycle.round, order)
    record.round(
        cycle.round,
        cycle.first,
        score_X=held.score_X,
        signal_YX=held.signal_YX,
        scored_round_X=held.scored_round_X,
        scored_step_X=held.scored_step_X,
        times_used_X=held.times_used_X,
        share_G=held.share_G,
        memory=held.memory,
        selected=held.queue,
    )
    learner = state.learner
    if curriculum.reset_optimizer_each_round and cycle.round > 0:
        learner = reset_optimizer(prepared, learner)
    return State(learner=learner, frozen=state.frozen, curriculum=held), cost


def ask(
    prepared: Prepared,
    state: State,
    ids: np.ndarray,
    round_: int,
    gauge: Gauge,
    in_flight: int | None,
    watch: Callable[[int, int], None] | None = None,
) -> AskedTerms:
    """Ask the model about some examples, on the weights that it has now."""
    experiment, begun = prepared.experiment, time.perf_counter()
    params = prepared.scoring_params(state)
    moved = Cost()
    if prepared.scoring_model.place != prepared.place:
        jax.block_until_ready(params)
        moved_s = time.perf_counter() - begun
        moved = Cost(seconds=moved_s, reshard_s=moved_s)
    return ask_terms(
        prepared.terms,
        experiment.curriculum.measurements(state.curriculum),
        params,
        ids,
        round_=round_,
        key=jax.random.key(experiment.seed_of("scoring")),
        place=prepared.scoring_model.place,
        rows_per_batch=experiment.compute.scoring_rows,
        gauge=gauge,
        in_flight=in_flight,
        watch=watch,
        paid=moved,
    )


def ask_ahead(
    prepared: Prepared, state: State, cycle: Cycle, gauge: Gauge
) -> tuple[np.ndarray, AskedTerms | None]:
    """Queue what the next round wants to know by the end of a cycle: (ids, what was asked).

    The devices are at it while the host plans the cycle and queues its steps behind.
    """
    experiment = prepared.experiment
    ids = ids_ahead(
        experiment.curriculum,
        state.curriculum,
        cycle.last - cycle.round_first,
        cycle.round_last - cycle.round_first,
        prepared.scoring_model.place.divisible(experiment.compute.scoring_rows),
        experiment.seed_of("order"),
    )
    if not len(ids):
        return ids, None
    return ids, ask(prepared, state, ids, cycle.round + 1, gauge, in_flight=None)


def keep_ahead(
    prepared: Prepared,
    state: State,
    cycle: Cycle,
    ids: np.ndarray,
    asked: AskedTerms,
    cost: Cost,
) -> tuple[State, Cost]:
    """Take in what was asked before a cycle's steps: (state, the cycle's cost of scoring)."""
    signals, more = asked.finish()
    held = note_ahead(
        prepared.experiment.curriculum, state.curriculum, ids, signals, cycle.first, more.flops
    )
    return dataclasses.replace(state, curriculum=held), cost + more


def reset_optimizer(prepared: Prepared, learner: Learner) -> Learner:
    """Give the learner a fresh optimiser state."""
    reset = compile_reset(prepared.experiment.optimizer, structure_of(learner))
    return dataclasses.replace(learner, optimizer=reset(learner.trainable))


def plan(prepared: Prepared, state: State, cycle: Cycle) -> tuple[Steps, State]:
    """Take what the cycle's steps may use from the queue; `observe` puts back what they leave."""
    experiment, data = prepared.experiment, prepared.experiment.data
    most = cycle.num_steps * data.rows * data.segments
    ids, held = experiment.curriculum.plan(state.curriculum, most, experiment.seed_of("order"))
    steps = Steps(prepared=prepared, cycle=cycle, waiting=ids.tolist())
    return steps, dataclasses.replace(state, curriculum=held)


def run_steps(work: Work, profile: tuple[int, int] | None, workdir: Path) -> Done:
    """Run a cycle's steps; the host looks at what each saw only at the end."""
    begun, prepared, learner = time.perf_counter(), work.prepared, work.state.learner
    step = compile_step(prepared.model, prepared.place, structure_of(learner))
    fixed = prepared.place.put_everywhere(fixed_for(work))
    seen: list[Report] = []
    waited_s = 0.0
    wait = functools.partial(jax.block_until_ready, seen)
    batches = profiled(stream(work), work.cycle.first, profile, workdir / "profile", wait)
    for batch in batches:
        learner, report = step(learner, work.state.frozen, batch, *fixed)
        seen.append(report)
        waited_s += work.wait_for_scores()  # they were queued before; a step is queued behind them
    seen = jax.device_get(seen)
    seconds = time.perf_counter() - begun - waited_s
    return Done(learner=learner, seen=seen, seconds=seconds, waited_s=waited_s)


def fixed_for(work: Work) -> tuple[Update, tuple[np.int32, np.int32], jax.Array]:
    """Give what all steps of a cycle share: (update, span of the schedule, dropout key)."""
    experiment, cycle = work.prepared.experiment, work.cycle
    spans_round = experiment.schedule_spans_round
    first = cycle.round_first if spans_round else 0
    steps = cycle.round_last - cycle.round_first if spans_round else experiment.clock.steps
    key = jax.random.key(experiment.seed_of("dropout"))
    return experiment.update(), (np.int32(first), np.int32(steps)), key


def stream(work: Work) -> Iterator[Batch]:
    """Put one batch after the other on the devices, one ahead of the step that runs."""
    for _, rows in work.steps:
        build = functools.partial(build_batch, work.prepared, rows)
        yield work.prepared.place.put_rows(len(rows), build)


def build_batch(prepared: Prepared, rows: Rows, part: slice = slice(None)) -> Batch:
    """Lay out some of a step's rows, on the host."""
    data, examples = prepared.experiment.data, prepared.pool.examples
    filled = [[(x, examples[x]) for x in row] for row in rows[part]]
    return pack_batch(filled, data.row_tokens, data.segments)


def observe(
    prepared: Prepared, state: State, learner: Learner, report: Report, waiting: Sequence[int]
) -> State:
    """Take in what the cycle's steps made of the learner, saw of each example, and left over."""
    curriculum = prepared.experiment.curriculum
    held = curriculum.put_back(state.curriculum, waiting)
    held = curriculum.observe(held, report.rows)
    return State(learner=learner, frozen=state.frozen, curriculum=held)


def record_order(record: AnyRecord, steps: Steps, report: Report) -> None:
    """Write down which examples each step saw, and the loss that each of them had."""
    loss_BZ = report.rows["loss_nats"] / np.maximum(report.rows["tokens"], 1)
    losses = iter(loss_BZ.tolist())
    for number, rows in steps:
        record.order(number, steps.cycle.round, rows)
        record.losses(number, [next(losses)[: len(row)] for row in rows])


def summarise(prepared: Prepared, state: State, cycle: Cycle, report: Report) -> dict[str, Any]:
    """Give the cycle's numbers: means of sums, counts, and FLOPs (scoring's since the start)."""
    totals = report.totals
    means = {name: float(total.mean) for name, total in totals.items() if name != "withheld"}
    return {
        "round": cycle.round,
        "cycle": cycle.number,
        **means,
        **routing(prepared.model.arch, report.router),
        "tokens": int(totals["loss_nats"].count),
        "examples": int(np.sum(report.rows["id"] >= 0)),
        "withheld": int(totals["withheld"].sum),
        "flops": cycle.num_steps * prepared.step_flops,
        "scoring_flops": state.curriculum.scoring_flops,
    }


def refuse_non_finite(
    prepared: Prepared, state: State, cycle: Cycle, seen: Sequence[Report], store: Store
) -> None:
    """Stop the run when more updates were withheld than it tolerates.

    Raises:
      NonFiniteError: with the steps, the examples and the last good checkpoint.
    """
    withheld, allowed = int(state.learner.withheld), prepared.experiment.max_withheld
    bad = [
        (step, report.rows)
        for step, report in enumerate(seen, start=cycle.first + 1)
        if report.totals["withheld"].sum
    ]
    if withheld <= allowed or not bad:
        return
    named = "; ".join(f"step {step}: {_suspects(prepared, rows)}" for step, rows in bad[:3])
    store.wait()  # what is being saved now is good
    good = f"step {store.steps[-1]}" if store.steps else "none yet"
    raise NonFiniteError(
        f"steps {bad[0][0]} to {bad[-1][0]}: {len(bad)} updates were not finite and changed "
        f"nothing ({withheld} in all, max_withheld={allowed}). {named}. Last good checkpoint: "
        f"{good}. Look at these rows, or begin again in a new folder with a lower peak_lr or a "
        "larger max_withheld"
    )


def _suspects(prepared: Prepared, rows: Mapping[str, Any]) -> str:
    """Name the examples whose loss is not finite, or all of the step if the gradient alone is."""
    ids, losses = np.asarray(rows["id"]), np.asarray(rows["loss_nats"])
    lost = ids[~np.isfinite(losses) & (ids >= 0)]
    names = sorted({prepared.pool.ids[x] for x in (lost if lost.size else ids[ids >= 0])})
    what = "the loss of" if lost.size else "the gradient, not the loss, of"
    return f"{what} {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}"


def evaluate_all(
    prepared: Prepared, state: State, record: AnyRecord, watch: Watch
) -> dict[str, float]:
    """Ask every evaluator; give `name/metric` -> value."""
    values: dict[str, float] = {}
    if not prepared.experiment.evaluators:
        return values
    params = prepared.scoring_params(state)
    for evaluator in prepared.experiment.evaluators:
        progress = functools.partial(watch.evaluating, evaluator.name)
        evaluation = evaluate(
            evaluator,
            prepared.scoring_model,
            params,
            prepared.tokenizer,
            prepared.scoring_model.place,
            progress,
            stop_ids=prepared.stop_ids,
            start=functools.partial(prepared.scoring_start, state.frozen),
        )
        record.evaluation(int(state.learner.step), evaluation)
        values |= {f"{evaluator.name}/{k}": v.value for k, v in evaluation.metrics.items()}
    return values


def save(prepared: Prepared, state: State, store: Store, scores: Mapping[str, float]) -> None:
    """Start saving what changes; frozen weights are named by their fingerprint.

    Raises:
      NonFiniteError: an update overflowed, so that the parameters are no longer finite.
    """
    step = int(state.learner.step)
    if not all_finite((state.learner.trainable, state.learner.optimizer)):
        store.wait()
        good = f"step {store.steps[-1]}" if store.steps else "none yet"
        raise NonFiniteError(
            f"after step {step} parameters or optimiser state are not finite, though every "
            f"gradient was; nothing was saved. Last good checkpoint: {good}. Lower peak_lr"
        )
    arrays = state.curriculum.arrays()
    store.save(step, state.learner, arrays, source=prepared.source, metrics=scores)


def rates(
    prepared: Prepared,
    metrics: Mapping[str, Any],
    laps: Mapping[str, float],
    scoring: Cost,
    together: int,
) -> dict[str, Any]:
    """Give the cycle's seconds, those of scoring by what they were for, tokens a second and, on
    accelerators, MFU."""
    seconds = laps["steps_s"]
    parts = {name: getattr(scoring, name) for name in ("prefill_s", "decode_s", "reshard_s")}
    parts["host_s"] = laps["score_s"] - sum(parts.values())
    timing = {
        **laps,
        **{f"score_{name}": part for name, part in parts.items()},
        "scored_rows": scoring.rows,
        "wall_s": sum(laps.values()),
        "together": together,
        "devices": prepared.place.mesh.size,
        "tokens_per_s": metrics["tokens"] / seconds,
    }
    peak = prepared.peak_flops_per_s
    return timing if peak is None else timing | {"mfu": metrics["flops"] / seconds / peak}


class Stopwatch:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Charge the time since the last lap to `name`."""
        now = time.perf_counter()
        self.charge(name, now - self._last)

    def charge(self, name: str, seconds: float) -> None:
        """Charge so many seconds more to `name`; the next lap begins now."""
        self.laps[name] = self.laps.get(name, 0.0) + seconds
        self._last = time.perf_counter()
