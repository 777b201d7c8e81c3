"""Attention of a few new tokens over cached keys and values."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from research.core.precision import exact
from research.models.attention.visibility import Visibility, masked_softmax


def attend_cached(
    query_BTKGH: Float[Array, "B T K G H"],
    key_BKHS: Float[Array, "B K H S"],
    value_BKSH: Float[Array, "B K S H"],
    seen: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
    sinks_KG: Float[Array, "K G"] | None = None,
) -> Float[Array, "B T K G H"]:
    """Attend as `Reference` does, with keys and values stored as the two products read them.

    Each product is one batched matmul of the T G query rows that share a key head: no transposed
    copy of the cache is made.
    """
    num_rows, num_tokens, num_kv, num_groups, width = query_BTKGH.shape
    query_BKTGH = query_BTKGH.transpose(0, 2, 1, 3, 4)
    rows = (num_rows, num_kv, num_tokens * num_groups)
    scores = jnp.matmul(
        query_BKTGH.reshape(*rows, width),
        key_BKHS,
        preferred_element_type=jnp.float32,
        precision=exact(query_BKTGH, key_BKHS),
    )
    scores_BKTGS = scores.reshape(*query_BKTGH.shape[:-1], -1) * scale
    if soft_cap is not None:
        scores_BKTGS = soft_cap * jnp.tanh(scores_BKTGS / soft_cap)
    sinks = None if sinks_KG is None else sinks_KG[None, :, None, :, None]
    weights_BKTGS = masked_softmax(scores_BKTGS, seen.mask()[:, None, :, None], sinks)
    weights = weights_BKTGS.astype(value_BKSH.dtype).reshape(*rows, -1)
    mixed = jnp.matmul(weights, value_BKSH, precision=exact(weights, value_BKSH))
    return mixed.reshape(*query_BKTGH.shape[:-1], -1).transpose(0, 2, 1, 3, 4)
