"""Difficulty as indecision along the reference answer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.core.protocols import Model, Tree, View
from research.core.records import Batch
from research.core.vocabulary import token_statistics


@part
class TeacherForcedEntropy:
    """Score by mean_t h_t, h_t = - sum_v p(v | x, y*_<t) ln p(v | x, y*_<t), over trained targets.

    Source: token entropy of sequences: Settles and Craven 2008, EMNLP, D08-1112, there along the
      likeliest labels, here along the reference.
    Law: 0 <= score <= ln V; independent of padding, batch-mates, bucket and device count within
    float noise.
    """

    views = (View(content="training"),)
    new_tokens = 0

    def score(
        self,
        model: Model,
        params: Tree,
        batches: tuple[Batch, ...],
        key_B: jax.Array,
        stop_ids: tuple[int, ...],
    ) -> jax.Array:
        """Give the mean entropy of each row in nats; NaN where a row has no trained target."""
        del key_B, stop_ids
        (batch,) = batches
        _, entropy_BT = token_statistics(model.apply(params, batch), batch.targets_BT)
        weights_BT = batch.weights_BT
        entropy_BT = jnp.where(weights_BT > 0, entropy_BT * weights_BT, 0.0)
        return jnp.sum(entropy_BT, axis=1) / jnp.sum(weights_BT, axis=1)
