"""Arms against their control: estimates over seeds, paired differences, corrected p-values."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from research.evaluate.folds import fold_difference, fold_interval
from research.evaluate.power import detectable_paired_difference
from research.evaluate.results import LOWER_IS_BETTER, Estimate
from research.evaluate.routing import AGREEMENT
from research.evaluate.statistics import (
    LEVEL,
    Difference,
    Discordance,
    holm,
    influence,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    paired_difference,
)
from research.report.runs import Arm, Line, Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """Where an arm stands in one metric of one evaluation, and how far from the control.

    Attributes:
      estimate: over seeds, with Student's interval; of one seed: over items, as evaluated.
      items, seeds: how many items the evaluation has, and how many runs the estimate.
      difference: to the control, over shared seeds and items; None for the control itself, or where
        the two share no seed.
      bootstrap: of the item differences averaged over seeds; says nothing about other seeds.
      discordance: McNemar's counts, where items are yes or no and one seed is shared.
      disagreement: share of yes/no items on which exactly one of the two is right, mean over seeds.
      corrected: Holm's p-value among all comparisons of a report.
    """

    evaluation: str
    metric: str
    arm: str
    estimate: Estimate
    items: int
    seeds: int
    difference: Difference | None = None
    bootstrap: Difference | None = None
    discordance: Discordance | None = None
    disagreement: float | None = None
    corrected: float | None = None

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "undecided" than the control, at 5 % after correction."""
        if self.difference is None or self.corrected is None or self.corrected >= LEVEL:
            return "undecided"
        return "better" if self.gain[0] > 0 else "worse"

    @property
    def gain(self) -> tuple[float, float, float]:
        """What the arm is better by: the difference and its interval, turned where lower wins."""
        found = self.difference
        if found is None:
            return 0.0, 0.0, 0.0
        if self.metric in LOWER_IS_BETTER:
            return -found.value, -found.high, -found.low
        return found.value, found.low, found.high

    @property
    def smallest_visible(self) -> float:
        """The smallest difference that this comparison would have shown, with 80 % power."""
        if self.discordance is not None:
            return detectable_paired_difference(self.discordance.rate, self.discordance.items)
        return self.difference.detectable if self.difference else float("nan")


def evaluations_of(arms: Sequence[Arm]) -> dict[str, str]:
    """Give each evaluation's name and its first metric, the one that is tested.

    How far routes are from where they started is neither good nor bad: it has a section of its own.
    """
    return {
        line["name"]: next(iter(line["metrics"]))
        for arm in arms
        for run in arm.runs
        for line in run.evaluations
        if line["metrics"] and AGREEMENT not in line["metrics"]
    }


def compare(arms: Sequence[Arm], control: str) -> list[Standing]:
    """Compare every arm with the control in the first metric of every evaluation.

    Only finished runs count, at their last evaluation; p-values are corrected together.
    """
    by_name = {arm.name: arm for arm in arms}
    standings = [
        standing
        for evaluation, metric in evaluations_of(arms).items()
        for arm in arms
        if (standing := _standing(arm, by_name[control], evaluation, metric)) is not None
    ]
    tested = [s for s in standings if s.difference is not None]
    corrected = holm([s.difference.p for s in tested if s.difference])
    found = {id(s): p for s, p in zip(tested, corrected, strict=True)}
    return [dataclasses.replace(s, corrected=found.get(id(s))) for s in standings]


def over_seeds(arm: Arm, evaluation: str, metric: str, slice_: str = "") -> Estimate | None:
    """Estimate a metric over an arm's finished runs; None where it was not evaluated."""
    found = [_value(run, evaluation, metric, slice_) for run in arm.finished]
    values = [value for value in found if value is not None and value["value"] is not None]
    if not values:
        return None
    if len(values) == 1:
        known = {name: math.nan if v is None else v for name, v in values[0].items()}
        return Estimate(
            value=known["value"], count=int(known["count"]), low=known["low"], high=known["high"]
        )
    numbers, folds = [value["value"] for value in values], arm.finished[0].folds
    return fold_interval(numbers, folds) if folds else mean_interval(numbers)


def methods(arms: Sequence[Arm]) -> list[tuple[Arm | None, Arm | None]]:
    """Pair arms that differ in their budget alone: (at equal steps, at equal compute).

    An arm that is charged no scoring is both. One that makes other steps than the first of its
    method stands alone.
    """
    found: dict[str, list[Arm | None]] = {}
    for arm in arms:
        method, budget = _method_of(arm.runs[0]), _has_equal_compute(arm.runs[0])
        if found.get(method, [None, None])[budget] is not None:
            method += arm.name
        pair = found.setdefault(method, [None, None])
        pair[budget] = arm
        if not any(run.flops()[1] for run in arm.runs):
            pair[1] = pair[1] or arm
    return [(first, second) for first, second in found.values()]


def _has_equal_compute(run: Run) -> bool:
    budget = (run.experiment.get("curriculum") or {}).get("budget") or {}
    return str(budget.get("type", "")).endswith(".EqualCompute")


def _method_of(run: Run) -> str:
    """Describe a run without its name, seed and budget."""
    left_out = {"name", "seed", "clock", "curriculum"}
    rest = {name: value for name, value in run.experiment.items() if name not in left_out}
    curriculum = run.experiment.get("curriculum")
    if curriculum is None:
        return run.arm  # a run of another make: its name is all that is known
    switches = {name: value for name, value in curriculum.items() if name != "budget"}
    clock = run.experiment.get("clock", {})
    when = {name: value for name, value in clock.items() if name != "steps"}
    return json.dumps([rest, switches, when], sort_keys=True)


def _value(run: Run, evaluation: str, metric: str, slice_: str) -> Line | None:
    line = run.final(evaluation)
    if line is None:
        return None
    return (line.get("slices", {}).get(slice_, {}) if slice_ else line["metrics"]).get(metric)


def _standing(arm: Arm, control: Arm, evaluation: str, metric: str) -> Standing | None:
    estimate = over_seeds(arm, evaluation, metric)
    if estimate is None:
        return None
    line = next(line for run in arm.finished if (line := run.final(evaluation)) is not None)
    base = Standing(
        evaluation=evaluation,
        metric=metric,
        arm=arm.name,
        estimate=estimate,
        items=line["metrics"][metric]["count"],
        seeds=sum(run.final(evaluation) is not None for run in arm.finished),
    )
    pairs = [] if arm.name == control.name else _pairs(arm, control, evaluation)
    return dataclasses.replace(base, **_tests(pairs, evaluation, metric)) if pairs else base


def _pairs(arm: Arm, control: Arm, evaluation: str) -> list[tuple[Run, Run]]:
    """Pair finished runs of the same seed that have both answered."""
    others = {run.seed: run for run in control.finished}
    return [
        (run, others[run.seed])
        for run in arm.finished
        if run.seed in others and run.final(evaluation) and others[run.seed].final(evaluation)
    ]


def _tests(pairs: Sequence[tuple[Run, Run]], evaluation: str, metric: str) -> dict:
    """Give the fields of a standing that pairs of runs decide."""
    items = [tuple(_items(run, evaluation, metric) for run in pair) for pair in pairs]
    shared = sorted(set.intersection(*(set(found) for pair in items for found in pair)))
    if len(shared) < 2:
        return _tests_over_seeds(pairs, evaluation, metric)
    values = np.asarray(
        [[influence(*np.transpose([found[i] for i in shared])) for found in p] for p in items]
    )
    difference_SX = values[:, 0] - values[:, 1]
    tests: dict = {
        "difference": paired_difference(difference_SX),
        "bootstrap": paired_bootstrap(difference_SX.mean(axis=0)),
    }
    yes_no = all(found[i] in ((0, 1), (1, 1)) for pair in items for found in pair for i in shared)
    if yes_no:
        tests["disagreement"] = float(np.mean(difference_SX.round() != 0))
    if len(pairs) == 1 and yes_no:
        tests["discordance"] = mcnemar(values[0, 0].round(), values[0, 1].round())
    return tests


def _tests_over_seeds(pairs: Sequence[tuple[Run, Run]], evaluation: str, metric: str) -> dict:
    """Compare by the runs' own numbers, where items were not kept or are not the same."""
    values = [[_value(run, evaluation, metric, "") for run in pair] for pair in pairs]
    differences = [first["value"] - second["value"] for first, second in values if first and second]
    folds = pairs[0][0].folds
    if len(differences) < 2:
        return {}
    if folds:
        return {"difference": fold_difference(differences, folds)}
    return {"difference": paired_difference(np.asarray(differences)[:, None])}


def _items(run: Run, evaluation: str, metric: str) -> Mapping[str, tuple[float, float]]:
    """Give (sum, count) of each item that has the metric."""
    line = run.final(evaluation)
    rows = run.items(evaluation, line["step"]) if line else {}
    found = {}
    for name, row in rows.items():
        if row.get(metric) is not None:
            count = row.get(f"{metric}_count", 1)
            found[name] = (row[metric] * count, count)
    return found
