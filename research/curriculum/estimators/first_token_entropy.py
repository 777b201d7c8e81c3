"""Difficulty as indecision about how to begin: the entropy of the answer's first token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.core.protocols import Model, Tree, View
from research.core.records import Batch
from research.core.vocabulary import entropy_of_logits


@part
class FirstTokenEntropy:
    """Score by h_1 = - sum_v p(v | q+x) ln p(v | q+x): one prediction, nothing is generated.

    Attributes:
      instruction: q, as in `PrefixEntropy`.
      template: whether the training chat template is applied.

    Source: the case L = 1 of EDCO's prefix entropy, arXiv 2601.03725.
    Law: 0 <= score <= ln V; equal to `PrefixEntropy(prefix_tokens=1)`.
    """

    instruction: str = ""
    template: bool = True

    new_tokens = 1

    @property
    def views(self) -> tuple[View, ...]:
        return (View(content="prompt", instruction=self.instruction, template=self.template),)

    def score(
        self,
        model: Model,
        params: Tree,
        batches: tuple[Batch, ...],
        key_B: jax.Array,
        stop_ids: tuple[int, ...],
    ) -> jax.Array:
        """Give the entropy of the prediction that follows each prompt, in nats."""
        del key_B, stop_ids
        (prompts,) = batches
        return entropy_of_logits(next_logits(model, params, prompts))


def next_logits(model: Model, params: Tree, prompts: Batch) -> jax.Array:
    """Give the raw logits [B, V] of the token after each row's last, made at that place alone."""
    output = model.apply(params, prompts)
    position_BT = jnp.where(prompts.segments_BT > 0, prompts.positions_BT, -1)
    last_B = jnp.argmax(position_BT, axis=1)
    hidden_BTD = jnp.take_along_axis(output.hidden_BTD, last_B[:, None, None], axis=1)
    return output.project(hidden_BTD)[:, 0]
