"""Generation: one jitted program that reads the prompts once, then adds a token a step."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from research.core.generation import AT_ONCE, Decoding, Generated, Sampling, Statistic
from research.core.protocols import Model
from research.core.records import Batch
from research.models.continuous import continuous
from research.models.decoder import Decoder


@functools.partial(jax.jit, static_argnames=("model", "stop_ids", "decoding", "shards"))
def generate(
    model: Model,
    params: Any,
    prompts: Batch,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    key_B: Array | None = None,
    *,
    statistic: Statistic | None = None,
    decoding: Decoding = AT_ONCE,
    shards: int = 1,
) -> Generated:
    """Continue one prompt a row until a stop token, or for `max_new_tokens`.

    Prompts are fed once; only the logits of each row's last token are made. Then a loop feeds one
    token a row and step, and ends early when no row goes on. Prompts may be padded on either side:
    padding has segment 0, and positions count a row's own tokens. A row that is all padding is
    finished before it starts, one whose id is -1 when its prompt has been read. A row for which the
    model has no more positions ends there.

    Args:
      stop_ids: tokens that end a row; empty: every row gets `max_new_tokens`.
      key_B: a key a row; step n draws from `fold_in(key_B, n)`. Greedy decoding needs none.
      statistic: what to keep of each prediction's raw logits (temperature 1, nothing left out).
      decoding: rows in flight, and what their prompts share.
      shards: how many devices the rows are split over; each keeps its own.

    Raises:
      ValueError: the prompts are packed, sampling was given no keys, or rows do not divide.

    Law: a row's tokens and statistic depend neither on its batch-mates nor on the padding, nor on
    `decoding`.
    """
    if prompts.ids_BZ.shape[1] != 1:
        raise ValueError(
            f"prompts hold up to {prompts.ids_BZ.shape[1]} examples a row; generation continues "
            "one a row: build them with single_batch"
        )
    if sampling.temperature is not None and key_B is None:
        raise ValueError("sampling at a temperature needs key_B, a key for every row")
    params, shared = model.unstack(params), None
    if decoding.shared_tokens:
        shared = _read_shared(model, params, prompts, decoding.shared_tokens)
    decoder = Decoder(model, params, sampling, stop_ids, statistic, shared)
    if decoding.rows is not None and decoding.rows < len(prompts.tokens_BT):
        return continuous(decoder, prompts, key_B, decoding, shards)
    return jax.lax.while_loop(
        lambda progress: jnp.any(progress.open_B),
        lambda progress: decoder.advance(progress, key_B),
        decoder.read(prompts, key_B),
    ).seen


def _read_shared(model: Model, params: Any, prompts: Batch, count: int) -> Any:
    """Feed what all prompts begin with, as one row: the longest prompt's, for some may be empty."""
    row = jnp.argmax(jnp.sum(prompts.segments_BT > 0, axis=1))
    first = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1)[:, :count], prompts)
    return model.prefill(params, first, count)[1]
