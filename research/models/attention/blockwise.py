"""Attention block by block: an online softmax whose memory grows with T alone, on any platform."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core.parts import part, require
from research.core.precision import exact
from research.models.attention.visibility import Visibility


@part
class Blockwise:
    """softmax(cap(q k^T scale)) v, holding one block of scores at a time, forward and backward.

    A static list of (query block, key block) pairs is walked once forward and once backward. Where
    positions are ordered, blocks that causality or the window hide are not on the list.

    Attributes:
      query_block, key_block: positions a block; shorter sequences are one block.

    Source: online softmax, Milakov & Gimelshein 2018, arXiv 1805.02867; backward from the saved
      log-sum-exp, Dao et al. 2022, arXiv 2205.14135, algorithm 4.
    """

    query_block: int = 512
    key_block: int = 512

    def __post_init__(self) -> None:
        require(
            self,
            (
                min(self.query_block, self.key_block) > 0,
                f"query_block={self.query_block}, key_block={self.key_block}; expected positive",
            ),
        )

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
        num_rows, num_queries, num_kv_heads, groups, width = query_BTKGH.shape
        walk = _Walk(
            num_queries=num_queries,
            num_keys=key_BSKH.shape[1],
            query_block=min(self.query_block, num_queries),
            key_block=min(self.key_block, key_BSKH.shape[1]),
            groups=groups,
            scale=scale,
            soft_cap=soft_cap,
        )
        # One block is [B, K, rows, H]: the grouped query heads are stacked on the block's rows.
        query = _blocks(query_BTKGH, walk.query_block).transpose(0, 1, 3, 4, 2, 5)
        query = query.reshape(-1, num_rows, num_kv_heads, groups * walk.query_block, width)
        key, value = (
            _blocks(x, walk.key_block).transpose(0, 1, 3, 2, 4) for x in (key_BSKH, value_BSKH)
        )
        seen = dataclasses.replace(
            seen,
            query_positions_BT=_blocks(seen.query_positions_BT, walk.query_block),
            query_segments_BT=_blocks(seen.query_segments_BT, walk.query_block),
            key_positions_BS=_blocks(seen.key_positions_BS, walk.key_block),
            key_segments_BS=_blocks(seen.key_segments_BS, walk.key_block),
        )
        sinks = jnp.full((num_kv_heads, groups), -jnp.inf) if sinks_KG is None else sinks_KG
        sinks = jnp.repeat(sinks.astype(jnp.float32), walk.query_block, axis=1)
        out: Any = _attend(walk, query, key, value, seen, sinks)
        out = out.reshape(-1, num_rows, num_kv_heads, groups, walk.query_block, width)
        out = out.transpose(1, 0, 4, 2, 3, 5).reshape(num_rows, -1, num_kv_heads, groups, width)
        return out[:, :num_queries]


@dataclasses.dataclass(frozen=True)
class _Walk:
    """The static side of one call: sizes, and the formula's constants."""

    num_queries: int
    num_keys: int
    query_block: int
    key_block: int
    groups: int
    scale: float
    soft_cap: float | None

    def pairs(self, seen: Visibility) -> np.ndarray:
        """List the (query block, key block) pairs in which anything can be seen, in order.

        Inside a segment that is ordered, index distance is position distance; so causality and the
        window bound the index distance of whatever is visible.
        """
        counts = -(-self.num_queries // self.query_block), -(-self.num_keys // self.key_block)
        query, key = np.indices(counts)
        if not seen.ordered:
            return np.stack([query.ravel(), key.ravel()], axis=1)
        first_query, first_key = query * self.query_block, key * self.key_block
        kept = first_key <= first_query + self.query_block - 1
        if seen.window is not None:
            kept &= first_query - (first_key + self.key_block - 1) < seen.window
        return np.argwhere(kept)

    def scores(
        self, query: jax.Array, key: jax.Array, seen: Visibility, i: Any, j: Any
    ) -> tuple[jax.Array, jax.Array | float]:
        """Give one block of float32 scores (-inf where hidden) and d score / d (scaled product)."""
        raw = _dot("bkrh,bksh->bkrs", query, key) * self.scale
        slope: jax.Array | float = 1.0
        if self.soft_cap is not None:
            bent = jnp.tanh(raw / self.soft_cap)
            raw, slope = self.soft_cap * bent, 1.0 - bent * bent
        local = dataclasses.replace(
            seen,
            query_positions_BT=_at(seen.query_positions_BT, i),
            query_segments_BT=_at(seen.query_segments_BT, i),
            key_positions_BS=_at(seen.key_positions_BS, j),
            key_segments_BS=_at(seen.key_segments_BS, j),
        )
        mask = jnp.tile(local.mask(), (1, self.groups, 1))[:, None]
        return jnp.where(mask, raw, -jnp.inf), slope


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """Cut axis 1 into blocks, led by the block number; what is missing is 0 (segment 0: unseen)."""
    missing = -x.shape[1] % block
    x = jnp.pad(x, [(0, missing if axis == 1 else 0) for axis in range(x.ndim)])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)


def _at(blocks: jax.Array, index: Any) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(blocks, index, keepdims=False)


def _put(blocks: jax.Array, block: jax.Array, index: Any) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(blocks, block, index, 0)


def _dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32, precision=exact(x, y))


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _loop(step: Any, carry: tuple, pairs: np.ndarray) -> tuple:
    """Step through the pairs in a `while_loop`.

    From a `scan` inside a scan over layers, jax lifts whatever does not depend on the layer: the
    masks of all pairs at once, T S of them a row.
    """
    listed, count = jnp.asarray(pairs, jnp.int32), len(pairs)

    def body(state: tuple) -> tuple:
        index, carry = state
        return index + 1, step(carry, listed[index])

    return jax.lax.while_loop(lambda state: state[0] < count, body, (jnp.int32(0), carry))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(walk: _Walk, query, key, value, seen: Visibility, sinks) -> jax.Array:
    return _forward(walk, query, key, value, seen, sinks)[0]


def _forward(walk: _Walk, query, key, value, seen: Visibility, sinks) -> tuple[jax.Array, tuple]:
    """Walk the pairs with a running maximum and sum for each query.

    A sink is a score with no value: the maximum starts there, with a sum of 1 (0 without sinks).
    """

    def step(carry: tuple, pair: jax.Array) -> tuple:
        out, top, total = carry
        i, j = pair
        scores, _ = walk.scores(_at(query, i), _at(key, j), seen, i, j)
        new_top = jnp.maximum(_at(top, i), jnp.max(scores, axis=-1))
        base = _finite(new_top)
        weights, shrink = jnp.exp(scores - base[..., None]), jnp.exp(_at(top, i) - base)
        mixed = _dot("bkrs,bksh->bkrh", weights.astype(value.dtype), _at(value, j))
        out = _put(out, _at(out, i) * shrink[..., None] + mixed, i)
        total = _put(total, _at(total, i) * shrink + jnp.sum(weights, axis=-1), i)
        return out, _put(top, new_top, i), total

    top = jnp.broadcast_to(sinks, query.shape[:-1])
    total = jnp.exp(top - _finite(top))
    out = jnp.zeros(query.shape, jnp.float32)
    out, top, total = _loop(step, (out, top, total), walk.pairs(seen))
    sees = total > 0
    out = (out / jnp.where(sees, total, 1.0)[..., None]).astype(query.dtype)
    log_total = jnp.where(sees, top + jnp.log(jnp.where(sees, total, 1.0)), 0.0)
    return out, (query, key, value, seen, sinks, out, log_total)


def _backward(walk: _Walk, kept: tuple, out_bar: jax.Array) -> tuple:
    """Walk the same pairs again: with p = exp(score - log_total) and delta = sum_h out_bar out,

    dv = p^T out_bar;  ds = p (out_bar v^T - delta);  dq = scale ds k;  dk = scale ds^T q.
    """
    query, key, value, seen, sinks, out, log_total = kept
    delta = jnp.sum(out_bar.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def step(carry: tuple, pair: jax.Array) -> tuple:
        query_bar, key_bar, value_bar = carry
        i, j = pair
        q, k, v, bar = _at(query, i), _at(key, j), _at(value, j), _at(out_bar, i)
        scores, slope = walk.scores(q, k, seen, i, j)
        weights = jnp.exp(scores - _at(log_total, i)[..., None])
        weights_bar = _dot("bkrh,bksh->bkrs", bar, v)
        scores_bar = weights * (weights_bar - _at(delta, i)[..., None]) * slope * walk.scale
        scores_bar, weights = scores_bar.astype(key.dtype), weights.astype(value.dtype)
        query_bar = _put(query_bar, _at(query_bar, i) + _dot("bkrs,bksh->bkrh", scores_bar, k), i)
        key_bar = _put(key_bar, _at(key_bar, j) + _dot("bkrs,bkrh->bksh", scores_bar, q), j)
        value_bar = _put(value_bar, _at(value_bar, j) + _dot("bkrs,bkrh->bksh", weights, bar), j)
        return query_bar, key_bar, value_bar

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query, key, value))
    bars = _loop(step, zeros, walk.pairs(seen))
    query_bar, key_bar, value_bar = (
        bar.astype(x.dtype) for bar, x in zip(bars, (query, key, value), strict=True)
    )
    sinks_bar = -jnp.sum(jnp.exp(sinks - log_total) * delta, axis=(0, 1))
    return query_bar, key_bar, value_bar, None, sinks_bar


_attend.defvjp(_forward, _backward)
