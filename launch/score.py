"""`maktab score`: an estimator over the rows of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from rich.console import Console

from launch.opened import find
from launch.progress import bar
from launch.rows import open_rows, own_id, require_out, write_rows
from research.core.parts import parse_setting, vary
from research.core.protocols import Estimator
from research.curriculum.estimators.edco_release import EdcoRelease
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.prefix_entropy import PrefixEntropy
from research.curriculum.estimators.teacher_forced_entropy import TeacherForcedEntropy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.data.pool import open_pool
from research.score.rows import score_rows

ESTIMATORS: Mapping[str, Estimator] = {
    "loss": TeacherForcedLoss(),
    "entropy": TeacherForcedEntropy(),
    "prefix_entropy": PrefixEntropy(),
    "edco_release": EdcoRelease(),
    "length": Length(),
}


def score(
    model: str,
    data: Path,
    out: Path,
    *,
    estimator: str,
    settings: Sequence[str],
    adapter: str | None,
    per_token: bool,
    truncate: bool,
    row_tokens: int | None,
    batch_rows: int,
    seed: int,
    dtype: str,
    console: Console,
) -> int:
    """Write a scored row per example, in input order; give their number.

    Raises:
      FileNotFoundError, ValueError: the estimator, a setting, the model or a row cannot be used.
    """
    part = estimator_named(estimator, settings)
    require_out(out, data)
    found = find(model, adapter, dtype)
    with console.status(f"reading {data}"):
        pool = open_rows(
            data,
            found,
            row_tokens=row_tokens,
            truncate=truncate,
            rows=batch_rows,
            read=open_pool,
        )
    opened = found.load(console)
    with bar(console, f"scoring by {estimator}") as advance:
        rows = score_rows(
            part,
            opened.model,
            opened.params,
            pool,
            key=jax.random.key(seed),
            place=opened.place,
            stop_ids=opened.stop_ids,
            rows_per_batch=batch_rows,
            per_token=per_token,
            watch=advance,
        )
        named = zip(pool.examples, rows, strict=True)
        return write_rows(out, ({**row, "id": own_id(example)} for example, row in named))


def estimator_named(name: str, settings: Sequence[str]) -> Estimator:
    """Give an estimator with some of its fields changed.

    Raises:
      ValueError: the name or a field is unknown.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"--estimator {name!r} is unknown; choose from {', '.join(ESTIMATORS)}")
    part = ESTIMATORS[name]
    return vary(part, dict(parse_setting(part, setting) for setting in settings))
