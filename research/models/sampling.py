"""The next token of each row from its logits: greedy, or drawn with a key of the row's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.core.generation import Sampling


def choose(
    logits_BV: Float[Array, "B V"], sampling: Sampling, key_B: Array | None, step: jax.Array
) -> Int[Array, " B"]:
    """Choose a token a row; ties go to the lowest id.

    Law: what a row draws depends on its logits, its key and the step alone.
    """
    if sampling.temperature is None:
        return first_highest(logits_BV)
    kept_BV = filtered(logits_BV / sampling.temperature, sampling)
    key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, step)
    return jax.vmap(jax.random.categorical)(key_B, kept_BV).astype(jnp.int32)


def first_highest(logits_BV: Float[Array, "B V"]) -> Int[Array, " B"]:
    """Give the lowest id of the highest logit: `argmax` as two plain reductions.

    XLA's CPU back-end does not vectorise a reduction over (value, index) pairs.
    """
    num_ids = logits_BV.shape[-1]
    is_highest_BV = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    id_BV = jnp.where(is_highest_BV, jnp.arange(num_ids, dtype=jnp.int32), num_ids - 1)
    return jnp.min(id_BV, axis=-1)


def filtered(logits_BV: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Set to -inf what top-k and then top-p leave out; equal logits stay or go together."""
    if sampling.top_k is not None:
        top_k = min(sampling.top_k, logits_BV.shape[-1])
        least_B = jax.lax.top_k(logits_BV, top_k)[0][:, -1]
        logits_BV = jnp.where(logits_BV >= least_B[:, None], logits_BV, -jnp.inf)
    if sampling.top_p is not None:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        p_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
        needed_BV = before_BV < sampling.top_p
        least_B = jnp.min(jnp.where(needed_BV, sorted_BV, jnp.inf), axis=-1)
        logits_BV = jnp.where(logits_BV >= least_B[:, None], logits_BV, -jnp.inf)
    return logits_BV
