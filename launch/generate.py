"""`maktab generate`: continue a prompt, or every row of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from launch.opened import Found, Opened, find
from launch.progress import Advance, bar
from launch.rows import fit_prompt, open_prompts, own_id, require_out, write_rows
from research.core.generation import Sampling
from research.data.batches import single_batch
from research.data.examples import Example
from research.score.pool import batches_of


def generate(
    model: str,
    data: Path | None,
    prompt: str | None,
    *,
    out: Path | None,
    sampling: Sampling,
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
      FileNotFoundError, ValueError: there is neither a prompt nor a file, or both; or the model or
        a row cannot be used.
    """
    if (data is None) == (prompt is None):
        raise ValueError("give either a file of rows or --prompt TEXT, and not both")
    if out is not None:
        require_out(out, *([data] if data else []))
    found, limits = find(model, adapter, dtype), {"row_tokens": row_tokens, "truncate": truncate}
    if data is not None:
        prompts = open_prompts(data, found, **limits)
    else:
        prompts = [fit_prompt(plain_prompt(prompt or "", found), found, **limits)]
    longest = max(len(example.tokens) for example in prompts)
    context, limit = longest + sampling.max_new_tokens, found.model.arch.max_positions
    if context > limit:
        console.print(
            f"note: {longest} tokens of a prompt and {sampling.max_new_tokens} new ones are more "
            f"than the {limit} positions that the model is made for",
            highlight=False,
        )
    opened = found.load(console)
    stops = () if ignore_eos else opened.stop_ids
    with bar(console, "generating") as advance:
        rows = continued(opened, prompts, sampling, stops, seed, batch_rows, advance)
    if out is not None:
        count = write_rows(out, rows)
        console.print(f"written: {count} rows to {out}", markup=False, soft_wrap=True)
        return
    for row in rows:
        shown = row.get("text", row["output_ids"])
        console.print(shown, markup=False, highlight=False, soft_wrap=True)


def plain_prompt(text: str, found: Found) -> Example:
    """Tokenise a prompt as plain text, with BOS where the tokenizer adds one.

    Raises:
      ValueError: the model folder has no tokenizer.
    """
    tokenizer = found.tokenizer
    if tokenizer is None:
        raise ValueError(
            f"--prompt needs a tokenizer, and {found.path} has none; give a file of input_ids"
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
    advance: Advance,
) -> list[dict[str, Any]]:
    """Generate for every prompt; give a row each, in their order."""
    lengths = np.asarray([len(example.tokens) for example in prompts])
    size = opened.place.divisible(min(batch_rows, len(prompts)))
    rows: list[dict[str, Any]] = [{}] * len(prompts)
    key, done = jax.random.key(seed), 0
    for ids, bucket in batches_of(lengths, np.arange(len(prompts)), size, None):
        batch = single_batch([prompts[x] for x in ids], ids.tolist(), size, bucket)
        key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.ids_BZ[:, 0])
        placed, key_B = jax.device_put((batch, key_B), opened.place.batch((batch, key_B)))
        made = opened.model.generate(opened.params, placed, sampling, stops, key_B)
        tokens_BN, lengths_B = np.asarray(made.tokens_BN), np.asarray(made.lengths_B)
        for b, x in enumerate(ids):
            output = tokens_BN[b, : lengths_B[b]].tolist()
            row: dict[str, Any] = {"id": own_id(prompts[x]), "output_ids": output}
            if opened.tokenizer is not None:
                row["text"] = opened.tokenizer.decode(output)
            rows[x] = row
        done += len(ids)
        advance(done, len(prompts))
    return rows
