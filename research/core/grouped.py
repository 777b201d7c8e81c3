"""Grouped products: rows sorted by expert, every expert's rows times that expert's matrix."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from research.core.grouped_gpu import by_tiles
from research.core.precision import exact

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
    x_MI, precision = jnp.where(real_M1, x_MI, 0), exact(x_MI, w_EIO)
    y_MO = jax.lax.ragged_dot(x_MI, w_EIO, sizes_E, precision=precision)
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


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Blocks of rows, expert by expert: those of one expert start at its first row.

    An expert without rows has no block, so that nothing of it is read.

    Attributes:
      block: rows of a block.
      num_blocks: how many there are (traced).
      owner_J, first_J: the expert and the first row of each; more than there are.
      end_J: where the owner's rows end.
    """

    block: int
    num_blocks: jax.Array
    owner_J: jax.Array
    first_J: jax.Array
    end_J: jax.Array

    def rows(self, j: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
        """Give where block j starts, moved back where it would leave the array, and which of its
        rows are its own."""
        start = jnp.minimum(self.first_J[j], num_rows - self.block)
        row = start + jnp.arange(self.block)
        return start, ((row >= self.first_J[j]) & (row < self.end_J[j]))[:, None]


def _walk(sizes_E: jax.Array, num_rows: int) -> _Walk:
    num_experts = sizes_E.shape[0]
    block = _block_rows(num_rows, num_experts)
    blocks_E = -(-sizes_E // block)
    ends_E, last_E = jnp.cumsum(sizes_E), jnp.cumsum(blocks_E)
    j = jnp.arange(num_rows // block + num_experts)
    owner_J = jnp.minimum(jnp.searchsorted(last_E, j, side="right"), num_experts - 1)
    first_J = (ends_E - sizes_E)[owner_J] + (j - (last_E - blocks_E)[owner_J]) * block
    return _Walk(block, last_E[-1], owner_J, first_J, ends_E[owner_J])


def _rows_product(
    x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, contracted: int
) -> jax.Array:
    """Contract each row with axis 0 or 1 of its expert's matrix.

    A block that reaches over its expert's rows leaves the rows of others as they are.
    """
    num_rows, walk = x_MI.shape[0], _walk(sizes_E, x_MI.shape[0])
    dims = (((1,), (contracted,)), ((), ()))

    def step(j: jax.Array, y_MO: jax.Array) -> jax.Array:
        start, mine = walk.rows(j, num_rows)
        x = jax.lax.dynamic_slice_in_dim(x_MI, start, walk.block)
        old = jax.lax.dynamic_slice_in_dim(y_MO, start, walk.block)
        new = jax.lax.dot_general(x, w_EIO[walk.owner_J[j]], dims)
        return jax.lax.dynamic_update_slice_in_dim(y_MO, jnp.where(mine, new, old), start, 0)

    y_MO = jnp.zeros((num_rows, w_EIO.shape[2 - contracted]), x_MI.dtype)
    return jax.lax.fori_loop(0, walk.num_blocks, step, y_MO)


def _outer_product(x_MI: jax.Array, bar_MO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Give every expert's sum of x^T bar over its rows, float32: zeros where it has none."""
    num_rows, walk = x_MI.shape[0], _walk(sizes_E, x_MI.shape[0])
    dims = (((0,), (0,)), ((), ()))

    def step(j: jax.Array, sums_EIO: jax.Array) -> jax.Array:
        start, mine = walk.rows(j, num_rows)
        x = jax.lax.dynamic_slice_in_dim(x_MI, start, walk.block)
        bar = jnp.where(mine, jax.lax.dynamic_slice_in_dim(bar_MO, start, walk.block), 0)
        product = jax.lax.dot_general(x, bar, dims, preferred_element_type=jnp.float32)
        e = walk.owner_J[j]
        return jax.lax.dynamic_update_index_in_dim(sums_EIO, sums_EIO[e] + product, e, 0)

    shape = (sizes_E.shape[0], x_MI.shape[1], bar_MO.shape[1])
    return jax.lax.fori_loop(0, walk.num_blocks, step, jnp.zeros(shape, jnp.float32))
