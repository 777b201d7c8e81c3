"""Experts by a hash of the token: no parameters, no gradient, nothing to collapse."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.models.moe.routing import Routing, Tokens, best


@part
class Hashed:
    """A token takes the k experts whose hash with its id is largest, each with weight 1/k.

    Attributes:
      seed: of the hash.

    Source: Roller et al. 2021, arXiv 2106.04426 (random hashing); the mixing is the finaliser of
    MurmurHash3.
    """

    breaks: ClassVar[tuple[str, ...]] = ()
    needs_logits: ClassVar[bool] = False
    needs_correction: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = False

    seed: int = 0

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
        """Hash token ids; see `Router`."""
        del correction_E
        num_experts = logits_ME.shape[1]
        ids_M1 = tokens.ids_M.astype(jnp.uint32)[:, None]
        mixed_ME = _mix(_mix(ids_M1 + jnp.uint32(self.seed)) ^ _mix(jnp.arange(num_experts) + 1))
        experts_MA = best((mixed_ME >> 8).astype(jnp.float32), experts_per_token)
        kept_MA = jnp.broadcast_to(tokens.real_M[:, None], experts_MA.shape)
        taken_ME = jnp.any(experts_MA[:, :, None] == jnp.arange(num_experts), axis=1)
        return Routing(
            experts_MA=experts_MA,
            weights_MA=jnp.where(kept_MA, 1.0 / experts_per_token, 0.0),
            kept_MA=kept_MA,
            probability_ME=taken_ME / experts_per_token,
            rows=tokens.rows,
        )


def _mix(x: jax.Array) -> jax.Array:
    """Spread the bits of 32-bit integers."""
    x = x.astype(jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
