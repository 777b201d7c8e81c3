"""The scorer of EDCO's released code, which differs from the method as described."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.generation import Sampling, TopEntropy
from research.core.parts import part, require
from research.core.protocols import Model, Tree, View
from research.core.records import Batch


@part
class EdcoRelease:
    """Score by the mean of the highest token entropies along one sampled answer.

    h_t   = entropy of the `top_tokens` likeliest tokens, their probabilities renormalised, of the
            raw logits before temperature
    score = mean of the ceil(top_fraction * T) highest h_t, T the tokens of the answer

    The release computes in bits; this is the same times ln 2, in nats, which leaves the ranking as
    it was. The prompt is the instruction and the raw question, without a chat template.

    Attributes:
      instruction: the release asks, in Chinese, for an answer in at most three sentences; this is
        that request, not its wording.

    Source: released code of EDCO, arXiv 2601.03725.
    Law: 0 <= score <= ln top_tokens, where it saturates.
    """

    prefix_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 0.7
    top_tokens: int = 20
    top_fraction: float = 0.2
    instruction: str = "请用不超过三句话简要回答下面的问题。"

    def __post_init__(self) -> None:
        require(
            self,
            (self.prefix_tokens >= 1, f"prefix_tokens={self.prefix_tokens} must be at least 1"),
            (self.temperature > 0, f"temperature={self.temperature} must be positive"),
            (0 < self.top_p <= 1, f"top_p={self.top_p}: expected 0 < top_p <= 1"),
            (self.top_tokens >= 2, f"top_tokens={self.top_tokens}: entropy needs at least 2"),
            (
                0 < self.top_fraction <= 1,
                f"top_fraction={self.top_fraction}: expected 0 < top_fraction <= 1",
            ),
        )

    @property
    def views(self) -> tuple[View, ...]:
        return (View(content="prompt", instruction=self.instruction, template=False),)

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
        """Sample an answer a row and give the mean of its highest entropies, in nats."""
        (prompts,) = batches
        sampling = Sampling(
            max_new_tokens=self.prefix_tokens, temperature=self.temperature, top_p=self.top_p
        )
        statistic = TopEntropy(count=self.top_tokens)
        path = model.generate(params, prompts, sampling, stop_ids, key_B, statistic)
        return mean_of_highest(path.entropy_BN, path.lengths_B, self.top_fraction)


def mean_of_highest(values_BN: jax.Array, lengths_B: jax.Array, fraction: float) -> jax.Array:
    """Average the ceil(fraction * length) highest of the first `length` values of each row."""
    place_N = jnp.arange(values_BN.shape[1])
    held_BN = jnp.where(place_N < lengths_B[:, None], values_BN, -jnp.inf)
    sorted_BN = jnp.sort(held_BN, axis=1, descending=True)
    count_B = jnp.ceil(fraction * lengths_B - 1e-6).astype(jnp.int32)  # 0.2 * 5 is 1, not 1.0000001
    kept_BN = jnp.where(place_N < count_B[:, None], sorted_BN, 0.0)
    return jnp.sum(kept_BN, axis=1) / count_B
