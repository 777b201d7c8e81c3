"""A sigmoid for each expert, chosen with a correction that balances the load."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from research.core.parts import part, require
from research.models.moe.routing import Routing, Tokens, at, best, keep_groups, require_groups


@part
class SigmoidTopK:
    """s = sigmoid(logits); a token takes the k experts of largest s + correction.

    A group scores the sum of its two best corrected scores; only the best groups are open. The
    correction decides the choice and never enters the weights.

    Attributes:
      normalise: weights are s / (sum of s among the chosen + 1e-20), then times `scale`.
      scale: factor on the weights (`routed_scaling_factor`).
      groups, groups_kept: of group-limited routing.
      corrected: the layer holds `router_correction_E`.

    Source: DeepSeek-V3, arXiv 2412.19437, equations 13 to 16, and transformers'
    `DeepseekV3TopkRouter` and `Glm4MoeTopkRouter`, term by term.
    """

    breaks: ClassVar[tuple[str, ...]] = ()
    needs_logits: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = False

    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    corrected: bool = True

    def __post_init__(self) -> None:
        require(
            self,
            (
                1 <= self.groups_kept <= self.groups,
                f"groups_kept={self.groups_kept} must lie in 1..{self.groups}, the groups",
            ),
        )

    @property
    def needs_correction(self) -> bool:
        """Whether the layer holds a correction."""
        return self.corrected

    def require(self, num_experts: int, experts_per_token: int) -> None:
        """Refuse groups that do not fit the experts."""
        require_groups(self, self.groups, self.groups_kept, num_experts, experts_per_token)

    def route(
        self,
        logits_ME: jax.Array,
        experts_per_token: int,
        tokens: Tokens,
        correction_E: jax.Array | None = None,
    ) -> Routing:
        """Choose experts; see `Router`."""
        s_ME = jax.nn.sigmoid(logits_ME)
        corrected_ME = s_ME if correction_E is None else s_ME + correction_E
        open_ME = keep_groups(corrected_ME, self.groups, self.groups_kept, members=2)
        return weigh(s_ME, best(open_ME, experts_per_token), tokens, self.normalise, self.scale)


def weigh(
    s_ME: jax.Array, experts_MA: jax.Array, tokens: Tokens, normalise: bool, scale: float
) -> Routing:
    """Make the routing of chosen experts; the distribution is s over its sum (equation 19)."""
    weights_MA = at(s_ME, experts_MA)
    if normalise:
        weights_MA = weights_MA / (jnp.sum(weights_MA, axis=-1, keepdims=True) + 1e-20)
    kept_MA = jnp.broadcast_to(tokens.real_M[:, None], experts_MA.shape)
    return Routing(
        experts_MA=experts_MA,
        weights_MA=jnp.where(kept_MA, weights_MA * scale, 0.0),
        kept_MA=kept_MA,
        probability_ME=s_ME / (jnp.sum(s_ME, axis=-1, keepdims=True) + 1e-20),
        rows=tokens.rows,
    )
