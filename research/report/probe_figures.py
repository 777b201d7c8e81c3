"""The plots of the probe: how unsure the model is, and who is chosen, as the bytes of PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from research.report import probe
from research.report.drawing import (
    COLOURS,
    INK,
    SMALL,
    canvas,
    encoded,
    entitle,
    explain,
    explain_below,
    over_runs,
    shade,
)
from research.report.probe import Opening, Pairs
from research.report.runs import Arm, Run

POOL, SELECTED, LEFT_OUT = "#8b96a3", "#D55E00", "#0072B2"
MOST_DOTS = 4_000  # on a panel; more are a blot, and megabytes
LINE = {"marker": "o", "ms": 3, "lw": 1.4}


def collapse(groups: Sequence[Sequence[Arm]], look: Mapping[str, dict]) -> bytes | None:
    """Draw the pool's mean score as rounds open, a panel for each estimator.

    Line: mean over seeds; band: lowest to highest seed.
    """
    if not groups:
        return None
    figure, panels = canvas(len(groups), width=7.0, height=2.9)
    for axes, arms in zip(panels, groups, strict=True):
        for arm in arms:
            steps, values = over_runs(arm.runs, _pool_means)
            _banded(axes, steps, values, look[arm.name], arm.name)
        axes.set(xlabel="updates made", ylabel=f"pool: {probe.label_of(arms[0].runs[0])}")
    explain_below(figure, *panels)
    return encoded(figure)


def _pool_means(run: Run) -> tuple[np.ndarray, np.ndarray]:
    rounds = [opened for opened in probe.openings(run) if np.isfinite(opened.pool)]
    return np.asarray([o.step for o in rounds]), np.asarray([o.pool for o in rounds])


def trained_entropy(arms: Sequence[Arm], look: Mapping[str, dict]) -> bytes | None:
    """Draw the entropy of predictions at trained tokens, as training itself saw it."""
    arms = [arm for arm in arms if any(len(run.series("entropy_nats")[0]) for run in arm.runs)]
    if not arms:
        return None
    figure, (axes,) = canvas(1, width=7.0, height=2.7)
    for arm in arms:
        steps, values = over_runs(arm.runs, lambda run: run.series("entropy_nats"))
        _banded(axes, steps, values, look[arm.name], arm.name, marker="")
    axes.set(xlabel="step (updates)", ylabel="entropy at trained tokens (nats)")
    explain(axes, len(arms))
    return encoded(figure)


def _banded(
    axes: Axes, x: np.ndarray, values: np.ndarray, look: dict, label: str, marker: str = "o"
) -> None:
    """Draw the mean over runs, and shade from the lowest to the highest."""
    known = np.isfinite(values).any(axis=0)
    x, values = x[known], values[:, known]
    axes.plot(x, np.nanmean(values, axis=0), label=label, **{**LINE, "marker": marker}, **look)
    shade(axes, x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), look)


def spread(arm: Arm, told: Sequence[Sequence[Opening]]) -> bytes:
    """Draw an arm's scores: quantiles by round with what was selected, and two whole rounds."""
    figure, (by_round, whole) = canvas(2, width=7.0, height=3.0)
    _quantiles(by_round, arm.runs, told)
    _histograms(whole, arm.runs)
    by_round.set(xlabel="round", ylabel=probe.label_of(arm.runs[0]))
    by_round.xaxis.set_major_locator(MaxNLocator(integer=True))
    entitle(by_round, "By round")
    handles = dict(zip(*reversed(by_round.get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(whole.get_legend_handles_labels()), strict=True))
    figure.set_figheight(figure.get_figheight() + 0.45)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False,
        fontsize=SMALL, labelcolor=INK,
    )  # fmt: skip
    return encoded(figure)


def _quantiles(axes: Axes, runs: Sequence[Run], told: Sequence[Sequence[Opening]]) -> None:
    numbers, pool = probe.by_round(told, "pool")
    _, selected = probe.by_round(told, "selected")
    length = min(len(run.rounds) for run in runs)
    known = [
        [_percentiles(run.rounds[index].scores, (5, 25, 75, 95)) for index in range(length)]
        for run in runs
    ]
    low, lower, upper, high = np.mean(known, axis=0).T
    axes.fill_between(numbers[:length], low, high, color=POOL, alpha=0.25, lw=0, label="pool, 90 %")
    axes.fill_between(
        numbers[:length], lower, upper, color=POOL, alpha=0.45, lw=0, label="pool, 50 %"
    )
    _banded(axes, numbers, pool, {"color": INK}, "pool, mean")
    _banded(axes, numbers, selected, {"color": SELECTED, "linestyle": "--"}, "selected, mean")


def _percentiles(scores: np.ndarray, which: Sequence[float]) -> np.ndarray:
    known = scores[np.isfinite(scores)]
    return np.percentile(known, which) if known.size else np.full(len(which), np.nan)


def _histograms(axes: Axes, runs: Sequence[Run]) -> None:
    first, last = runs[0].rounds[0].number, min(len(run.rounds) for run in runs) - 1
    start = np.concatenate([run.rounds[0].scores for run in runs])
    end = np.concatenate([run.rounds[last].scores for run in runs])
    chosen = np.concatenate([run.rounds[last].scores[run.rounds[last].selected] for run in runs])
    start, end, chosen = (values[np.isfinite(values)] for values in (start, end, chosen))
    both = np.concatenate([start, end])
    bins = np.histogram_bin_edges(both, bins=min(48, max(10, round(len(end) ** 0.5)))).tolist()

    def weights(values: np.ndarray) -> np.ndarray:
        return np.full(len(values), 1 / max(len(end), 1))

    axes.hist(
        start, bins=bins, weights=weights(start), histtype="step", color=INK, lw=1.2, ls=":",
        label=f"pool in round {first}",
    )  # fmt: skip
    axes.hist(
        end, bins=bins, weights=weights(end), color=POOL, alpha=0.6,
        label=f"pool in round {runs[0].rounds[last].number}",
    )  # fmt: skip
    axes.hist(
        chosen, bins=bins, weights=weights(chosen), color=SELECTED, alpha=0.75,
        label="selected of it",
    )  # fmt: skip
    axes.set(xlabel=probe.label_of(runs[0]), ylabel="share of the pool")
    _percent(axes)
    entitle(axes, "First and last round")


def choice(arm: Arm, told: Sequence[Sequence[Opening]], look: dict) -> bytes:
    """Draw what was new in each round, how much of the pool was reached, and whether ranks hold."""
    figure, (new, reached, ranks) = canvas(3, width=7.0, height=2.7)
    numbers, values = probe.by_round(told, "new")
    _banded(new, numbers, values, look, arm.name)
    numbers, values = probe.by_round(told, "coverage")
    _banded(reached, numbers, values, look, arm.name)
    untouched = 1 - _chance_of_reach(arm.runs)
    chance = {"color": "#999999", "linestyle": ":", "lw": 1.2, "label": "random choice"}
    new.plot(numbers, np.concatenate([[1.0], untouched[:-1]]), **chance)
    reached.plot(numbers, 1 - untouched, **chance)
    numbers, values = probe.by_round(told, "with_last")
    if np.isfinite(values).any():
        _banded(ranks, numbers, values, look, arm.name)
        ranks.axhline(0, color=INK, lw=0.7, ls=":")
        ranks.set(ylim=(min(-0.05, np.nanmin(values) - 0.05), 1.05))
    else:
        ranks.text(
            0.5, 0.5, "no example was\nscored twice", ha="center", va="center", color=INK,
            fontsize=SMALL, transform=ranks.transAxes,
        )  # fmt: skip
    for axes, title in (
        (new, "Selected, never before"),
        (reached, "Pool selected so far"),
        (ranks, "Ranks against last round"),
    ):
        axes.set(xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(numbers[0] - 0.3, numbers[-1] + 0.3)
        entitle(axes, title)
    for axes in (new, reached):
        axes.set_ylim(-0.04, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    explain_below(figure, new)
    return encoded(figure)


def _chance_of_reach(runs: Sequence[Run]) -> np.ndarray:
    """Give the share of the pool that as many random choices, round by round, would have met."""
    length = min(len(run.rounds) for run in runs)
    shares = [
        [len(np.unique(run.rounds[i].selected)) / max(len(run.rounds[i].scores), 1) for run in runs]
        for i in range(length)
    ]
    met = 1 - np.cumprod(1 - np.mean(shares, axis=1))
    longest = max(len(run.rounds) for run in runs)
    return np.concatenate([met, np.full(longest - length, np.nan)])


def quarters(arm: Arm, found: Sequence[Pairs]) -> bytes:
    """Draw score against loss: one round as it was, and all rounds by places within each."""
    figure, (one, places) = canvas(2, width=7.0, height=3.3)
    pairs = found[0]
    number = pairs.round.max()
    here = pairs.round == number
    one.scatter(
        pairs.score[here], pairs.loss[here], s=9, color=COLOURS[0], alpha=_faint(here.sum()), lw=0
    )
    one.axvline(float(np.median(pairs.score[here])), color=INK, lw=0.8)
    one.axhline(float(np.median(pairs.loss[here])), color=INK, lw=0.8)
    one.set(xlabel=probe.label_of(arm.runs[0]), ylabel="loss when trained on (nats a token)")
    entitle(one, f"Round {number}, seed {arm.runs[0].seed}; lines: medians")
    score, loss = np.concatenate([np.transpose(p.within_rounds()) for p in found]).T
    shown = np.linspace(0, len(score) - 1, min(len(score), MOST_DOTS)).astype(int)
    places.scatter(score[shown], loss[shown], s=6, color=COLOURS[0], alpha=_faint(len(shown)), lw=0)
    places.axvline(0.5, color=INK, lw=0.8)
    places.axhline(0.5, color=INK, lw=0.8)
    counts = np.bincount(np.concatenate([p.quarters() for p in found]), minlength=4) / len(score)
    for share, (x, y) in zip(
        counts, ((0.75, 0.75), (0.75, 0.25), (0.25, 0.75), (0.25, 0.25)), strict=True
    ):
        places.text(
            x, y, f"{share:.0%}", ha="center", va="center", color=INK, fontsize=15, alpha=0.9,
            bbox={"facecolor": "white", "alpha": 0.65, "lw": 0, "boxstyle": "round"},
        )  # fmt: skip
    places.set(xlabel="score: place in its round", ylabel="loss: place in its round")
    for axis in (places.xaxis, places.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    places.set(xlim=(0, 1), ylim=(0, 1))
    entitle(places, f"All rounds, {len(found)} seed{'s' * (len(found) > 1)}")
    return encoded(figure)


def chosen_how_often(arm: Arm) -> bytes:
    """Draw how many examples were chosen how often, and what the never chosen ones scored."""
    with_scores = bool(probe.scored([arm]))
    figure, panels = canvas(1 + with_scores, width=7.0, height=2.9)
    counts = [probe.times_selected(run) for run in arm.runs]
    rounds = max(len(run.rounds) for run in arm.runs)
    times = np.arange(rounds + 1)
    shares = np.mean([np.bincount(c, minlength=rounds + 1) / len(c) for c in counts], axis=0)
    colours = [LEFT_OUT, *[SELECTED] * rounds]
    panels[0].bar(times, shares, color=colours, alpha=0.8, width=0.7)
    rate = float(
        np.mean([c.mean() / len(run.rounds) for c, run in zip(counts, arm.runs, strict=True)])
    )
    panels[0].plot(
        times, scipy.stats.binom.pmf(times, rounds, rate), "o:", color=INK, ms=3, lw=1,
        label="random choice",
    )  # fmt: skip
    panels[0].set(xlabel="rounds that selected an example", ylabel="share of the pool")
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    _percent(panels[0])
    panels[0].legend(frameon=False, fontsize=SMALL, labelcolor=INK)
    if with_scores:
        _scores_of_the_left_out(panels[1], arm.runs, counts)
    return encoded(figure)


def _scores_of_the_left_out(axes: Axes, runs: Sequence[Run], counts: Sequence[np.ndarray]) -> None:
    """Mean score by round of the examples never and at least once selected."""
    length = min(len(run.rounds) for run in runs)
    numbers = np.asarray([opened.number for opened in runs[0].rounds[:length]])
    for label, colour, never in (
        ("selected at least once", SELECTED, False),
        ("never selected", LEFT_OUT, True),
    ):
        values = [
            [probe.mean(run.rounds[i].scores[(c == 0) == never]) for i in range(length)]
            for run, c in zip(runs, counts, strict=True)
        ]
        if np.isfinite(values).any():
            _banded(axes, numbers, np.asarray(values), {"color": colour}, label)
    axes.set(xlabel="round", ylabel=probe.label_of(runs[0]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    explain(axes, 2)


def _percent(axes: Axes) -> None:
    """Label heights as per cent, with no more digits than they have."""
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")


def _faint(count: int) -> float:
    """Opacity at which `count` points on one panel do not merge into a blot."""
    return float(np.clip(60 / np.sqrt(max(count, 1)) / 6, 0.08, 0.8))
