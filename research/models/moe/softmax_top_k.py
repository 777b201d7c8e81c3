"""Softmax over all experts, then the k most likely."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from research.core.parts import part, require
from research.models.moe.routing import Routing, Tokens, at, best, keep_groups, require_groups


@part
class SoftmaxTopK:
    """p = softmax(logits); a token takes the k experts of largest p.

    Attributes:
      normalise: weights are p over its sum among the chosen (Mixtral, Qwen3; the same as a softmax
        over the chosen logits, GPT-OSS); False: p itself (OLMoE).
      groups, groups_kept: experts stand in groups, and only those of the `groups_kept` groups with
        the largest p are open to a token (DeepSeek-V2's group-limited routing).

    Source: Shazeer et al. 2017, arXiv 1701.06538, section 2.1; DeepSeek-V2, arXiv 2405.04434,
    section 2.2.2.
    """

    breaks: ClassVar[tuple[str, ...]] = ()
    needs_logits: ClassVar[bool] = True
    needs_correction: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = False

    normalise: bool = True
    groups: int = 1
    groups_kept: int = 1

    def __post_init__(self) -> None:
        require(
            self,
            (
                1 <= self.groups_kept <= self.groups,
                f"groups_kept={self.groups_kept} must lie in 1..{self.groups}, the groups",
            ),
        )

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
        del correction_E
        p_ME = jax.nn.softmax(logits_ME, axis=-1)
        open_ME = keep_groups(p_ME, self.groups, self.groups_kept, members=1)
        experts_MA = best(open_ME, experts_per_token)
        weights_MA = at(p_ME, experts_MA)
        if self.normalise:
            weights_MA = weights_MA / jnp.sum(weights_MA, axis=-1, keepdims=True)
        kept_MA = jnp.broadcast_to(tokens.real_M[:, None], experts_MA.shape)
        return Routing(
            experts_MA=experts_MA,
            weights_MA=jnp.where(kept_MA, weights_MA, 0.0),
            kept_MA=kept_MA,
            probability_ME=p_ME,
            rows=tokens.rows,
        )
