"""What a router is given, what it decides, and what every router promises."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from research.core.parts import require
from research.core.records import record


@record
class Tokens:
    """The tokens to be routed, row by row, flattened: M = B x T.

    Attributes:
      ids_M: token ids.
      real_M: whether it is a token at all; padding is assigned to no expert.
      key: where noise comes from; None: there is none.
      rows: B.
    """

    ids_M: Int[Array, " M"]
    real_M: Bool[Array, " M"]
    key: Array | None = None
    rows: int = dataclasses.field(metadata={"static": True})


@record
class Routing:
    """Which experts each token takes, and with which weights.

    Attributes:
      experts_MA: an expert a slot; distinct among a token's kept ones.
      weights_MA: factor on the expert's output, float32, differentiable; 0 where not kept.
      kept_MA: whether the slot is used.
      probability_ME: the router's distribution over experts (differentiable), for statistics.
      shortfall_ME: what would have to be added to an expert's score for the token to take it;
        only where the router balances by it.
      rows: B; tokens lie row by row.
      num_kept: how many slots can be kept at most, over all tokens; None: all of them.
    """

    experts_MA: Int[Array, "M A"]
    weights_MA: Float[Array, "M A"]
    kept_MA: Bool[Array, "M A"]
    probability_ME: Float[Array, "M E"]
    shortfall_ME: Float[Array, "M E"] | None = None
    rows: int = dataclasses.field(metadata={"static": True})
    num_kept: int | None = dataclasses.field(default=None, metadata={"static": True})


class Router(Protocol):
    """How experts are chosen: a part.

    Attributes:
      breaks: which laws it breaks, of "causality" (what a token gets depends on later tokens) and
        "batch_invariance" (it depends on other rows). Scoring and cached decoding refuse those.
      needs_logits: whether it has logits at all, so that the layer has a router kernel.
      needs_correction: whether the choice adds `router_correction_E`, which is balanced from
        outside the gradient.
      needs_noise: whether training gives it a key.
    """

    breaks: ClassVar[tuple[str, ...]]
    needs_logits: ClassVar[bool]
    needs_noise: ClassVar[bool]

    @property
    def needs_correction(self) -> bool: ...

    def require(self, num_experts: int, experts_per_token: int) -> None:
        """Refuse sizes that this router cannot serve.

        Raises:
          ValueError: with the sizes and what to change.
        """
        ...

    def route(
        self,
        logits_ME: Float[Array, "M E"],
        experts_per_token: int,
        tokens: Tokens,
        correction_E: Float[Array, " E"] | None = None,
    ) -> Routing:
        """Choose experts.

        Args:
          logits_ME: float32.
          correction_E: added to the scores for the choice alone, never to the weights.
        """
        ...


def best(scores_ME: jax.Array, count: int) -> Int[Array, "M A"]:
    """Give the experts of the `count` largest scores, largest first, of equal ones the first."""
    return jax.lax.top_k(jax.lax.stop_gradient(scores_ME), count)[1]


def at(scores_ME: jax.Array, experts_MA: jax.Array) -> Float[Array, "M A"]:
    """Give the scores of the chosen experts."""
    return jnp.take_along_axis(scores_ME, experts_MA, axis=1)


def keep_groups(scores_ME: jax.Array, groups: int, kept: int, members: int) -> jax.Array:
    """Set the scores outside a token's best groups to -inf.

    Experts stand in `groups` groups of neighbours; a group scores the sum of its `members` best.
    """
    if kept == groups:
        return scores_ME
    num_tokens, num_experts = scores_ME.shape
    by_group = scores_ME.reshape(num_tokens, groups, num_experts // groups)
    top = jax.lax.top_k(by_group, min(members, by_group.shape[2]))[0].sum(axis=-1)
    open_MG = jnp.any(best(top, kept)[:, :, None] == jnp.arange(groups), axis=1)
    return jnp.where(open_MG[:, :, None], by_group, -jnp.inf).reshape(num_tokens, num_experts)


def require_groups(
    router: object, groups: int, kept: int, num_experts: int, experts_per_token: int
) -> None:
    """Refuse groups that do not divide the experts, or leave too few of them open."""
    require(
        router,
        (
            num_experts % groups == 0,
            f"groups={groups} does not divide num_experts={num_experts}; choose a divisor",
        ),
        (
            experts_per_token <= num_experts // groups * kept,
            f"experts_per_token={experts_per_token}, but groups_kept={kept} of groups={groups} "
            f"leave {num_experts // groups * kept} of {num_experts} experts open; keep more groups",
        ),
    )
