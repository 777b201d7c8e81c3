"""The plots: loss, learning curves and the curriculum, each as the bytes of a PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator
from scipy.stats import rankdata

from research.evaluate.results import Estimate
from research.evaluate.statistics import spearman
from research.report.document import interval, number
from research.report.drawing import (
    COLOURS,
    INK,
    SMALL,
    canvas,
    encoded,
    entitle,
    explain,
    over_runs,
    shade,
)
from research.report.runs import Arm, Round, Run

POOL, SELECTED = "#9aa5b1", "#D55E00"
NAMES = {
    "loss_nats": "loss (nats a token)",
    "perplexity": "perplexity",
    "bits_per_byte": "bits a byte",
}


def label_of(metric: str) -> str:
    """Name a metric for an axis, with its unit."""
    return NAMES.get(metric, metric.replace("_", " ") + " (share)")


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
    """Draw a metric against updates, and against compute where it was recorded.

    Mean over seeds, band from the lowest to the highest seed.
    """
    against = [("step (updates)", lambda run, step: step)]
    if any(sum(run.flops()) for arm in arms for run in arm.runs):
        against.append(("compute with scoring (FLOP)", lambda run, step: sum(run.flops(step))))
    figure, panels = canvas(len(against), width=7.0, height=2.9)
    drawn = 0
    for axes, (what, place) in zip(panels, against, strict=True):
        drawn = sum(
            _learning_curve(axes, arm, look[arm.name], evaluation, metric, place) for arm in arms
        )
        axes.set(xlabel=what, ylabel=label_of(metric))
    if len(panels) > 1:
        panels[1].xaxis.set_major_formatter(EngFormatter())
        panels[1].set_ylabel("")
    explain(panels[0], drawn)
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


def curriculum(arm: Arm) -> bytes | None:
    """Draw what an arm's scores did: their spread a round, the last choice, loss, and memory."""
    runs = [run for run in arm.runs if any(np.isfinite(r.scores).any() for r in run.rounds)]
    if not runs:
        return None
    figure, panels = canvas(4, width=7.0, height=5.4, rows=2)
    _score_spread(panels[0], runs)
    _last_choice(panels[1], runs)
    _score_against_loss(panels[2], runs)
    _score_memory(panels[3], runs)
    return encoded(figure)


def _score_spread(axes: Axes, runs: Sequence[Run]) -> None:
    """Quantiles of the pool's scores by round, averaged over seeds; median of the selected."""
    length = min(len(run.rounds) for run in runs)
    rounds = np.arange(length)
    quantiles = (5, 25, 50, 75, 95)
    pool = np.asarray(
        [[np.nanpercentile(r.scores, quantiles) for r in run.rounds[:length]] for run in runs]
    ).mean(axis=0)
    chosen = np.asarray(
        [
            [np.nanpercentile(r.scores[r.selected], (25, 50, 75)) for r in run.rounds[:length]]
            for run in runs
        ]
    ).mean(axis=0)
    axes.fill_between(rounds, pool[:, 0], pool[:, 4], color=POOL, alpha=0.25, lw=0)
    axes.fill_between(rounds, pool[:, 1], pool[:, 3], color=POOL, alpha=0.45, lw=0)
    axes.plot(rounds, pool[:, 2], color=INK, lw=1.4, label="pool: median, 50 %, 90 %")
    spread = np.abs(chosen[:, [0, 2]] - chosen[:, [1]]).T
    axes.errorbar(
        rounds, chosen[:, 1], yerr=spread, color=SELECTED, fmt="o", ms=3.5, lw=1.2,
        capsize=2, label="selected: median, 50 %",
    )  # fmt: skip
    axes.set(xlabel="round", ylabel="score (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    axes.legend(frameon=False, fontsize=SMALL, labelcolor=INK, loc="upper right")
    entitle(axes, "Pool and selection by round")


def _last_choice(axes: Axes, runs: Sequence[Run]) -> None:
    """The pool's scores when the last round opened, and which of them were selected."""
    last = runs[0].rounds[-1]
    scores = last.scores[np.isfinite(last.scores)]
    count = min(40, max(8, round(len(scores) ** 0.5)))
    bins = np.histogram_bin_edges(scores, bins=count).tolist()
    axes.hist(scores, bins=bins, color=POOL, alpha=0.6, label="pool")
    axes.hist(last.scores[last.selected], bins=bins, color=SELECTED, alpha=0.75, label="selected")
    axes.set(xlabel=f"score when round {last.number} opened (nats)", ylabel="examples")
    explain(axes, 2)
    entitle(axes, f"What round {last.number} selected, seed {runs[0].seed}")


def _score_against_loss(axes: Axes, runs: Sequence[Run]) -> None:
    """An example's score against its loss when that round first trained on it; colour: round."""
    found = np.concatenate([scores_and_losses(run) for run in runs])
    axes.set(
        xlabel="score when the round opened (nats)", ylabel="loss when trained on (nats a token)"
    )
    if not len(found):
        entitle(axes, "Score and loss: no losses were recorded")
        return
    last = max(found[:, 0].max(), 1)
    for number_ in np.unique(found[:, 0]):
        points = found[found[:, 0] == number_, 1:]
        colour = colormaps["cividis"](0.9 * number_ / last)
        label = f"round {number_:.0f}" if number_ in (0, last) else None
        axes.scatter(*points.T, s=6, color=colour, alpha=_faint(len(found)), lw=0, label=label)
    axes.legend(frameon=False, fontsize=SMALL, labelcolor=INK, markerscale=2, handletextpad=0.1)
    entitle(axes, f"Score and loss within rounds: {_rank(agreement(runs))}")


def agreement(runs: Sequence[Run]) -> Estimate:
    """Correlate score and loss inside each round of each run, and pool the ranks.

    Over all rounds at once the two would agree or not because both change as training goes on.
    """
    ranks = [np.zeros((0, 2))]
    for run in runs:
        found = scores_and_losses(run)
        for number_ in np.unique(found[:, 0]):
            points = found[found[:, 0] == number_, 1:]
            ranks.append(rankdata(points, axis=0) / (len(points) + 1))
    return spearman(*np.concatenate(ranks).T)


def scores_and_losses(run: Run) -> np.ndarray:
    """Give (round, score, loss) of each selected example when its round first trained on it."""
    opened = {round_.number: round_ for round_ in run.rounds}
    seen = {line["step"]: line["loss_nats"] for line in run.losses}
    first: dict[tuple[int, int], float] = {}
    for line in run.order:
        if line["round"] not in opened or line["step"] not in seen:
            continue
        for ids, losses in zip(line["rows"], seen[line["step"]], strict=True):
            for example, loss in zip(ids, losses, strict=True):
                if loss is not None:
                    first.setdefault((line["round"], example), loss)
    rows = [(n, opened[n].scores[example], loss) for (n, example), loss in first.items()]
    found = np.asarray(rows, np.float64).reshape(-1, 3)
    return found[np.isfinite(found).all(axis=1)]


def _score_memory(axes: Axes, runs: Sequence[Run]) -> None:
    """An example's score in the last round against its score in the first."""
    first = np.concatenate([run.rounds[0].scores for run in runs])
    last = np.concatenate([run.rounds[-1].scores for run in runs])
    number = runs[0].rounds[-1].number
    axes.scatter(first, last, s=6, color=COLOURS[2], alpha=_faint(len(first)), lw=0)
    low, high = np.nanmin([first, last]), np.nanmax([first, last])
    axes.plot([low, high], [low, high], color=INK, lw=0.7, ls=":")
    axes.set(xlabel="score in round 0 (nats)", ylabel=f"score in round {number} (nats)")
    entitle(axes, f"First and last score: {_rank(spearman(first, last))}")


def _rank(found: Estimate) -> str:
    return f"{number(found.value, 2)} {interval(found.low, found.high, 2)}"


def _faint(count: int) -> float:
    """Opacity at which `count` points on one panel do not merge into a blot."""
    return float(np.clip(60 / np.sqrt(max(count, 1)) / 6, 0.08, 0.8))
