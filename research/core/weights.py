"""The verbs that touch weights: `contract`, `take`, `grouped`, and what their axes are.

A leaf that is not an array (a low-rank or quantised weight) brings its own method of the same name;
model files never ask what kind of leaf they hold.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from research.core.axes import axes_of
from research.core.grouped import grouped_product
from research.core.precision import exact


def value_of(w: Any) -> Any:
    """Unwrap an `nnx.Variable`; leaves other than arrays come out as they are."""
    return w.get_value() if isinstance(w, nnx.Variable) else w


def contract(equation: str, x: jax.Array, w: Any) -> jax.Array:
    """Contract activations with a weight: `contract("BTD,DKGH->BTKGH", x_BTD, query_D_KGH)`.

    The weight is used at the activation's dtype.
    """
    w = value_of(w)
    return w.contract(equation, x) if hasattr(w, "contract") else _contract(equation, x, w)


def take(table: Any, ids: jax.Array, dtype: Any) -> jax.Array:
    """Look rows of an embedding up: `take(embed_V_D, tokens_BT, dtype)` -> [B, T, D]."""
    table = value_of(table)
    if hasattr(table, "take"):
        return (
            table.take(ids, dtype) if not isinstance(table, jax.Array) else table[ids].astype(dtype)
        )
    return table[ids].astype(dtype)


def grouped(equation: str, x: jax.Array, w: Any, sizes_E: jax.Array, platform: str) -> jax.Array:
    """Multiply rows with their experts' matrices: `grouped("MD,EDF->MF", x, w, sizes, "cpu")`.

    Rows are sorted by expert, sizes_E rows each; rows beyond sum(sizes) give zeros. The weight is
    used at the activation's dtype.

    Args:
      platform: of the placement; see `research/core/grouped.py`.
    """
    w = value_of(w)
    if hasattr(w, "grouped"):
        return w.grouped(equation, x, sizes_E, platform)
    return _grouped(equation, x, w, sizes_E, platform)


def letters_of(name: str, w: Any) -> Any:
    """Give the axis letters of each array of a weight, as a tree like it; "" where it has none."""
    w = value_of(w)
    if hasattr(w, "letters"):
        return w.letters()
    axes = axes_of(name)
    return "" if axes is None else axes.letters


def _grouped(
    equation: str, x: jax.Array, w: jax.Array, sizes_E: jax.Array, platform: str
) -> jax.Array:
    """Run the product on matrices: all inputs as one axis, all outputs as one."""
    outputs = w.shape[w.ndim + 1 - len(equation.split("->")[1]) :]
    width = x.size // x.shape[0]
    matrices = w.astype(x.dtype).reshape(w.shape[0], width, -1)
    y = grouped_product(x.reshape(-1, width), matrices, sizes_E, platform)
    return y.reshape(x.shape[0], *outputs)


def _contract(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """Contract as one 2-D product where the contracted axes trail in x and lead in w.

    XLA's CPU back-end turns the weight gradient of a batched product into a transposed copy;
    accelerators lower both forms alike.
    """
    terms, out = equation.split("->")
    x_letters, w_letters = terms.split(",")
    shared = "".join(letter for letter in x_letters if letter in w_letters and letter not in out)
    w = w.astype(x.dtype)
    if not (x_letters.endswith(shared) and w_letters.startswith(shared)):
        return jnp.einsum(equation, x, w, precision=exact(x, w))
    rows, columns = x_letters.removesuffix(shared), w_letters.removeprefix(shared)
    if out != rows + columns or set(rows) & set(columns):
        return jnp.einsum(equation, x, w, precision=exact(x, w))
    row_shape, column_shape = x.shape[: len(rows)], w.shape[len(shared) :]
    width = 1
    for size in w.shape[: len(shared)]:
        width *= size
    y = jnp.matmul(x.reshape(-1, width), w.reshape(width, -1), precision=exact(x, w))
    return y.reshape(*row_shape, *column_shape)
