"""Difficulty of a multiple-choice row as indecision among its letters."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.core.protocols import Model, Tree, View
from research.core.records import Batch
from research.core.vocabulary import entropy_of_logits
from research.curriculum.estimators.first_token_entropy import next_logits


@part
class OptionLetters:
    """Score by - sum_k p_k ln p_k, p_k the probability of letter k at the answer slot, renormalised
    over the row's letters.

    The slot is the text up to where the same row with A, with B, ... for an answer begins to
    differ; the letters are the tokens found there, with whatever white space they carry.

    Attributes:
      instruction: joined to the question, as in `PrefixEntropy`.
      template: whether the training chat template is applied.

    Source: the distribution over option letters of Kadavath et al. 2022, arXiv 2207.05221.
    Law: 0 <= score <= ln (number of options).
    """

    instruction: str = ""
    template: bool = True

    new_tokens = 1

    @property
    def views(self) -> tuple[View, ...]:
        shown = {"instruction": self.instruction, "template": self.template}
        return (View(content="slot", **shown), View(content="letters", **shown))

    def score(
        self,
        model: Model,
        params: Tree,
        batches: tuple[Batch, ...],
        key_B: jax.Array,
        stop_ids: tuple[int, ...],
    ) -> jax.Array:
        """Give the entropy over the letters of each row, in nats."""
        del key_B, stop_ids
        prompts, letters = batches
        logits_BV = next_logits(model, params, prompts)
        chosen_BT = jnp.take_along_axis(logits_BV, letters.tokens_BT, axis=1)
        return entropy_of_logits(jnp.where(letters.segments_BT > 0, chosen_BT, -jnp.inf))
