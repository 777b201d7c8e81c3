"""The map of the orderings: `python experiments/ordering_map.py runs/ordering`.

A cell is a task from a start (how much the model knew before). Its panel shows, for each order,
the gain over random order in the task's metric (lower losses are gains) with its 95 % interval over
seeds and items; p-values are corrected over all cells. Writes `ordering_map.png` beside the runs,
prints a table.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from research.evaluate.statistics import holm
from research.report.comparison import Standing, compare
from research.report.drawing import SMALL, canvas, encoded, entitle
from research.report.figures import forest, label_of
from research.report.runs import Arm, read_arms

CONTROL = "random"
PICTURE = "ordering_map.png"
STARTS = ("early", "middle", "late")

Cell = tuple[str, str]  # task and start


def cells_of(arms: Sequence[Arm]) -> dict[Cell, list[Arm]]:
    """Group the arms of `ordering.py` by their names: "task, start: order".

    Raises:
      ValueError: an arm has another kind of name, or a cell has no random order.
    """
    cells: dict[Cell, list[Arm]] = {}
    for arm in arms:
        where, colon, _ = arm.name.partition(": ")
        task, comma, start = where.rpartition(", ")
        if not (colon and comma):
            raise ValueError(
                f"arm {arm.name!r} is no 'task, start: order'; give the folder of a sweep of "
                "experiments/ordering.py"
            )
        cells.setdefault((task, start), []).append(arm)
    for (task, start), there in cells.items():
        if f"{task}, {start}: {CONTROL}" not in {arm.name for arm in there}:
            raise ValueError(f"{task!r} from {start!r} has no arm {CONTROL!r} to compare with")
    return cells


def standings_of(cells: dict[Cell, list[Arm]]) -> dict[Cell, list[Standing]]:
    """Compare each order with random order in its cell; p-values are corrected over all cells."""
    found = {
        cell: compare(arms, f"{cell[0]}, {cell[1]}: {CONTROL}") for cell, arms in cells.items()
    }
    tested = [s for there in found.values() for s in there if s.difference is not None]
    corrected = dict(
        zip(map(id, tested), holm([s.difference.p for s in tested if s.difference]), strict=True)
    )
    return {
        cell: [dataclasses.replace(s, corrected=corrected.get(id(s))) for s in there]
        for cell, there in found.items()
    }


def order_of(standing: Standing) -> str:
    """Give the order that an arm's name ends with."""
    return standing.arm.partition(": ")[2]


def winner(standings: Sequence[Standing]) -> str:
    """Name the order with the highest metric, and whether chance alone could have put it there."""
    best = max(standings, key=lambda s: s.gain[0])
    if best.difference is None:
        beaten = [s for s in standings if s.verdict == "worse"]
        sure = len(beaten) == len(standings) - 1
    else:
        sure = best.verdict == "better"
    return order_of(best) if sure else f"{order_of(best)}?"


def draw(found: Mapping[Cell, Sequence[Standing]]) -> bytes:
    """Draw a panel a cell: tasks from top to bottom, starts from left to right."""
    tasks = list(dict.fromkeys(task for task, _ in found))
    starts = sorted({start for _, start in found}, key=[*STARTS, *(s for _, s in found)].index)
    size = {"width": 2.4 + 1.9 * len(starts), "height": 0.5 + 1.6 * len(tasks)}
    figure, panels = canvas(len(tasks) * len(starts), rows=len(tasks), **size)
    places = [(task, start) for task in tasks for start in starts]
    labelled = [next((task, s) for s in starts if (task, s) in found) for task in tasks]
    for axes, cell in zip(panels, places, strict=True):
        if cell in found:
            panel(axes, cell, found[cell], labelled=cell in labelled)
        else:
            axes.set_axis_off()
    return encoded(figure)


def panel(axes: Axes, cell: Cell, standings: Sequence[Standing], labelled: bool) -> None:
    """Draw the differences of one cell, and name its winner."""
    shown = [s for s in standings if s.difference is not None]
    forest(axes, shown)
    axes.set_yticks(range(len(shown)), [order_of(s) for s in shown] if labelled else [])
    axes.set_xlabel(f"{label_of(standings[0].metric)},\nbetter than random", size=SMALL)
    entitle(axes, f"{cell[0]}, {cell[1]}: {winner(standings)}")


def table(found: dict[Cell, list[Standing]]) -> str:
    """Write the map as lines of Markdown; a question mark: it could be chance."""
    lines = [
        "| task | start | order | value | better than random | corrected p | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for (task, start), standings in found.items():
        for s in standings:
            better = "" if s.difference is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*s.gain)
            p = "" if s.corrected is None else f"{s.corrected:.2g}"
            lines.append(
                f"| {task} | {start} | {order_of(s)} | {s.estimate.value:.3f} | {better} | {p} "
                f"| {s.seeds} |"
            )
    winners = (f"{task}, {start}: {winner(there)}" for (task, start), there in found.items())
    return "\n".join([*lines, "", "Wins: " + "; ".join(winners)])


def main(folder: Path) -> None:
    """Write the map beside the runs, and print its table."""
    found = standings_of(cells_of(read_arms([folder])))
    found = {cell: there for cell, there in found.items() if there}
    (folder / PICTURE).write_bytes(draw(found))
    print(table(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
