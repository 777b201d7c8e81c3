"""Balancing without a loss: the correction of a router, moved between steps from what it did.

Both parts are pure functions of arrays, called outside the gradient. They take what `Router
Statistics.summed` gives, of any leading L: the corrections of a whole stack move at once.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.core.parts import part, require
from research.core.records import RouterStatistics


class Balancing(Protocol):
    """How the selection bias of a router follows its load: a part."""

    def __call__(
        self, correction_E: Float[Array, "*L E"], seen: RouterStatistics
    ) -> Float[Array, "*L E"]:
        """Give the corrections of the next step from what all rows of this one did."""
        ...


@part
class LossFree:
    """correction_e += rate x sign(mean load - load_e).

    Attributes:
      rate: how far a correction moves in a step, in units of the router's score.

    Source: Wang et al. 2024, arXiv 2408.15664, algorithm 1; DeepSeek-V3, arXiv 2412.19437,
    section 2.1.2 (rate 0.001).
    Law: at equal loads nothing moves.
    """

    rate: float = 1e-3

    def __post_init__(self) -> None:
        require(self, (self.rate > 0, f"rate={self.rate} must be positive"))

    def __call__(self, correction_E: jax.Array, seen: RouterStatistics) -> jax.Array:
        """Move each correction one step; see `Balancing`."""
        load_E = jnp.sum(seen.load_BE, axis=-2)
        lacking_E = jnp.mean(load_E, axis=-1, keepdims=True) - load_E
        return correction_E + self.rate * jnp.sign(lacking_E)


@part
class QuantileBalance:
    """correction = memory x correction + (1 - memory) x (the quantile that balances, centred).

    `QuantileBalanced` says for every row which correction gives each expert its share of that row;
    rows are averaged by their tokens.

    Attributes:
      memory: how much of the old correction stays; 0: the last step's solution alone.

    Source: Kimi K3 technical report, section 2.3.3; the average over parts of a batch, and the
    memory: NVIDIA Megatron-LM, pull request 5349.
    """

    memory: float = 0.0

    def __post_init__(self) -> None:
        require(self, (0 <= self.memory < 1, f"memory={self.memory} must lie in [0, 1)"))

    def __call__(self, correction_E: jax.Array, seen: RouterStatistics) -> jax.Array:
        """Solve for the correction; see `Balancing`.

        Raises:
          ValueError: the router does not say what would balance it.
        """
        if seen.balanced_BE is None:
            raise ValueError(
                "QuantileBalance needs the router QuantileBalanced, which says what would balance "
                "it; this one does not: choose LossFree, or that router"
            )
        tokens = jnp.sum(seen.tokens_B, axis=-1)[..., None]
        solved_E = jnp.sum(seen.balanced_BE, axis=-2) / jnp.maximum(tokens, 1.0)
        solved_E = solved_E - jnp.mean(solved_E, axis=-1, keepdims=True)
        solved_E = jnp.where(tokens > 0, solved_E, correction_E)
        return self.memory * correction_E + (1.0 - self.memory) * solved_E
