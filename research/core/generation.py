"""What generation takes and gives: how tokens are chosen, what came out, what is measured."""

from __future__ import annotations

from typing import Protocol

import jax
from jaxtyping import Array, Bool, Float, Int

from research.core.parts import part, require
from research.core.records import record
from research.core.vocabulary import entropy_of_logits


@part
class Sampling:
    """How the next token is chosen from the logits.

    The filters come after the temperature, top-k before top-p.

    Attributes:
      max_new_tokens: N, the most tokens a row may get.
      temperature: divides the logits; None is greedy decoding, which draws nothing.
      top_k: keep the k largest logits and those equal to the k-th; None keeps all.
      top_p: keep the fewest most likely tokens whose probabilities add up to top_p or more, and
        those as likely as the last of them; None keeps all. Source: Holtzman et al. 2019,
        arXiv 1904.09751.
    """

    max_new_tokens: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        greedy = self.temperature is None
        require(
            self,
            (
                self.max_new_tokens > 0,
                f"max_new_tokens={self.max_new_tokens} must be at least 1",
            ),
            (
                self.temperature is None or self.temperature > 0,
                f"temperature={self.temperature} must be positive; for greedy decoding say None",
            ),
            (
                not greedy or (self.top_k is None and self.top_p is None),
                f"top_k={self.top_k}, top_p={self.top_p} change nothing in greedy decoding; leave "
                "them out, or give a temperature",
            ),
            (self.top_k is None or self.top_k > 0, f"top_k={self.top_k} must be at least 1"),
            (
                self.top_p is None or 0 < self.top_p <= 1,
                f"top_p={self.top_p} must lie in (0, 1]",
            ),
        )


@part
class Decoding:
    """How rows are decoded; it changes no row beyond float noise.

    Attributes:
      rows: rows in flight; a longer batch waits, and its prompts take the places of rows that have
        ended. None: all rows of a batch start together, and the longest answer ends it.
      admitted: how many rows have to end before as many prompts are read together: a few make good
        use of the device and leave few places empty.
      shared_tokens: first tokens that all prompts have in common, such as an instruction: they are
        read once. Every prompt has to be longer, and padded on the right.
    """

    rows: int | None = None
    admitted: int = 1
    shared_tokens: int = 0

    def __post_init__(self) -> None:
        most = self.rows or 1
        require(
            self,
            (self.rows is None or self.rows > 0, f"rows={self.rows} must be positive, or None"),
            (
                1 <= self.admitted <= most,
                f"admitted={self.admitted}: expected 1 to rows={self.rows}",
            ),
            (self.shared_tokens >= 0, f"shared_tokens={self.shared_tokens} must be >= 0"),
        )


AT_ONCE = Decoding()


class Statistic(Protocol):
    """What is kept of each prediction: a part."""

    def __call__(self, logits_BV: Float[Array, "B V"]) -> Float[Array, " B"]:
        """Give one number a row from its raw logits, whatever the sampling does to them."""
        ...


@part
class FullEntropy:
    """Entropy in nats of softmax(logits) over the whole vocabulary.

    Law: 0 <= H <= ln V.
    """

    def __call__(self, logits_BV: Float[Array, "B V"]) -> Float[Array, " B"]:
        return entropy_of_logits(logits_BV)


@part
class TopEntropy:
    """Entropy in nats of the `count` most likely tokens, their probabilities renormalised.

    Law: 0 <= H <= ln count.
    """

    count: int

    def __post_init__(self) -> None:
        require(self, (self.count > 1, f"count={self.count}: an entropy needs at least 2 tokens"))

    def __call__(self, logits_BV: Float[Array, "B V"]) -> Float[Array, " B"]:
        return entropy_of_logits(jax.lax.top_k(logits_BV, self.count)[0])


@record
class Generated:
    """What was generated.

    Attributes:
      tokens_BN: the new tokens, the stop token included; 0 after a row's end.
      lengths_B: how many of them count; 0 for a row without a prompt.
      finished_B: whether the row ended with a stop token.
      entropy_BN: the statistic of the prediction that each token was chosen from, the stop token's
        included, in nats, float32; 0 after the end. None where no statistic was asked for.
    """

    tokens_BN: Int[Array, "B N"]
    lengths_B: Int[Array, " B"]
    finished_B: Bool[Array, " B"]
    entropy_BN: Float[Array, "B N"] | None
