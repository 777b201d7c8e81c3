"""Rows of a file in, rows of a file out: every row is used, or an error names it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from launch.opened import Found
from research.checkpoint import write_atomically
from research.core.protocols import Source, View
from research.data.census import BadRowsError, Dropped, listed
from research.data.examples import Example, RowError
from research.data.pool import Data, Pool
from research.data.rows import render
from research.data.sources import Jsonl, Parquet
from research.report.lines import encode


def source_of(path: Path) -> Source:
    """Choose the reader by the file's name."""
    return Parquet(path=str(path)) if path.suffix == ".parquet" else Jsonl(path=str(path))


def open_rows(
    path: Path,
    found: Found,
    *,
    row_tokens: int | None,
    truncate: bool,
    rows: int,
    read: Callable[..., Pool],
) -> Pool:
    """Read every row of a file as training would feed it, in the file's order.

    Args:
      rows: that are run at once.
      read: `open_pool`, or what keeps the pools that it has opened.

    Raises:
      FileNotFoundError, ValueError: the file has no rows, or rows that cannot be used; named by
        file, line and id.
    """
    data = data_of(source_of(path), found, row_tokens=row_tokens, truncate=truncate, rows=rows)
    try:
        return read(data, found.tokenizer, vocab_size=found.model.arch.vocab_size)
    except BadRowsError as error:
        raise refusal(path, error.dropped) from error


def data_of(
    source: Source, found: Found, *, row_tokens: int | None, truncate: bool, rows: int
) -> Data:
    """Say how rows are read that are only looked at: all of them, one example a row."""
    return Data(
        sources=(source,),
        rows=rows,
        pack=False,
        row_tokens=longest_row(found, row_tokens),
        truncate=truncate,
        max_bad_fraction=0.0,
        distinct_ids=False,
        needs_no_text=found.tokenizer is None,
    )


def longest_row(found: Found, row_tokens: int | None) -> int:
    """Give the most tokens of a row: as asked for, else as many as the model has positions.

    Raises:
      ValueError: more are asked for than a table of positions holds.
    """
    arch = found.model.arch
    if row_tokens and arch.longest_text and row_tokens > arch.longest_text:
        raise ValueError(
            f"row_tokens={row_tokens}, but the model has a table of {arch.longest_text} positions; "
            "ask for at most so many"
        )
    return row_tokens or arch.max_positions


def open_prompts(
    path: Path, found: Found, *, row_tokens: int | None, truncate: bool
) -> list[Example]:
    """Read every row of a file up to where its answer starts; answers need not be there.

    Raises:
      FileNotFoundError, ValueError: as `open_rows`.
    """
    rows = source_of(path).open()
    if not len(rows):
        raise ValueError(f"{path} has no rows; expected a JSON object a line, or Parquet rows")
    prompts: list[Example] = []
    bad: list[Dropped] = []
    for index in range(len(rows)):
        where, id = rows.where(index), ""
        try:
            shown = render(rows[index], found.tokenizer, View(content="prompt"), where=where)
            id = shown.id
            prompts.append(fit_prompt(shown, found, row_tokens=row_tokens, truncate=truncate))
        except RowError as error:
            bad.append(Dropped(where=where, id=id, reason=error.reason, detail=error.detail))
    if bad:
        raise refusal(path, bad)
    return prompts


def fit_prompt(prompt: Example, found: Found, *, row_tokens: int | None, truncate: bool) -> Example:
    """Give a prompt that the model can be fed; cut, it keeps its end, which is what is continued.

    Raises:
      RowError: it is empty, too long, begins with BOS twice, or holds a token the model lacks.
    """
    tokens, vocab_size = prompt.tokens, found.model.arch.vocab_size
    limit = longest_row(found, row_tokens)
    bos = None if found.tokenizer is None else found.tokenizer.bos_id
    if not len(tokens):
        raise RowError("empty", "the prompt has no token; there is nothing to continue")
    if tokens.max() >= vocab_size:
        raise RowError("unknown token", f"id {tokens.max()}; the model has {vocab_size} tokens")
    if bos is not None and tokens[:2].tolist() == [bos, bos]:
        raise RowError("double BOS", "the text brings its own BOS; leave it out of the prompt")
    if len(tokens) > limit and not truncate:
        raise RowError(
            "too long",
            f"{len(tokens)} tokens, row_tokens={limit}; raise it, or keep the end by --truncate",
        )
    return dataclasses.replace(prompt, tokens=tokens[-limit:], trained=prompt.trained[-limit:])


def own_id(example: Example) -> Any:
    """Give a row's id as the row itself has it (a number stays one), else the example's."""
    own = example.row.get("id")
    return own if isinstance(own, (str, int, float)) else example.id


def refusal(path: Path, bad: list[Dropped]) -> ValueError:
    """Give the error that names bad rows; it is raised before anything is written."""
    remedy = "mend or remove them"
    if any(row.reason == "too long" for row in bad):
        remedy += "; for rows that are too long give --truncate, or raise --row-tokens"
    return ValueError(
        f"{len(bad)} rows of {path} cannot be used, so nothing was written; {remedy}:{listed(bad)}"
    )


def require_out(out: Path, *inputs: Path) -> None:
    """Refuse a place that cannot be written to, before any work is done.

    Raises:
      ValueError: it is a folder, lies below a file, or is one of the files that are read.
    """
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if out.is_dir() or not above.is_dir():
        raise ValueError(f"--out {out} cannot be written: give the name of a file in a folder")
    if any(out.exists() and given.exists() and out.samefile(given) for given in inputs):
        raise ValueError(f"--out {out} is the file that is read; give another name")


def write_rows(out: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines to a draft that takes the name `out` when it is whole; give their number."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft, count = out.with_name(f".{out.name}.draft"), 0
    try:
        with draft.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(encode(row))
                count += 1
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return count


def write_json(out: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
