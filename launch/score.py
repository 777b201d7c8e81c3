"""`maktab score`: an estimator over the rows of a file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from launch.expressions import estimator_named
from launch.opened import find
from launch.progress import bar
from launch.rows import open_rows, own_id, require_out, write_rows
from research.core.protocols import Estimator, Guided
from research.data.pool import open_pool
from research.score.pool import Cost
from research.score.rows import score_rows


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
    part = asking_the_model(estimator, settings)
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
    costs: list[Cost] = []
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
            paid=costs.append,
        )
        named = zip(pool.examples, rows, strict=True)
        count = write_rows(out, ({**row, "id": own_id(example)} for example, row in named))
    console.print(f"scored {functools.reduce(Cost.__add__, costs)}", highlight=False)
    return count


def asking_the_model(text: str, settings: Sequence[str]) -> Estimator:
    """Give an estimator that scores an example by itself.

    Raises:
      ValueError: it is unknown, or compares examples with one another.
    """
    part = estimator_named(text, settings)
    if isinstance(part, Guided) or not hasattr(part, "score"):
        raise ValueError(
            f"--estimator {text!r} does not score an example by itself: it is a combination, "
            "compares rows, or reads them; `maktab select` takes it"
        )
    return part
