"""Clipping of gradients by their global norm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from research.optimizers.matrices import lift


def global_norm(tree: Any) -> jax.Array:
    """Give the Euclidean norm over all leaves together, summed in float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(lift(tree))))


def clip(gradients: Any, max_norm: Any) -> tuple[Any, jax.Array]:
    """Scale gradients so that their global norm is at most `max_norm`; give (them, norm before).

    Law: gradients within the bound come out bit for bit; None never clips.
    """
    norm = global_norm(gradients)
    if max_norm is None:
        return gradients, norm
    scale = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    return jax.tree.map(lambda leaf: (leaf * scale).astype(leaf.dtype), gradients), norm
