"""What a report says in words: only what its numbers carry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from research.report.comparison import Standing
from research.report.document import (
    estimate,
    interval,
    listed,
    number,
    p_value,
    signed,
)
from research.report.figures import selection_history
from research.report.probe import agreement
from research.report.runs import Arm

CLOSE = 0.02  # compute within 2 % is called equal: whole steps cannot match a budget exactly
METHOD = (
    "A mean over seeds carries Student's 95 % interval. A difference to the control is paired: "
    "the same items, the same seeds. Its interval and p-value let both items and seeds vary "
    "(two-way random effects), because a test over items alone takes the luck of a seed for a "
    "finding. With one seed it is the paired t test over items. Folds of one pool are compared "
    "fold by fold, with the variance corrected for the rows they share (Nadeau & Bengio 2003).",
    "All p-values of the first metric of each evaluation are corrected together by Holm's method; "
    "other metrics and slices are shown and not tested. A difference is called better or worse "
    "only where the corrected p-value is below 0.05. Unfinished runs are drawn and not compared.",
)


def findings(arms: Sequence[Arm], standings: Sequence[Standing], control: str) -> tuple[str, ...]:
    """Say what each comparison shows, what it could have shown, and whether budgets were equal."""
    if not standings and any(run.evaluations for arm in arms for run in arm.finished):
        return ("No evaluation asked which arm is better, so nothing is compared.",)
    if not standings:
        return ("No finished run has been evaluated, so nothing can be compared yet.",)
    said = [_finding(standing, control) for standing in standings]
    return (*said, *_budget(arms), *_missing(arms))


def _finding(standing: Standing, control: str) -> str:
    where = f"{standing.metric} on {standing.evaluation}"
    start = f"{standing.arm} reaches {where} {estimate(standing.estimate)}"
    start += f" ({_seeds(standing.seeds)})"
    found = standing.difference
    if standing.arm == control:
        return f"{start}, on {standing.items} items: the control."
    if found is None:
        return f"{start}; it shares no finished seed with {control} and is not compared."
    size = f"{signed(found.value)} {interval(found.low, found.high)}"
    basis = f"p = {p_value(standing.corrected)} after Holm's correction".replace("= <", "<")
    verdict = {
        "better": f"better than {control} by {size}, {basis}",
        "worse": f"worse than {control} by {size}, {basis}",
        "undecided": f"its difference to {control}, {size}, could be chance, {basis}",
    }[standing.verdict]
    power = (
        f" A true difference below {number(standing.smallest_visible)} would probably have been "
        f"missed with {found.items} items and {_seeds(found.seeds)}."
    )
    if found.seeds == 1:
        power += " One shared seed says nothing about other seeds."
    return f"{start}: {verdict}.{power}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _budget(arms: Sequence[Arm]) -> list[str]:
    """Say whether arms had equal steps and equal compute."""
    said = []
    amounts = (
        ("updates", 0.0, lambda run: run.last_step),
        ("compute", CLOSE, lambda run: sum(run.flops())),
    )
    for what, close, amount in amounts:
        values = {
            arm.name: float(np.mean([amount(run) for run in arm.finished]))
            for arm in arms
            if arm.finished
        }
        if len(values) < 2 or not all(values.values()):
            continue
        low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        ratio = values[high] / values[low]
        said.append(
            f"All arms had equal {what}."
            if ratio <= 1 + close
            else f"Arms differ in {what}: {high} had {ratio:.2f} times that of {low}."
        )
    return said


def _missing(arms: Sequence[Arm]) -> list[str]:
    """Say which runs did not finish, and which of them were left behind on purpose."""
    runs = [(f"{arm.name} seed {run.seed}", run) for arm in arms for run in arm.runs]
    left = [(name, run) for name, run in runs if not run.finished and run.hopeless]
    open_ = [name for name, run in runs if not run.finished and not run.hopeless]
    said = []
    for rung in sorted({run.hopeless["rung"] for _, run in left if run.hopeless}):
        there = [
            (n, run.hopeless) for n, run in left if run.hopeless and run.hopeless["rung"] == rung
        ]
        metric, step = there[0][1]["metric"], there[0][1]["step"]
        said.append(
            f"Left behind as hopeless at rung {rung} (step {step}), by {metric}, and not compared: "
            f"{listed([name for name, _ in there])}."
        )
    return said + ([f"Not finished, and so not compared: {listed(open_)}."] if open_ else [])


def state_of(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Say which files a kill left torn."""
    torn = [
        f"{run.path.parent.name}/{run.path.name}/{name}"
        for arm in arms
        for run in arm.runs
        for name in run.torn
    ]
    if not torn:
        return ()
    return (f"The last line was torn by a kill, and is left out, in {listed(torn)}.",)


def curricula(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Say, an arm a sentence, what its curriculum did."""
    return tuple(said for arm in arms if (said := _curriculum(arm)))


def _curriculum(arm: Arm) -> str:
    runs = [run for run in arm.runs if run.rounds and np.isfinite(run.rounds[-1].scores).any()]
    if not runs:
        return ""
    first = float(np.mean([np.nanmean(run.rounds[0].scores) for run in runs]))
    last = float(np.mean([np.nanmean(run.rounds[-1].scores) for run in runs]))
    history = np.mean([selection_history(run.rounds)[-1] for run in runs], axis=0)
    said = (
        f"{arm.name}: the pool's mean score went from {number(first)} to {number(last)} nats over "
        f"{len(runs[0].rounds)} rounds; {history[1]:.0%} of the pool was selected at least once"
    )
    found = agreement(runs)
    if np.isfinite(found.value):
        said += (
            f", and within a round score and training loss correlate at {number(found.value, 2)} "
            f"{interval(found.low, found.high, 2)} (Spearman)"
        )
    return said + "."
