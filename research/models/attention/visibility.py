"""Which position may see which: causal, inside one example, inside the sliding window."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Visibility:
    """Positions and segments on both sides; segment 0 is padding: it sees and is seen by nothing.

    Position s is visible to t when both lie in the same segment (not 0), position_s <= position_t,
    and position_t - position_s < window where there is one.

    Attributes:
      ordered: queries and keys are the same tokens, every segment is contiguous, and its positions
        grow by one (training): index distance is position distance. False for cached decoding.
    """

    query_positions_BT: Int[Array, "B T"]
    query_segments_BT: Int[Array, "B T"]
    key_positions_BS: Int[Array, "B S"]
    key_segments_BS: Int[Array, "B S"]
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    ordered: bool = dataclasses.field(default=True, metadata={"static": True})

    def mask(self) -> Bool[Array, "B T S"]:
        """Spell the rule out."""
        query_segments = self.query_segments_BT[:, :, None]
        distance = self.query_positions_BT[:, :, None] - self.key_positions_BS[:, None, :]
        seen = (query_segments == self.key_segments_BS[:, None, :]) & (query_segments > 0)
        seen &= distance >= 0
        return seen if self.window is None else seen & (distance < self.window)


class AttentionBackend(Protocol):
    """How attention is computed; a part. All obey the same laws (causality, packing, padding)."""

    def __call__(
        self,
        query_BTKGH: Float[Array, "B T K G H"],
        key_BSKH: Float[Array, "B S K H"],
        value_BSKH: Float[Array, "B S K H"],
        seen: Visibility,
        *,
        scale: float,
        soft_cap: float | None = None,
        sinks_KG: Float[Array, "K G"] | None = None,
    ) -> Float[Array, "B T K G H"]:
        """Attend; float32 softmax; a query that sees nothing gives zeros."""
        ...


def masked_softmax(scores: jax.Array, mask: jax.Array, sinks: jax.Array | None = None) -> jax.Array:
    """Softmax over the last axis in float32, 0 where masked; all 0 where nothing is visible."""
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        top = jnp.maximum(top, sinks)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    e = jnp.exp(scores - top)
    total = jnp.sum(e, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks - top)
    return e / jnp.where(total > 0, total, 1.0)
