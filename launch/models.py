"""Commands on a model folder: score, generate and evaluate rows of a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from research.core.generation import Sampling
from research.core.layout import Layout, Placement
from research.core.protocols import Estimator, Source, Tree, View
from research.curriculum.estimators.edco_release import EdcoRelease
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.prefix_entropy import PrefixEntropy
from research.curriculum.estimators.teacher_forced_entropy import TeacherForcedEntropy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.data.batches import single_batch
from research.data.examples import Example, RowError
from research.data.pool import Data, Pool, open_pool
from research.data.rows import render
from research.data.sources import Jsonl, Parquet
from research.data.tokenizer import Tokenizer, open_tokenizer
from research.evaluate.choose import evaluators_for
from research.evaluate.evaluate import evaluate as ask
from research.huggingface.open import open_model
from research.huggingface.stops import stop_ids
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.score.pool import batches_of
from research.score.rows import score_rows

ESTIMATORS: Mapping[str, Estimator] = {
    "loss": TeacherForcedLoss(),
    "entropy": TeacherForcedEntropy(),
    "prefix_entropy": PrefixEntropy(),
    "edco_release": EdcoRelease(),
    "length": Length(),
}


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model folder, ready to run."""

    model: Transformer
    params: Tree
    place: Placement
    tokenizer: Tokenizer | None
    stop_ids: tuple[int, ...]


def open_all(folder: str, adapter: str | None, dtype: str) -> Opened:
    """Open a model folder on the devices that are here, with its tokenizer where it has one."""
    place = Layout(axes=(("data", -1),)).on(jax.devices())
    model, params, path = open_model(
        folder, adapter=adapter, compute=Compute(dtype=dtype), place=place
    )
    tokenizer = None if path is None else open_tokenizer(str(path))
    stops = stop_ids(path, tokenizer.eos_id if tokenizer else None)
    return Opened(model, params, place, tokenizer, stops)


def open_rows(
    path: Path, opened: Opened, *, row_tokens: int | None, truncate: bool, rows: int
) -> Pool:
    """Read every row of a file; a row that cannot be used is an error that names it."""
    data = Data(
        sources=(source_of(path),),
        rows=rows,
        pack=False,
        row_tokens=row_tokens or opened.model.arch.max_positions,
        truncate=truncate,
        max_bad_fraction=0.0,
        distinct_ids=False,
        needs_no_text=opened.tokenizer is None,
    )
    return open_pool(data, opened.tokenizer, vocab_size=opened.model.arch.vocab_size)


def open_prompts(
    path: Path, opened: Opened, *, row_tokens: int | None, truncate: bool
) -> list[Example]:
    """Read every row of a file up to where its answer starts; answers need not be there.

    Raises:
      ValueError: a row cannot be used, or is too long and `truncate` was not asked for; then its
        end is kept, for that is what is continued.
    """
    rows, limit = source_of(path).open(), row_tokens or opened.model.arch.max_positions
    prompts = []
    for index in range(len(rows)):
        where = rows.where(index)
        try:
            shown = render(rows[index], opened.tokenizer, View(content="prompt"), where=where)
        except RowError as error:
            raise ValueError(f"{where}: {error}") from error
        if len(shown.tokens) > limit and not truncate:
            raise ValueError(
                f"{where}: the prompt has {len(shown.tokens)} tokens, the limit is {limit}; give "
                "--truncate to keep its end, or raise --row-tokens"
            )
        prompts.append(dataclasses.replace(shown, tokens=shown.tokens[-limit:]))
    return prompts


def source_of(path: Path) -> Source:
    """Choose the reader by the file's name."""
    return Parquet(path=str(path)) if path.suffix == ".parquet" else Jsonl(path=str(path))


def score(
    model: str,
    data: Path,
    out: Path,
    *,
    estimator: str,
    adapter: str | None,
    per_token: bool,
    truncate: bool,
    row_tokens: int | None,
    batch_rows: int,
    dtype: str,
    console: Console,
) -> int:
    """Write a scored row per example, in input order; give their number.

    Raises:
      ValueError: the estimator is unknown, or a row cannot be used.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"--estimator {estimator!r}: choose from {', '.join(ESTIMATORS)}")
    opened = open_all(model, adapter, dtype)
    pool = open_rows(data, opened, row_tokens=row_tokens, truncate=truncate, rows=batch_rows)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"scoring by {estimator}", total=len(pool))
        rows = score_rows(
            ESTIMATORS[estimator],
            opened.model,
            opened.params,
            pool,
            key=jax.random.key(0),
            place=opened.place,
            stop_ids=opened.stop_ids,
            rows_per_batch=batch_rows,
            per_token=per_token,
            watch=lambda done, _: progress.update(task, completed=done),
        )
        return write_rows(out, rows)


def generate(
    model: str,
    data: Path | None,
    prompt: str | None,
    *,
    out: Path | None,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    ignore_eos: bool,
    adapter: str | None,
    truncate: bool,
    row_tokens: int | None,
    batch_rows: int,
    dtype: str,
    console: Console,
) -> None:
    """Continue one prompt or every row of a file, and print or write what came.

    Raises:
      ValueError: there is neither a prompt nor a file, or both.
    """
    if (data is None) == (prompt is None):
        raise ValueError("give either DATA.jsonl or --prompt TEXT")
    sampling = Sampling(
        max_new_tokens=max_tokens, temperature=temperature or None, top_k=top_k, top_p=top_p
    )
    opened = open_all(model, adapter, dtype)
    if data is not None:
        prompts = open_prompts(data, opened, row_tokens=row_tokens, truncate=truncate)
    else:
        prompts = [plain_prompt(prompt or "", opened.tokenizer)]
    stops = () if ignore_eos else opened.stop_ids
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("generating", total=len(prompts))
        rows = continued(
            opened, prompts, sampling, stops, seed, batch_rows, lambda n: progress.advance(task, n)
        )
    if out is not None:
        console.print(f"written: {write_rows(out, rows)} rows to {out}")
        return
    for row in rows:
        console.print(row.get("text", row["output_ids"]), markup=False, highlight=False)


def plain_prompt(text: str, tokenizer: Tokenizer | None) -> Example:
    """Tokenise a prompt as plain text, with BOS where the tokenizer adds one.

    Raises:
      ValueError: the model folder has no tokenizer.
    """
    if tokenizer is None:
        raise ValueError(
            "--prompt needs a tokenizer, and the model folder has none; give input_ids"
        )
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    tokens = np.asarray([*bos, *tokenizer.encode(text)], np.int32)
    trained = np.zeros(len(tokens), bool)
    return Example(id="prompt", tokens=tokens, trained=trained, row={}, where="--prompt")


def continued(
    opened: Opened,
    prompts: list[Example],
    sampling: Sampling,
    stops: tuple[int, ...],
    seed: int,
    batch_rows: int,
    advance: Any,
) -> list[dict[str, Any]]:
    """Generate for every prompt; give a row each, in their order."""
    lengths = np.asarray([len(example.tokens) for example in prompts])
    shards = opened.place.num_row_shards
    size = -(-min(batch_rows, len(prompts)) // shards) * shards
    rows: list[dict[str, Any]] = [{}] * len(prompts)
    key = jax.random.key(seed)
    for ids, bucket in batches_of(lengths, np.arange(len(prompts)), size, None):
        batch = single_batch([prompts[x] for x in ids], ids.tolist(), size, bucket)
        key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.ids_BZ[:, 0])
        placed, key_B = jax.device_put((batch, key_B), opened.place.batch((batch, key_B)))
        made = opened.model.generate(opened.params, placed, sampling, stops, key_B)
        tokens_BN, lengths_B = np.asarray(made.tokens_BN), np.asarray(made.lengths_B)
        for b, x in enumerate(ids):
            output = tokens_BN[b, : lengths_B[b]].tolist()
            row: dict[str, Any] = {"id": prompts[x].id, "output_ids": output}
            if opened.tokenizer is not None:
                row["text"] = opened.tokenizer.decode(output)
            rows[x] = row
        advance(len(ids))
    return rows


def evaluate(
    model: str,
    data: Path,
    out: Path,
    *,
    adapter: str | None,
    slices: tuple[str, ...],
    truncate: bool,
    row_tokens: int | None,
    batch_rows: int,
    dtype: str,
    console: Console,
) -> None:
    """Write every metric that the rows allow, with counts and intervals, and a row per example."""
    opened = open_all(model, adapter, dtype)
    pool = open_rows(data, opened, row_tokens=row_tokens, truncate=truncate, rows=batch_rows)
    summary: dict[str, Any] = {"model": model, "adapter": adapter, "data": str(data)}
    items: dict[str, dict[str, Any]] = {}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for evaluator in evaluators_for(pool, slice_by=slices):
            task = progress.add_task(f"evaluating {evaluator.name}", total=len(pool))
            evaluation = ask(
                evaluator,
                opened.model,
                opened.params,
                opened.tokenizer,
                opened.place,
                lambda done, total, task=task: progress.update(task, completed=done, total=total),
                stop_ids=opened.stop_ids,
            )
            summary |= {evaluator.name: evaluation.summary()}
            for row in evaluation.rows:
                items.setdefault(str(row["id"]), {}).update(row)
            for name, estimate in evaluation.metrics.items():
                console.print(f"{evaluator.name}/{name}: {estimate}", highlight=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(summary, indent=2) + "\n")
    write_rows(out.with_suffix(".rows.jsonl"), items.values())


def write_rows(out: Path, rows: Iterable[Mapping[str, Any]] | Iterator[Mapping[str, Any]]) -> int:
    """Write JSON lines to a draft that takes the name `out` when it is whole; give their number."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft, count = out.with_name(f".{out.name}.draft"), 0
    with draft.open("w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    draft.replace(out)
    return count
