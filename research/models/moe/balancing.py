"""Balancing without a loss: the correction of a router, moved between steps by what it did.

Both parts are pure functions of arrays, called outside the gradient. What they take adds over rows,
micro-batches and devices; it may have any leading L, so that a whole stack moves at once.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.core.parts import part, require
from research.core.records import Total


class Balancing(Protocol):
    """How the selection bias of a router follows its load: a part.

    Attributes:
      reads: the total of the step's report that it is given.
    """

    reads: ClassVar[str]

    def __call__(self, correction_E: Float[Array, "*L E"], seen: Total) -> Float[Array, "*L E"]:
        """Give the corrections of the next step from the total that it reads."""
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

    reads: ClassVar[str] = "router_load"

    rate: float = 1e-3

    def __post_init__(self) -> None:
        require(self, (self.rate > 0, f"rate={self.rate} must be positive"))

    def __call__(self, correction_E: jax.Array, seen: Total) -> jax.Array:
        """Move each correction one step; `seen` sums `RouterStatistics.load_BE`."""
        lacking_E = jnp.mean(seen.sum, axis=-1, keepdims=True) - seen.sum
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

    reads: ClassVar[str] = "router_balanced"

    memory: float = 0.0

    def __post_init__(self) -> None:
        require(self, (0 <= self.memory < 1, f"memory={self.memory} must lie in [0, 1)"))

    def __call__(self, correction_E: jax.Array, seen: Total) -> jax.Array:
        """Solve for the correction; `seen` sums `RouterStatistics.balanced_BE`."""
        solved_E = seen.sum / jnp.maximum(seen.count, 1.0)
        solved_E = solved_E - jnp.mean(solved_E, axis=-1, keepdims=True)
        solved_E = jnp.where(seen.count > 0, solved_E, correction_E)
        return self.memory * correction_E + (1.0 - self.memory) * solved_E
