"""How one parameter is made from its name."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from research.core.axes import declared, shape_of


def parameter(
    name: str,
    key: jax.Array,
    sizes: Mapping[str, int],
    std: float | None = None,
    norm_offset: float = 0.0,
) -> nnx.Param:
    """Make one parameter: shape by its letters, scale by fan-in, norms 1, biases and sinks 0.

    Args:
      sizes: the size of every letter in the name.
      std: of a kernel's normal draw; None: fan-in ** -0.5 (0.02 for a table).
      norm_offset: what is added to the scale of a norm where it is used.
    """
    axes, shape = declared(name), shape_of(name, sizes)
    if not axes.is_kernel:
        zero = any(word in name for word in ("bias", "correction", "sinks"))
        return nnx.Param(jnp.full(shape, 0.0 if zero else 1.0 - norm_offset, jnp.float32))
    fan_in = axes.matrix(shape)[1] if axes.inputs not in ("V", "S") else 1
    fitting = fan_in**-0.5 if fan_in > 1 else 0.02
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return nnx.Param((fitting if std is None else std) * jax.random.normal(key, shape, jnp.float32))
