"""What a feed-forward does between its two products: one function of gate and up."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from research.core.parts import part


@part
class Silu:
    """silu(gate) * up. Source: Shazeer 2020, arXiv 2002.05202 (SwiGLU)."""

    def __call__(self, gate: jax.Array, up: jax.Array | None = None) -> jax.Array:
        return _gated(jax.nn.silu(gate), up)


@part
class Gelu:
    """gelu(gate) * up, or gelu(gate) where nothing is gated.

    Attributes:
      tanh: the tanh approximation ("gelu_pytorch_tanh", "gelu_new"); False: by the error function.

    Source: Hendrycks & Gimpel 2016, arXiv 1606.08415.
    """

    tanh: bool = True

    def __call__(self, gate: jax.Array, up: jax.Array | None = None) -> jax.Array:
        return _gated(functools.partial(jax.nn.gelu, approximate=self.tanh)(gate), up)


@part
class ClampedSwiglu:
    """g sigmoid(alpha g) (u + 1), with g = min(gate, limit) and u clamped to +-limit.

    Source: the GPT-OSS model card, arXiv 2508.10925, and its reference code (`swiglu`).
    """

    alpha: float = 1.702
    limit: float = 7.0

    def __call__(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        g = jnp.minimum(gate, self.limit)
        u = jnp.clip(up, -self.limit, self.limit)
        return g * jax.nn.sigmoid(self.alpha * g) * (u + 1)


Activation = Silu | Gelu | ClampedSwiglu


def _gated(hidden: jax.Array, up: jax.Array | None) -> jax.Array:
    return hidden if up is None else hidden * up
