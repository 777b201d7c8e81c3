"""Difficulty as surprise: how unlikely the model finds the reference answer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.core.protocols import Model, Tree, View
from research.core.records import Batch
from research.core.vocabulary import token_statistics


@part
class TeacherForcedLoss:
    """Score by mean_t -ln p(y*_t | x, y*_<t) over the trained targets; its exponential is the
    perplexity, which ranks alike.

    Source: the perplexity of a language model, Jelinek et al. 1977, doi 10.1121/1.2016299; as a
      curriculum the baseline of EDCO, arXiv 2601.03725.
    Law: independent of padding, batch-mates, bucket and device count within float noise.
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
        """Give the mean loss of each row in nats; NaN where a row has no trained target."""
        del key_B, stop_ids
        (batch,) = batches
        return mean_loss(model, params, batch)


def mean_loss(model: Model, params: Tree, batch: Batch) -> jax.Array:
    """Give each row's mean loss over its trained targets, in nats; NaN where it has none."""
    logprob_BT, _ = token_statistics(model.apply(params, batch), batch.targets_BT)
    weights_BT = batch.weights_BT
    loss_BT = jnp.where(weights_BT > 0, -logprob_BT * weights_BT, 0.0)
    return jnp.sum(loss_BT, axis=1) / jnp.sum(weights_BT, axis=1)
