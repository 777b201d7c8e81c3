"""Grouped products: rows sorted by expert, every expert's rows times that expert's matrix."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from research.core.grouped_gpu import by_tiles

# Rows that one loop step on a CPU costs beside its own (copying the expert's matrix, starting the
# product), measured on 2 cores; 8 and 128: below and above, products get slower or waste more.
CPU_STEP_ROWS, CPU_LEAST_BLOCK, CPU_MOST_BLOCK = 16, 8, 128


def grouped_product(
    x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, platform: str
) -> jax.Array:
    """Multiply each expert's rows with its own matrix: y_m = x_m w_e(m).

    The first sizes_0 rows belong to expert 0, the next sizes_1 to expert 1, and so on; rows beyond
    sum(sizes) belong to none and give zeros. The cost is that of the rows there are, whatever the
    number of experts.

    Args:
      platform: of the placement that the arrays live on: "cpu", "gpu" or "tpu".

    Raises:
      ValueError: there is no grouped kernel for the platform; see `missing_kernel`.
    """
    missing = missing_kernel(platform)
    if missing:
        raise ValueError(missing)
    if platform == "cpu":
        return _by_blocks(x_MI, w_EIO, sizes_E)
    if platform == "gpu":
        return by_tiles(x_MI, w_EIO, sizes_E, False)
    real_M1 = (jnp.arange(x_MI.shape[0]) < jnp.sum(sizes_E))[:, None]
    y_MO = jax.lax.ragged_dot(jnp.where(real_M1, x_MI, 0), w_EIO, sizes_E)
    return jnp.where(real_M1, y_MO, 0)


def missing_kernel(platform: str) -> str | None:
    """Say why a platform has no grouped product, and what to choose there; None: it has one.

    XLA's CPU and CUDA back-ends lower `jax.lax.ragged_dot` to a masked product over all experts,
    whose cost grows with their number; so blocks of rows are walked on a CPU, tiles of them in
    Triton on a GPU (`research/core/grouped_gpu.py`), and `ragged_dot` is for TPUs.
    """
    if platform in ("cpu", "tpu", "gpu"):
        return None
    return (
        f"there is no grouped product for platform {platform!r}: its stock lowering multiplies "
        "every row with every expert; choose Compute(dispatch=Capacity(factor=1.25)), which drops "
        "what overflows, or Dense() for a small model"
    )


def _block_rows(num_rows: int, num_experts: int) -> int:
    """Give the block b that makes (m + b/2) (1 + c/b) least, at m rows an expert on average.

    An expert of m rows computes m + b/2, its last block being half full; each block costs c rows
    more than its own. A power of two near sqrt(2 c m).
    """
    best = math.sqrt(2 * CPU_STEP_ROWS * max(num_rows / num_experts, 1.0))
    block = 2 ** round(math.log2(best))
    return min(max(block, CPU_LEAST_BLOCK), CPU_MOST_BLOCK, num_rows)


@jax.custom_vjp
def _by_blocks(x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    return _rows_product(x_MI, w_EIO, sizes_E, contracted=0)


def _forward(x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array) -> tuple[jax.Array, tuple]:
    return _by_blocks(x_MI, w_EIO, sizes_E), (x_MI, w_EIO, sizes_E)


def _backward(kept: tuple, bar_MO: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x_MI, w_EIO, sizes_E = kept
    x_bar_MI = _rows_product(bar_MO, w_EIO, sizes_E, contracted=1)
    return x_bar_MI, _outer_product(x_MI, bar_MO, sizes_E).astype(w_EIO.dtype), None


_by_blocks.defvjp(_forward, _backward)


def _rows_product(
    x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, contracted: int
) -> jax.Array:
    """Walk every expert's rows in blocks; contract x with axis 0 or 1 of the expert's matrix.

    A block that reaches over its expert's rows leaves the rows of others as they are.
    """
    num_rows, num_experts = x_MI.shape[0], w_EIO.shape[0]
    block = _block_rows(num_rows, num_experts)
    dims = (((1,), (contracted,)), ((), ()))

    def expert(e: jax.Array, y: jax.Array) -> jax.Array:
        w = w_EIO[e]

        def rows(i: jax.Array, y: jax.Array) -> jax.Array:
            start, mine = _block(i, e, ends_E, sizes_E, block, num_rows)
            x = jax.lax.dynamic_slice_in_dim(x_MI, start, block)
            old = jax.lax.dynamic_slice_in_dim(y, start, block)
            new = jnp.where(mine[:, None], jax.lax.dot_general(x, w, dims), old)
            return jax.lax.dynamic_update_slice_in_dim(y, new, start, 0)

        return jax.lax.fori_loop(0, -(-sizes_E[e] // block), rows, y)

    ends_E = jnp.cumsum(sizes_E)
    y_MO = jnp.zeros((num_rows, w_EIO.shape[2 - contracted]), x_MI.dtype)
    return jax.lax.fori_loop(0, num_experts, expert, y_MO)


def _outer_product(x_MI: jax.Array, bar_MO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Give every expert's sum of x^T bar over its rows, float32: zeros where it has none."""
    num_rows, num_experts = x_MI.shape[0], sizes_E.shape[0]
    block = _block_rows(num_rows, num_experts)
    shape = (x_MI.shape[1], bar_MO.shape[1])
    product = functools.partial(
        jax.lax.dot_general,
        dimension_numbers=(((0,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )

    def expert(e: jax.Array, sums: jax.Array) -> jax.Array:
        def rows(i: jax.Array, total: jax.Array) -> jax.Array:
            start, mine = _block(i, e, ends_E, sizes_E, block, num_rows)
            x = jax.lax.dynamic_slice_in_dim(x_MI, start, block)
            bar = jax.lax.dynamic_slice_in_dim(bar_MO, start, block)
            return total + product(x, jnp.where(mine[:, None], bar, 0))

        zero = jnp.zeros(shape, jnp.float32)
        total = jax.lax.fori_loop(0, -(-sizes_E[e] // block), rows, zero)
        return jax.lax.dynamic_update_index_in_dim(sums, total, e, 0)

    ends_E = jnp.cumsum(sizes_E)
    zeros = jnp.zeros((num_experts, *shape), jnp.float32)
    return jax.lax.fori_loop(0, num_experts, expert, zeros)


def _block(
    i: jax.Array, e: jax.Array, ends_E: jax.Array, sizes_E: jax.Array, block: int, num_rows: int
) -> tuple[jax.Array, jax.Array]:
    """Give where block i of expert e starts, moved back where it would leave the array, and which
    of its rows are that block's own."""
    first = ends_E[e] - sizes_E[e] + i * block
    start = jnp.minimum(first, num_rows - block)
    row = start + jnp.arange(block)
    return start, (row >= first) & (row < ends_E[e])
