"""How every plot of a report looks: its canvas, its colours, its bands, and its bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import ArrayLike

from research.report.runs import Arm, Run

# Okabe and Ito's palette, which colour-blind readers can tell apart, in an order whose
# neighbours also differ in lightness; line styles repeat the distinction in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
CONTROL = {"color": "#555555", "linestyle": "--"}
INK = "#333333"
DOTS_PER_INCH = 160
FONT = "STIXGeneral"  # comes with matplotlib, and looks like the page
SIZE, SMALL = 10.5, 9.5  # points


def look_of(arms: Sequence[Arm], control: str) -> dict[str, dict]:
    """Give every arm its colour and line style, the same in all figures; the control is grey."""
    others = [arm.name for arm in arms if arm.name != control]
    return {control: CONTROL} | {
        name: {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": STYLES[index // len(COLOURS) % len(STYLES)],
            # A point has no line style: hollow ones are of the second run through the colours.
            "markerfacecolor": "white" if index >= len(COLOURS) else COLOURS[index],
        }
        for index, name in enumerate(others)
    }


def over_runs(runs: Sequence[Run], series: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Give (steps, values [runs, steps]) over all recorded steps; NaN where a run has none."""
    found = [series(run) for run in runs]
    steps = np.unique(np.concatenate([x for x, _ in found])) if found else np.zeros(0)
    values = np.full((len(found), len(steps)), np.nan)
    for row, (x, y) in zip(values, found, strict=True):
        row[np.searchsorted(steps, x)] = y
    return steps, values


def canvas(count: int, *, width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels in `rows` rows, in inches."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.ravel(figure.subplots(rows, count // rows))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.tick_params(colors=INK, labelsize=SMALL)
        axes.xaxis.label.set(color=INK, size=SIZE)
        axes.yaxis.label.set(color=INK, size=SIZE)
        axes.grid(True, color="#e6e6e6", lw=0.6)
        axes.set_axisbelow(True)
    return figure, list(panels)


def shade(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, look: dict) -> None:
    """Shade from the lowest to the highest."""
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)


def explain(axes: Axes, entries: int) -> None:
    """Add a legend where there is more than one entry."""
    if entries > 1:
        axes.legend(frameon=False, fontsize=SMALL, labelcolor=INK)


def explain_below(figure: Figure, *panels: Axes) -> None:
    """Add a legend of all entries below all panels, clear of curves that go everywhere."""
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if len(entries) > 1:
        figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(entries) // 3))
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False,
            fontsize=SMALL, labelcolor=INK,
        )  # fmt: skip


def entitle(axes: Axes, text: str) -> None:
    """Put a title over the left of a panel."""
    axes.set_title(text, loc="left", fontsize=SMALL, color=INK)


def encoded(figure: Figure) -> bytes:
    """Give a figure as the bytes of a PNG; the same figure, the same bytes."""
    for text in figure.findobj(Text):
        text.set_fontfamily(FONT)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
