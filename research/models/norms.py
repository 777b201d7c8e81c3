"""Normalisation of the residual stream, of queries and of keys, in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from research.core.weights import value_of


def rms_norm(x: jax.Array, scale: Any, eps: float, offset: float = 0.0) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * (offset + scale), over the axes of `scale` (the last ones).

    Source: Zhang & Sennrich, arXiv 1910.07467; offset 1 in Gemma.
    """
    scale = value_of(scale).astype(jnp.float32)
    axes = tuple(range(-scale.ndim, 0))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=axes, keepdims=True) + eps)
    return (y * (scale + offset if offset else scale)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: Any, bias: Any, eps: float) -> jax.Array:
    """(x - mean) / sqrt(var + eps) * scale + bias. Source: Ba et al. 2016, arXiv 1607.06450."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    scale, bias = (value_of(leaf).astype(jnp.float32) for leaf in (scale, bias))
    return (y * scale + bias).astype(x.dtype)
