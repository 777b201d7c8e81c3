"""Difficulty as indecision of the model's own answer: EDCO's prefix inference entropy."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from research.core.generation import FullEntropy, Sampling
from research.core.parts import part, require
from research.core.protocols import Model, Tree, View
from research.core.records import Batch


@part
class PrefixEntropy:
    """Score by the entropy over the first tokens of an answer that the model writes itself.

    h_t = - sum_v p(v | q+x, y_<t) ln p(v | q+x, y_<t),  y from the model, q the instruction
    H_L = mean_t h_t over the first min(L, T) tokens, T where the answer ends

    h_t is of the raw prediction over the full vocabulary, whatever the path's temperature. The
    prediction in which the answer ends counts; what comes after it does not.

    Attributes:
      prefix_tokens: L. One token gives the entropy of the first prediction alone.
      temperature: of the path; None: greedy. At 1, `reduction="sum"` is an unbiased estimate of
        the entropy of the prefix.
      instruction: q, a request for a quick answer in the language of the data. It goes into the
        user's turn; for a model without a chat template it is plain text before the prompt.
      template: whether the training chat template is applied.
      reduction: "mean" or "sum" over the prefix.

    Source: EDCO, arXiv 2601.03725 (reconstruction from its abstract and released code).
    Law: 0 <= mean <= ln V; 0 <= sum <= L ln V; independent of batch-mates, bucket, padding side
    and device count, except where a greedy path meets a near tie.
    """

    prefix_tokens: int = 64
    temperature: float | None = None
    instruction: str = ""
    template: bool = True
    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        require(
            self,
            (self.prefix_tokens >= 1, f"prefix_tokens={self.prefix_tokens} must be at least 1"),
            (
                self.temperature is None or self.temperature > 0,
                f"temperature={self.temperature} must be positive; for a greedy path say None",
            ),
            (
                self.reduction in ("mean", "sum"),
                f"reduction={self.reduction!r}: choose 'mean' or 'sum'",
            ),
        )

    @property
    def views(self) -> tuple[View, ...]:
        return (View(content="prompt", instruction=self.instruction, template=self.template),)

    @property
    def new_tokens(self) -> int:
        return self.prefix_tokens

    def score(
        self,
        model: Model,
        params: Tree,
        batches: tuple[Batch, ...],
        key_B: jax.Array,
        stop_ids: tuple[int, ...],
    ) -> jax.Array:
        """Generate a prefix a row and give the entropy along it, in nats."""
        (prompts,) = batches
        sampling = Sampling(max_new_tokens=self.prefix_tokens, temperature=self.temperature)
        path = model.generate(params, prompts, sampling, stop_ids, key_B, FullEntropy())
        sum_B = jnp.sum(path.entropy_BN, axis=1)
        return sum_B if self.reduction == "sum" else sum_B / path.lengths_B
