"""What a sweep is made of: arms, in batches, each arm an experiment at one or several seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from research.core.parts import vary
from research.evaluate.results import LOWER_IS_BETTER
from research.experiment import Experiment
from research.sweep.halving import Halving, require_rungs
from research.sweep.space import Point, Range, described_at, said

Held = Callable[[str], Any]  # the described experiment in an arm's folder, or None


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone.

    Attributes:
      point: where a search has found it.
      says: what is searched over, for people.
    """

    name: str
    runs: tuple[Experiment, ...]
    point: Point | None = None
    says: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """What came of an arm, for a search to learn from.

    Attributes:
      value: the mean over seeds of the metric at the end; None: it did not come there.
      rungs: step -> the same, where the arm was compared with others.
    """

    arm: Arm
    value: float | None
    rungs: Mapping[int, float]


class Sweep(Protocol):
    """Arms that are found batch by batch; what a batch holds depends on those before alone."""

    @property
    def metric(self) -> str: ...

    @property
    def maximise(self) -> bool | None: ...

    @property
    def halving(self) -> Halving | None: ...

    def batch(self, told: Sequence[Told], held: Held) -> list[Arm]:
        """Give the arms that come after `told`; [] where there are no more."""
        ...

    def arm(self, name: str, point: Point | None) -> Arm:
        """Give an arm of this sweep by its name, and its point where it is a trial."""
        ...

    def vary(self, change: Callable[[Experiment], Experiment]) -> Sweep:
        """Derive a sweep of changed experiments."""
        ...


def by_seed(arms: Iterable[Arm]) -> list[tuple[Arm, Experiment]]:
    """List the runs of arms, the first seed of each arm first: what can be compared soon."""
    ranked = [(rank, arm, run) for arm in arms for rank, run in enumerate(arm.runs)]
    return [(arm, run) for _, arm, run in sorted(ranked, key=lambda each: each[0])]


def is_maximised(sweep: Sweep) -> bool:
    """Whether more of a sweep's metric is better: as it says, else by the metric's name."""
    name = sweep.metric.rpartition("/")[2]
    return name not in LOWER_IS_BETTER if sweep.maximise is None else sweep.maximise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arms:
    """Experiments that are known beforehand; those of one name are one arm.

    Attributes:
      runs: each an experiment of its own name or seed.
      metric: EVALUATOR/METRIC, by which arms are halved.
      maximise: whether more of it is better; None: by its name (less of a loss is).
      halving: when to stop hopeless arms; None: never.
    """

    runs: tuple[Experiment, ...]
    metric: str = ""
    maximise: bool | None = None
    halving: Halving | None = None

    def __post_init__(self) -> None:
        runs = [(run.name, run.seed) for run in self.runs]
        doubled = sorted({run for run in runs if runs.count(run) > 1})
        if not runs:
            raise ValueError("a sweep of nothing; expected experiments")
        if doubled:
            raise ValueError(
                f"{doubled} more than once; name and seed are a run's folder: tell the runs apart "
                "by one of them"
            )
        if self.halving:
            require_judged(self.runs, self.metric, self.halving)

    def batch(self, told: Sequence[Told], held: Held) -> list[Arm]:
        """Give all arms at once, in the order of their first run."""
        return [] if told else [self.arm(name) for name in dict.fromkeys(r.name for r in self.runs)]

    def arm(self, name: str, point: Point | None = None) -> Arm:
        """Give the arm of a name."""
        return Arm(name, tuple(run for run in self.runs if run.name == name))

    def vary(self, change: Callable[[Experiment], Experiment]) -> Arms:
        """Change every run."""
        return dataclasses.replace(self, runs=tuple(map(change, self.runs)))


class Method(Protocol):
    """How a search chooses its points; `knows_all` says that nothing is learnt from trials."""

    @property
    def knows_all(self) -> bool: ...

    def propose(
        self, space: Mapping[str, Range], told: Sequence[Told], maximise: bool
    ) -> list[Point]:
        """Give the next points, which may be tried at the same time; [] where there are no more."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Look for good values of some fields: each trial is a run of its own, NAME-0007.

    Attributes:
      base: what the trials have in common.
      space: path of a field -> where to look.
      method: `Grid`, `Random` or `Tpe`.
      metric: EVALUATOR/METRIC; its value at the end of a run counts.
      maximise: whether more of it is better; None: by its name (less of a loss is).
      halving: when to stop hopeless trials; None: never.
      seeds: each trial is run at all of them, and its mean counts; (): at the base's.
    """

    base: Experiment
    space: Mapping[str, Range]
    method: Method
    metric: str
    maximise: bool | None = None
    halving: Halving | None = None
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.space:
            raise ValueError("space is empty; name at least one field and where to look")
        if "name" in self.space or "seed" in self.space:
            raise ValueError("space holds name or seed, which tell trials apart; see Search.seeds")
        trial = self.arm("trial", {path: range_.at(0.5) for path, range_ in self.space.items()})
        require_judged(trial.runs, self.metric, self.halving)

    def batch(self, told: Sequence[Told], held: Held) -> list[Arm]:
        """Ask the method for the next points; a trial that was begun stays where it was."""
        arms = []
        for number, point in enumerate(
            self.method.propose(self.space, told, is_maximised(self)), start=len(told)
        ):
            name = f"{self.base.name}-{number:04d}"
            arms.append(self.arm(name, self.find(held(name)) or point))
        return arms

    def find(self, described: Any) -> Point | None:
        """Read the point of a trial from what it described; None: it is not of this space."""
        found = {p: r.find(described_at(described, p)) for p, r in self.space.items()}
        return None if None in found.values() else found  # type: ignore[return-value]

    def arm(self, name: str, point: Point | None) -> Arm:
        """Give the trial at a point."""
        if point is None:
            raise ValueError(f"{name}: a trial has a point; got none")
        values = {path: self.space[path].value(point[path]) for path in self.space}
        seeds = self.seeds or (self.base.seed,)
        runs = tuple(vary(self.base, {**values, "name": name, "seed": seed}) for seed in seeds)
        return Arm(name, runs, dict(point), said(self.space, point))

    def vary(self, change: Callable[[Experiment], Experiment]) -> Search:
        """Change what the trials have in common."""
        return dataclasses.replace(self, base=change(self.base))


def require_judged(runs: Sequence[Experiment], metric: str, halving: Halving | None) -> None:
    """Check that runs are evaluated by a metric, and where halving needs it.

    Raises:
      ValueError: naming the run and what it lacks.
    """
    evaluator, slash, name = metric.partition("/")
    for run in runs:
        names = [each.name for each in run.evaluators]
        if not (slash and name) or evaluator not in names:
            raise ValueError(
                f"{run.name}: metric {metric!r}: expected EVALUATOR/METRIC with an evaluator of "
                f"the run: {', '.join(names) or 'it has none'}"
            )
        if halving:
            require_rungs(run.clock, run.curriculum.rounds, halving, run.name)


def key_of(experiment: Experiment) -> str:
    """Name a run's folder below that of its sweep."""
    return f"{experiment.name}/seed-{experiment.seed}"
