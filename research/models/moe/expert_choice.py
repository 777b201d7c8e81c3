"""Experts choose their tokens: loads are equal by construction."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.models.moe.routing import Routing, Tokens


@part
class ExpertChoice:
    """p = softmax(logits) over experts; every expert takes the c tokens of largest p, times p.

    c = ceil(tokens x experts_per_token / num_experts) over the real tokens of the whole batch, so
    that a token is taken `experts_per_token` times on average, by none of the experts or by all.
    A slot is an expert: the routing has A = E.

    Source: Zhou et al. 2022, arXiv 2202.09368, section 3.2.
    Law: every expert has the same load.
    """

    breaks: ClassVar[tuple[str, ...]] = ("causality", "batch_invariance")
    needs_logits: ClassVar[bool] = True
    needs_correction: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = False

    def require(self, num_experts: int, experts_per_token: int) -> None:
        """Any sizes will do."""
        del num_experts, experts_per_token

    def route(
        self,
        logits_ME: jax.Array,
        experts_per_token: int,
        tokens: Tokens,
        correction_E: jax.Array | None = None,
    ) -> Routing:
        """Let the experts choose; see `Router`."""
        del correction_E
        num_tokens, num_experts = logits_ME.shape
        p_ME = jax.nn.softmax(logits_ME, axis=-1)
        most = min(-(-num_tokens * experts_per_token // num_experts), num_tokens)
        num_real = jnp.sum(tokens.real_M)
        capacity = jnp.minimum(-(-num_real * experts_per_token // num_experts), num_real)
        wanted_EM = jnp.where(tokens.real_M, jax.lax.stop_gradient(p_ME).T, -1.0)
        tokens_EC = jax.lax.top_k(wanted_EM, most)[1]
        taken_EC = jnp.broadcast_to(jnp.arange(most) < capacity, tokens_EC.shape)
        experts_E1 = jnp.arange(num_experts)[:, None]
        kept_EM = jnp.zeros((num_experts, num_tokens), bool).at[experts_E1, tokens_EC].set(taken_EC)
        return Routing(
            experts_MA=jnp.broadcast_to(jnp.arange(num_experts), logits_ME.shape),
            weights_MA=jnp.where(kept_EM.T, p_ME, 0.0),
            kept_MA=kept_EM.T,
            probability_ME=p_ME,
            rows=tokens.rows,
            num_kept=num_experts * most,
        )
