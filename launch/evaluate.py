"""`maktab evaluate`: every metric that the rows of a file allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from launch.opened import find
from launch.progress import bar
from launch.rows import open_rows, own_id, require_out, write_json, write_rows
from research.evaluate.choose import evaluators_for
from research.evaluate.evaluate import evaluate as ask
from research.evaluate.evaluate import opened as open_items
from research.evaluate.evaluate import slices_of
from research.evaluate.generation import ExactMatch


def evaluate(
    model: str,
    data: Path,
    out: Path,
    *,
    adapter: str | None,
    slices: tuple[str, ...],
    pattern: str,
    max_tokens: int,
    truncate: bool,
    row_tokens: int | None,
    batch_rows: int,
    dtype: str,
    console: Console,
) -> Path:
    """Write metrics with counts and intervals to `out`, and a row per example beside it.

    Returns:
      The file of rows.

    Raises:
      FileNotFoundError, ValueError: the model, a row or a slice cannot be used.
    """
    beside = out.with_name(f"{out.stem}.rows.jsonl")
    for file in (out, beside):
        require_out(file, data)
    found = find(model, adapter, dtype)
    with console.status(f"reading {data}"):
        pool = open_rows(
            data,
            found,
            row_tokens=row_tokens,
            truncate=truncate,
            rows=batch_rows,
            read=lambda data, tokenizer, vocab_size: open_items(data, tokenizer, vocab_size),
        )
    slices_of(pool, slices)
    asked = evaluators_for(pool, max_new_tokens=max_tokens, pattern=pattern, slice_by=slices)
    if pattern and not any(isinstance(evaluator, ExactMatch) for evaluator in asked):
        raise ValueError(
            f"--pattern {pattern!r} has no effect: {data} has rows other than prompt+completion"
        )
    opened = found.load(console)
    summary: dict[str, Any] = {"metrics": {}, "slices": {}}
    rows: list[dict[str, Any]] = [{} for _ in pool.examples]
    for evaluator in asked:
        with bar(console, f"evaluating {evaluator.name}") as advance:
            seen = ask(
                evaluator,
                opened.model,
                opened.params,
                opened.tokenizer,
                opened.place,
                advance,
                stop_ids=opened.stop_ids,
            )
        described = seen.summary()
        summary["metrics"] |= described["metrics"]
        for name, metrics in described["slices"].items():
            summary["slices"].setdefault(name, {}).update(metrics)
        for row, item, example in zip(rows, seen.rows, pool.examples, strict=True):
            row |= {**item, "id": own_id(example)}
        for name, estimate in seen.metrics.items():
            console.print(f"{name}: {estimate}", highlight=False, markup=False)
    named = {"model": model, "adapter": adapter, "data": str(data), "examples": len(pool)}
    write_rows(beside, rows)
    write_json(out, named | summary)
    return beside
