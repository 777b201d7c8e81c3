"""Attention as the formula says it: every score at once. The one the others are tested against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.core.precision import exact
from research.models.attention.visibility import Visibility, masked_softmax


@part
class Reference:
    """softmax(cap(q k^T scale)) v with O(T S) memory, on any platform."""

    def __call__(
        self,
        query_BTKGH: jax.Array,
        key_BSKH: jax.Array,
        value_BSKH: jax.Array,
        seen: Visibility,
        *,
        scale: float,
        soft_cap: float | None = None,
        sinks_KG: jax.Array | None = None,
    ) -> jax.Array:
        num_rows, num_tokens, num_kv, num_groups, width = query_BTKGH.shape
        # The query heads of a key head are stacked on rows: each product is one batched matmul.
        rows = (num_rows, num_kv, num_groups * num_tokens)
        query = query_BTKGH.transpose(0, 2, 3, 1, 4).reshape(*rows, width)
        scores = jnp.einsum(
            "bkrh,bskh->bkrs",
            query,
            key_BSKH,
            preferred_element_type=jnp.float32,
            precision=exact(query, key_BSKH),
        )
        scores_BKGTS = scores.reshape(num_rows, num_kv, num_groups, num_tokens, -1) * scale
        if soft_cap is not None:
            scores_BKGTS = soft_cap * jnp.tanh(scores_BKGTS / soft_cap)
        sinks = None if sinks_KG is None else sinks_KG[None, :, :, None, None]
        weights_BKGTS = masked_softmax(scores_BKGTS, seen.mask()[:, None, None], sinks)
        weights = weights_BKGTS.astype(value_BSKH.dtype).reshape(*rows, -1)
        precision = exact(weights, value_BSKH)
        mixed = jnp.einsum("bkrs,bskh->bkrh", weights, value_BSKH, precision=precision)
        mixed_BKGTH = mixed.reshape(num_rows, num_kv, num_groups, num_tokens, width)
        return mixed_BKGTH.transpose(0, 3, 1, 2, 4)
