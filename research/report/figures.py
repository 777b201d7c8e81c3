"""The plots: loss, learning curves and the curriculum, each as the bytes of a PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from research.report.comparison import Standing
from research.report.drawing import (
    COLOURS,
    INK,
    canvas,
    encoded,
    explain,
    explain_below,
    over_runs,
    shade,
)
from research.report.runs import Arm, Round

POOL, SELECTED = "#9aa5b1", "#D55E00"
DECIDED = {"better": COLOURS[2], "worse": COLOURS[1], "undecided": POOL}
NAMES = {
    "loss_nats": "loss (nats a token)",
    "perplexity": "perplexity",
    "bits_per_byte": "bits a byte",
}


def label_of(metric: str) -> str:
    """Name a metric for an axis, with its unit."""
    return NAMES.get(metric, metric.replace("_", " ") + " (share)")


def differences(standings: Sequence[Standing], control: str) -> bytes | None:
    """Draw what each arm is better by than the control in each evaluation, with its interval."""
    by_evaluation: dict[str, list[Standing]] = {}
    for standing in standings:
        if standing.difference is not None:
            by_evaluation.setdefault(standing.evaluation, []).append(standing)
    if not by_evaluation:
        return None
    most = max(map(len, by_evaluation.values()))
    named: list[str] = []
    figure, panels = canvas(len(by_evaluation), width=7.0, height=0.9 + 0.22 * most)
    for axes, (evaluation, shown) in zip(panels, by_evaluation.items(), strict=True):
        forest(axes, shown)
        names = [standing.arm for standing in shown]
        axes.set_yticks(range(len(shown)), [""] * len(names) if names == named else names)
        named = names
        axes.set_xlabel(f"{evaluation}: {label_of(shown[0].metric)},\nbetter than {control}")
    return encoded(figure)


def forest(axes: Axes, standings: Sequence[Standing]) -> None:
    """Draw gains with their intervals from top to bottom; grey could be chance."""
    for row, standing in enumerate(standings):
        value, low, high = standing.gain
        colour = DECIDED[standing.verdict]
        axes.plot([low, high], [row, row], color=colour, lw=1.6)
        axes.plot(value, row, "o", color=colour, ms=4)
    axes.axvline(0.0, color=INK, lw=0.8, ls="--")
    axes.set_ylim(len(standings) - 0.5, -0.5 - (not standings))


def training_loss(arms: Sequence[Arm], look: Mapping[str, dict]) -> bytes | None:
    """Draw each arm's training loss: mean over seeds, band from the lowest to the highest seed."""
    figure, (axes,) = canvas(1, width=7.0, height=2.9)
    drawn = 0
    for arm in arms:
        steps, values = over_runs(arm.runs, lambda run: run.series("loss_nats"))
        if not len(steps):
            continue
        drawn += 1
        axes.plot(steps, np.nanmean(values, axis=0), label=arm.name, lw=1.4, **look[arm.name])
        shade(axes, steps, np.nanmin(values, 0), np.nanmax(values, 0), look[arm.name])
    axes.set(xlabel="step (updates)", ylabel="training loss (nats a token)")
    explain(axes, drawn)
    return encoded(figure) if drawn else None


def learning_curves(
    arms: Sequence[Arm], look: Mapping[str, dict], evaluation: str, metric: str
) -> bytes | None:
    """Draw a metric against updates, and against tokens and compute where they were recorded.

    Mean over seeds, band from the lowest to the highest seed.
    """
    runs = [run for arm in arms for run in arm.runs]
    against = [("step (updates)", lambda run, step: step)]
    if any(run.tokens() for run in runs):
        against.append(("tokens trained on", lambda run, step: run.tokens(step)))
    if any(sum(run.flops()) for run in runs):
        against.append(("FLOP, with scoring", lambda run, step: sum(run.flops(step))))
    figure, panels = canvas(len(against), width=7.0, height=2.7)
    drawn = 0
    for axes, (what, place) in zip(panels, against, strict=True):
        drawn = sum(
            _learning_curve(axes, arm, look[arm.name], evaluation, metric, place) for arm in arms
        )
        axes.set(xlabel=what, ylabel=label_of(metric))
    for axes in panels[1:]:
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylabel("")
    explain_below(figure, panels[0])
    return encoded(figure) if drawn else None


def _learning_curve(
    axes: Axes, arm: Arm, look: dict, evaluation: str, metric: str, place: Callable
) -> bool:
    points: dict[int, list[tuple[float, float]]] = {}
    for run in arm.runs:
        for line in run.evaluations:
            estimate = line["metrics"].get(metric)
            if line["name"] == evaluation and estimate and estimate["value"] is not None:
                x = place(run, line["step"])
                points.setdefault(line["step"], []).append((x, estimate["value"]))
    if not points:
        return False
    steps = [np.transpose(points[step]) for step in sorted(points)]
    x = [np.mean(places) for places, _ in steps]
    mean = [np.mean(values) for _, values in steps]
    axes.plot(x, mean, marker="o", ms=3, lw=1.4, label=arm.name, **look)
    shade(axes, x, [min(values) for _, values in steps], [max(values) for _, values in steps], look)
    return True


def coverage(arms: Sequence[Arm], look: Mapping[str, dict]) -> bytes | None:
    """Draw how much of what a round selects is new, and how much of the pool was ever selected."""
    arms = [arm for arm in arms if any(len(run.rounds) > 1 for run in arm.runs)]
    if not arms:
        return None
    figure, (new, ever) = canvas(2, width=7.0, height=2.7)
    for arm in arms:
        shares = [selection_history(run.rounds) for run in arm.runs if run.rounds]
        length = min(len(history) for history in shares)
        mean = np.mean([history[:length] for history in shares], axis=0)
        rounds = np.arange(length)
        new.plot(rounds, mean[:, 0], marker="o", ms=3, lw=1.4, label=arm.name, **look[arm.name])
        ever.plot(rounds, mean[:, 1], marker="o", ms=3, lw=1.4, label=arm.name, **look[arm.name])
    new.set(xlabel="round", ylabel="selected for the first time (share)", ylim=(-0.03, 1.03))
    ever.set(xlabel="round", ylabel="pool ever selected (share)", ylim=(-0.03, 1.03))
    for axes in (new, ever):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    explain(ever, len(arms))
    return encoded(figure)


def selection_history(rounds: Sequence[Round]) -> np.ndarray:
    """Give, a row a round, the share of it that is new and the share of the pool ever selected."""
    seen: set[int] = set()
    history = []
    for round_ in rounds:
        chosen = set(round_.selected.tolist())
        new = len(chosen - seen) / len(chosen) if chosen else 0.0
        seen |= chosen
        history.append((new, len(seen) / max(len(round_.scores), 1)))
    return np.asarray(history)
