"""Difficulty as length: static, needs no model."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from research.core.parts import part, require
from research.core.protocols import Model, Tree, View
from research.core.records import Batch


@part
class Length:
    """Score by the number of tokens (not nats) of one view of the row.

    Attributes:
      of: "training" (all that is fed), "prompt", or "answer" (the trained tokens and BOS).

    Source: sentence length as difficulty: Platanios et al. 2019, arXiv 1903.09848.
    Law: static: the same in every round, whatever the model.
    """

    of: Literal["training", "prompt", "answer"] = "training"

    new_tokens = None

    def __post_init__(self) -> None:
        allowed = ("training", "prompt", "answer")
        require(self, (self.of in allowed, f"of={self.of!r}: choose from {allowed}"))

    @property
    def views(self) -> tuple[View, ...]:
        return (View(content=self.of),)

    def score(
        self,
        model: Model,
        params: Tree,
        batches: tuple[Batch, ...],
        key_B: jax.Array,
        stop_ids: tuple[int, ...],
    ) -> jax.Array:
        """Count the tokens of each row."""
        del model, params, key_B, stop_ids
        (batch,) = batches
        return jnp.sum(batch.segments_BT > 0, axis=1).astype(jnp.float32)
