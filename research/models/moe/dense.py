"""Every expert sees every token: the reference that other dispatches agree with."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from research.core.layout import Placement
from research.core.parts import part
from research.models.moe.bank import Experts
from research.models.moe.routing import Routing


@part
class Dense:
    """out = sum_e w_e expert_e(x), with w_e = 0 for experts that were not chosen.

    Costs num_experts / experts_per_token times what is needed, and memory likewise.
    """

    breaks: ClassVar[tuple[str, ...]] = ()

    def require(self, num_experts: int, place: Placement) -> None:
        """Any placement will do."""
        del num_experts, place

    def __call__(
        self, x_MD: jax.Array, routing: Routing, experts: Experts, place: Placement
    ) -> tuple[jax.Array, jax.Array]:
        """Run all experts on all tokens; see `Dispatch`."""
        del place
        y_EMD = experts.every(x_MD)
        chosen_MAE = routing.experts_MA[:, :, None] == jnp.arange(y_EMD.shape[0])
        weights_ME = jnp.sum(jnp.where(chosen_MAE, routing.weights_MA[:, :, None], 0.0), axis=1)
        out_MD = jnp.einsum("EMD,ME->MD", y_EMD, weights_ME.astype(y_EMD.dtype))
        return out_MD, jnp.zeros_like(routing.kept_MA)
