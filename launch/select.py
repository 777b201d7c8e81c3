"""`maktab select`: the part of a file that a policy chooses by an estimator's scores."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from launch.expressions import estimator_named, policy_named
from launch.opened import Found, find
from launch.progress import Advance, bar
from launch.rows import data_of, require_out, source_of
from launch.scores import ScoresFile
from research.core.parts import describe
from research.core.protocols import Delegating
from research.curriculum.budget import EqualSteps
from research.curriculum.curriculum import Curriculum
from research.data.stream import shards, survey
from research.huggingface.pretrained import fingerprint
from research.report.lines import encode
from research.score.pool import Cost
from research.score.stream import score_shards

SHARD_ROWS = 4_096  # as many as `maktab score` runs at once, so that both give the same bits
LINES = 20  # in a log, of progress
NAMED = 8  # bad rows in a message
DECIDING = ("row_tokens", "truncate", "batch_rows", "shard_rows", "seed")  # of scores, in Reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selected:
    """Rows that were written, rows of the file, and those of them that could not be used."""

    rows: int
    of: int
    bad: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How the file is read and scored.

    Attributes:
      rows: of the file.
      max_bad_fraction: share of them that may be left out.
    """

    path: Path
    rows: int
    row_tokens: int | None
    truncate: bool
    batch_rows: int
    shard_rows: int
    max_bad_fraction: float
    seed: int


def select(
    model: str,
    data: Path,
    out: Path,
    *,
    estimator: str,
    settings: Sequence[str],
    policy: str,
    adapter: str | None,
    truncate: bool,
    row_tokens: int | None,
    batch_rows: int,
    max_bad_fraction: float,
    seed: int,
    dtype: str,
    console: Console,
    shard_rows: int = SHARD_ROWS,
) -> Selected:
    """Score a file shard by shard, choose from the scores alone, and copy the chosen rows.

    Rows are written as they are and in the file's order. The scores stay beside them: the same
    command goes on where it was killed, and another policy needs no scoring. What is held at once
    is two shards of rows, and about 150 bytes for each row of the file when it is chosen from.

    Raises:
      FileNotFoundError, ValueError: an expression, the model or a row cannot be used.
      ScoringError: a score is not finite.
    """
    curriculum = curriculum_of(estimator, settings, policy)
    beside = out.with_name(f"{out.name}.scores.jsonl")
    for file in (out, beside):
        require_out(file, data)
    found = find(model, adapter, dtype)
    with console.status(f"counting the rows of {data}"):
        rows, digest = survey(data)
    if not rows:
        raise ValueError(f"{data} has no rows; expected a JSON object a line, or Parquet rows")
    reading = Reading(
        path=data,
        rows=rows,
        row_tokens=row_tokens,
        truncate=truncate,
        batch_rows=batch_rows,
        shard_rows=shard_rows,
        max_bad_fraction=max_bad_fraction,
        seed=seed,
    )
    asked = {
        "data": digest,
        "model": fingerprint(found.path),
        "adapter": adapter and weights_digest(Path(adapter)),
        "dtype": dtype,
        "measured": describe(curriculum.measured),
        "other_models": [
            term.model.resolve().fingerprint
            for term in curriculum.measured
            if isinstance(term, Delegating)
        ],
        **{name: getattr(reading, name) for name in DECIDING},
    }
    scores = ScoresFile(beside, asked, shard_rows)
    score_file(scores, curriculum, found, reading, console)
    signal_YX = scores.signals(len(curriculum.measured), rows)
    bad_X = np.isnan(signal_YX).any(axis=0)
    chosen = np.flatnonzero(~bad_X)[choose(curriculum, signal_YX[:, ~bad_X], seed)]
    kept_X = np.zeros(rows, bool)
    kept_X[chosen] = True
    copy_rows(data, out, kept_X)
    return Selected(rows=len(chosen), of=rows, bad=int(bad_X.sum()))


def weights_digest(adapter: Path) -> str:
    """Hash the files that an adapter's folder declares itself and its weights in."""
    content = hashlib.sha256()
    for file in sorted([*adapter.glob("*.safetensors"), *adapter.glob("*.json")]):
        content.update(file.name.encode() + file.read_bytes())
    return f"sha256:{content.hexdigest()}"


def curriculum_of(estimator: str, settings: Sequence[str], policy: str) -> Curriculum:
    """Give the curriculum of one round that scores everything and then chooses.

    Raises:
      ValueError: an expression cannot be read, or the two do not go together.
    """
    chosen_by = policy_named(policy)
    if chosen_by.whole_pool:
        raise ValueError(
            f"--policy {policy!r} selects every row and decides only their order; the rows are "
            "written in the file's order, so choose one that selects, such as TopFraction"
        )
    curriculum = Curriculum(
        estimator=estimator_named(estimator, settings),
        policy=chosen_by,
        rounds=1,
        reset_optimizer_each_round=False,
        allow_repeats=True,
        budget=EqualSteps(),
        rescore_fraction=0.0,
    )
    if curriculum.recorders:
        raise ValueError(
            f"--estimator {estimator!r} reads what training reported of each example, and nothing "
            "is trained here; choose one that asks the model or the row"
        )
    return curriculum


def score_file(
    scores: ScoresFile, curriculum: Curriculum, found: Found, reading: Reading, console: Console
) -> None:
    """Bring a file of scores to its end, from wherever it was left.

    Raises:
      ValueError: more rows cannot be used than may be left out.
    """
    done = scores.begin(reading.rows)
    bad = [line["bad"] for line in scores.lines() if "bad" in line]
    _refuse(bad, reading)
    if done == reading.rows:
        console.print(f"scored before: {scores.path}", highlight=False)
        return
    if done:
        console.print(f"going on at row {done:,} of {reading.rows:,}", highlight=False)
    costs: list[Cost] = []
    with bar(console, "scoring", before=done) as advance:
        for lines in _scored(curriculum, found, reading, done, len(bad), advance, costs, console):
            bad += [line["bad"] for line in lines if "bad" in line]
            _refuse(bad, reading)
            scores.extend(lines)
            done += len(lines)
            due = done * LINES // reading.rows > (done - len(lines)) * LINES // reading.rows
            if due and not console.is_terminal:
                console.print(f"scored {done:,} of {reading.rows:,} rows", highlight=False)
    if costs:
        console.print(f"scored {functools.reduce(Cost.__add__, costs)}", highlight=False)


def _scored(
    curriculum: Curriculum,
    found: Found,
    reading: Reading,
    done: int,
    bad: int,
    advance: Advance,
    costs: list[Cost],
    console: Console,
) -> Iterator[list[dict[str, Any]]]:
    """Read the weights, and score what comes after the first `done` rows, a shard at a time.

    Args:
      costs: gets what each shard took.
    """
    opened = found.load(console)
    return score_shards(
        curriculum,
        opened.model,
        opened.params,
        opened.tokenizer,
        data_of(
            source_of(reading.path),
            found,
            row_tokens=reading.row_tokens,
            truncate=reading.truncate,
            rows=reading.batch_rows,
        ),
        shards(reading.path, reading.shard_rows, done),
        usable_before=done - bad,
        key=jax.random.key(reading.seed),
        place=opened.place,
        stop_ids=opened.stop_ids,
        rows_per_batch=reading.batch_rows,
        watch=lambda more: advance(done + more, reading.rows),
        paid=costs.append,
    )


def _refuse(bad: Sequence[str], reading: Reading) -> None:
    if len(bad) <= reading.max_bad_fraction * reading.rows:
        return
    named = "".join(f"\n  {line}" for line in bad[:NAMED])
    more = f"\n  and {len(bad) - NAMED} more so far" if len(bad) > NAMED else ""
    remedy = "mend them, or leave some out with --max-bad-fraction 0.01"
    if any(": too long: " in line for line in bad):
        remedy += "; for rows that are too long give --truncate, or raise --row-tokens"
    raise ValueError(
        f"{len(bad)} rows of {reading.path} cannot be used, and of {reading.rows:,} at most "
        f"{reading.max_bad_fraction:.2%} may be left out; {remedy}:{named}{more}"
    )


def choose(curriculum: Curriculum, signal_YX: np.ndarray, seed: int) -> np.ndarray:
    """Give the places that the policy selects, ascending."""
    num_rows = signal_YX.shape[1]
    if not num_rows:
        raise ValueError("no row can be used, so none can be chosen")
    state = curriculum.init(num_rows)
    state = curriculum.rescore(state, np.arange(num_rows), signal_YX, 0)
    return curriculum.open_round(state, 0, seed).selection()


def copy_rows(data: Path, out: Path, kept_X: np.ndarray) -> None:
    """Write some rows of a file, as they are, to a draft that takes the name `out` when whole."""
    draft = out.with_name(f".{out.name}.draft")
    try:
        with _writing(draft, zipped=out.suffix == ".gz") as file:
            for shard in shards(data, SHARD_ROWS):
                kept = kept_X[shard.first : shard.first + len(shard.items)]
                for _, _, row in itertools.compress(shard.items, kept.tolist()):
                    file.write(row + b"\n" if isinstance(row, bytes) else encode(row).encode())
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path, *, zipped: bool) -> Iterator[Any]:
    with path.open("wb") as file:
        if not zipped:
            yield file
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            yield packed
