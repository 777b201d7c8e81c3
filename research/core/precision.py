"""How exact a product is: as exact as the dtype of its operands says, on every device."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def exact(*operands: jax.Array) -> jax.lax.Precision | None:
    """Give the precision of a product: float32 operands are multiplied in float32.

    Left to itself a TPU rounds them to bfloat16 first, and a GPU to TF32; who wants that says
    `Compute(dtype="bfloat16")`. The derivative of a product has the precision of the product.
    """
    whole = all(x.dtype == jnp.float32 for x in operands)
    return jax.lax.Precision.HIGHEST if whole else None
