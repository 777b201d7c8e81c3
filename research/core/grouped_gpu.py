"""Grouped products on a GPU: three Triton kernels over tiles of rows that one expert owns."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

# Tile sizes of Triton's own matrix product tutorial for large bfloat16 matrices; 16 is the least
# side that a tensor core takes.
ROWS, COLUMNS, DEPTH, LEAST = 128, 128, 64, 16
WARPS, STAGES = 8, 3


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def by_tiles(x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, interpret: bool) -> jax.Array:
    """Multiply each expert's rows with its own matrix; see `research/core/grouped.py`.

    Args:
      interpret: run the kernels step by step on whatever platform: for tests.
    """
    return _rows_product(x_MI, w_EIO, sizes_E, False, interpret)


def _forward(x_MI, w_EIO, sizes_E, interpret: bool) -> tuple[jax.Array, tuple]:
    return by_tiles(x_MI, w_EIO, sizes_E, interpret), (x_MI, w_EIO, sizes_E)


def _backward(interpret: bool, kept: tuple, bar_MO: jax.Array) -> tuple:
    x_MI, w_EIO, sizes_E = kept
    x_bar_MI = _rows_product(bar_MO, w_EIO, sizes_E, True, interpret)
    return x_bar_MI, _outer_product(x_MI, bar_MO, sizes_E, w_EIO.dtype, interpret), None


by_tiles.defvjp(_forward, _backward)


def _rows_product(
    x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, transposed: bool, interpret: bool
) -> jax.Array:
    """Give x_m w_e(m), or x_m w_e(m)^T; rows beyond sum(sizes) are written as zeros.

    A tile holds rows of one expert, fewer than ROWS at its end. What belongs to nobody is the
    share of an expert more, whose tiles hold zeros.
    """
    num_rows, num_experts = x_MI.shape[0], w_EIO.shape[0]
    inner, outer = (w_EIO.shape[2], w_EIO.shape[1]) if transposed else w_EIO.shape[1:]
    depth, columns = _tile(inner, DEPTH), _tile(outer, COLUMNS)
    x_MI = _padded(x_MI, 1, depth)
    w_EIO = _padded(_padded(w_EIO, 2 if transposed else 1, depth), 1 if transposed else 2, columns)
    held_E = jnp.append(sizes_E, num_rows - jnp.sum(sizes_E))
    blocks_E = -(-held_E // ROWS)
    ends_E, last_E = jnp.cumsum(held_E), jnp.cumsum(blocks_E)
    tile = jnp.arange(-(-num_rows // ROWS) + num_experts + 1)
    owner = jnp.minimum(jnp.searchsorted(last_E, tile, side="right"), num_experts)
    first = (ends_E - held_E)[owner] + (tile - (last_E - blocks_E)[owner]) * ROWS
    busy = (owner < num_experts) & (first < ends_E[owner])
    turns = jnp.where(busy, x_MI.shape[1] // depth, 0)
    width = -(-outer // columns) * columns

    def kernel(owner_ref, first_ref, end_ref, turns_ref, x_ref, w_ref, y_ref):
        tile, column = pl.program_id(1), pl.program_id(0) * columns
        e, start = owner_ref[tile], first_ref[tile]
        mine = (start + jnp.arange(ROWS) < end_ref[tile])[:, None]

        def add(k: jax.Array, total: jax.Array) -> jax.Array:
            at, across = pl.ds(k * depth, depth), pl.ds(column, columns)
            x = plt.load(x_ref.at[pl.ds(start, ROWS), at], mask=mine, other=0)
            w = plt.load(w_ref.at[e, across, at] if transposed else w_ref.at[e, at, across])
            return total + _dot(x, w, trans_b=transposed)

        zero = jnp.zeros((ROWS, columns), jnp.float32)
        total = jax.lax.fori_loop(0, turns_ref[tile], add, zero)
        to = y_ref.at[pl.ds(start, ROWS), pl.ds(column, columns)]
        plt.store(to, total.astype(y_ref.dtype), mask=mine)

    y_MO = pl.pallas_call(
        kernel,
        grid=(width // columns, tile.size),
        out_shape=jax.ShapeDtypeStruct((num_rows, width), x_MI.dtype),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
    )(*(n.astype(jnp.int32) for n in (owner, first, ends_E[owner], turns)), x_MI, w_EIO)
    return y_MO[:, :outer]


def _outer_product(
    x_MI: jax.Array, bar_MO: jax.Array, sizes_E: jax.Array, dtype, interpret: bool
) -> jax.Array:
    """Give every expert's sum of x^T bar over its rows: zeros where it has none."""
    inner, outer = x_MI.shape[1], bar_MO.shape[1]
    lines, columns = _tile(inner, ROWS), _tile(outer, COLUMNS)
    x_MI, bar_MO = _padded(x_MI, 1, lines), _padded(bar_MO, 1, columns)
    ends_E = jnp.cumsum(sizes_E)
    shape = (sizes_E.size, x_MI.shape[1], bar_MO.shape[1])

    def kernel(first_ref, ends_ref, x_ref, bar_ref, sums_ref):
        e, line, column = pl.program_id(2), pl.program_id(1) * lines, pl.program_id(0) * columns
        first, end = first_ref[e], ends_ref[e]

        def add(k: jax.Array, total: jax.Array) -> jax.Array:
            start = first + k * DEPTH
            mine = (start + jnp.arange(DEPTH) < end)[:, None]
            x = plt.load(x_ref.at[pl.ds(start, DEPTH), pl.ds(line, lines)], mask=mine, other=0)
            at = bar_ref.at[pl.ds(start, DEPTH), pl.ds(column, columns)]
            return total + _dot(x, plt.load(at, mask=mine, other=0), trans_a=True)

        zero = jnp.zeros((lines, columns), jnp.float32)
        total = jax.lax.fori_loop(0, pl.cdiv(end - first, DEPTH), add, zero)
        plt.store(
            sums_ref.at[e, pl.ds(line, lines), pl.ds(column, columns)], total.astype(sums_ref.dtype)
        )

    sums_EIO = pl.pallas_call(
        kernel,
        grid=(shape[2] // columns, shape[1] // lines, shape[0]),
        out_shape=jax.ShapeDtypeStruct(shape, dtype),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
    )((ends_E - sizes_E).astype(jnp.int32), ends_E.astype(jnp.int32), x_MI, bar_MO)
    return sums_EIO[:, :inner, :outer]


def _dot(a: jax.Array, b: jax.Array, **transposed: bool) -> jax.Array:
    """Multiply two tiles, in float32 without its shortened form where they are float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return plt.dot(a, b, precision=precision, **transposed)


def _tile(size: int, most: int) -> int:
    """Give the largest tile side up to `most` that divides `size`, padded to a multiple of 16."""
    size, side = -(-size // LEAST) * LEAST, most
    while size % side:
        side //= 2
    return side


def _padded(x: jax.Array, axis: int, side: int) -> jax.Array:
    """Pad an axis with zeros to a multiple of a tile's side."""
    spare = -x.shape[axis] % side
    return jnp.pad(x, [(0, spare if i == axis else 0) for i in range(x.ndim)]) if spare else x
