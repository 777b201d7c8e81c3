"""What arms are: the fields in which their experiments differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research.report.document import MISSING, Table
from research.report.runs import Arm

SAME = ("name", "seed")  # of every run, and told by the row
MOST_COLUMNS = 8


def table(arms: Sequence[Arm]) -> Table | None:
    """Tabulate the fields in which arms differ; None where there are none."""
    shown = [arm.runs[0].experiment for arm in arms]
    known = [{k: v for k, v in experiment.items() if k not in SAME} for experiment in shown]
    paths = differing(known) if len(arms) > 1 else []
    if not paths:
        return None
    columns = [[value_at(each, path) for each in known] for path in paths[:MOST_COLUMNS]]
    texts = [[said(value, column) for value in column] for column in columns]
    rest = f" {len(paths) - MOST_COLUMNS} more fields differ." if len(paths) > MOST_COLUMNS else ""
    return Table(
        title="What the arms are: the fields in which they differ." + rest,
        header=("arm", *(".".join(path) for path in paths[:MOST_COLUMNS])),
        rows=tuple((arm.name, *(column[row] for column in texts)) for row, arm in enumerate(arms)),
    )


def differing(values: Sequence[Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Give the deepest paths at which described values differ; parts of other types are whole."""
    if all(value == values[0] for value in values):
        return []
    types = [value.get("type") for value in values if isinstance(value, Mapping)]
    if len(types) == len(values) and len(set(types)) == 1:
        keys = dict.fromkeys(key for value in values for key in value)
        below = [differing([v.get(key) for v in values], (*path, key)) for key in keys]
        return [found for each in below for found in each]
    if all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        below = [
            differing([value[index] for value in values], (*path, str(index)))
            for index in range(len(values[0]))
        ]
        return [found for each in below for found in each]
    return [path]


def value_at(value: Any, path: Sequence[str]) -> Any:
    """Follow a path through a described value."""
    for step in path:
        value = value[int(step)] if isinstance(value, list) else value.get(step)
    return value


def said(value: Any, others: Sequence[Any]) -> str:
    """Say a described value: of a part its type, and the fields that tell it from its like."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if not isinstance(value, Mapping):
        return MISSING if value is None else str(value)
    alike = [v for v in others if isinstance(v, Mapping) and v.get("type") == value.get("type")]
    own = [f"{'.'.join(path)} {said(value_at(value, path), ())}" for path in differing(alike)]
    return ", ".join([str(value.get("type", "")).rpartition(".")[2], *own])
