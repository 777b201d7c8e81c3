"""The sparse feed-forward of a layer: route, dispatch, add the shared expert, say what happened."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from research.core.layout import Placement
from research.core.records import RouterStatistics
from research.core.weights import contract, value_of
from research.models.architecture import Architecture, Moe
from research.models.feedforward import FeedForward
from research.models.moe.bank import Experts
from research.models.moe.dispatch import Dispatch
from research.models.moe.routing import Routing, Tokens
from research.models.parameters import parameter


class MixtureOfExperts(nnx.Module):
    """sum_a weights_a expert_a(x), plus shared(x) where there is a shared expert.

    Router logits are float32 whatever the activations are.
    """

    router_D_E: nnx.Param
    router_bias_E: nnx.Param
    router_correction_E: nnx.Param

    def __init__(self, key: jax.Array, arch: Architecture, place: Placement):
        moe = arch.moe
        assert moe is not None
        self.arch, self.place = arch, place
        sizes: Mapping[str, int] = arch.sizes | {"E": moe.num_experts, "F": moe.expert_dim}
        for name in [*router_names(moe), *bank_names(arch)]:
            setattr(self, name, parameter(name, key, sizes, arch.init_std))
        if moe.shared_dim:
            self.shared = FeedForward(jax.random.fold_in(key, 0), arch, place, moe.shared_dim)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], tokens: Tokens, dispatch: Dispatch
    ) -> tuple[Float[Array, "B T D"], RouterStatistics]:
        """Give the layer's output, and what its router did.

        Raises:
          ValueError: the dispatch cannot serve the placement.
        """
        moe = self.arch.moe
        assert moe is not None
        dispatch.require(moe.num_experts, self.place)
        x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
        logits_ME = self._logits(x_MD)
        correction_E = None
        if moe.router.needs_correction:
            correction_E = jax.lax.stop_gradient(value_of(self.router_correction_E))
        routing = moe.router.route(logits_ME, moe.experts_per_token, tokens, correction_E)
        weights = {name: value_of(getattr(self, name)) for name in bank_names(self.arch)}
        experts = Experts(
            weights=weights, activation=self.arch.activation, platform=self.place.platform
        )
        out_MD, dropped_MA = dispatch(x_MD, routing, experts, self.place)
        out_BTD = self.place.constrain(out_MD.reshape(x_BTD.shape), "BTD")
        if moe.shared_dim:
            out_BTD = out_BTD + self.shared(x_BTD)
        share = moe.experts_per_token / moe.num_experts
        return out_BTD, statistics(logits_ME, routing, dropped_MA, tokens, share)

    def _logits(self, x_MD: jax.Array) -> Float[Array, "M E"]:
        moe = self.arch.moe
        assert moe is not None
        if not moe.router.needs_logits:
            return jnp.zeros((x_MD.shape[0], moe.num_experts), jnp.float32)
        logits_ME = contract("MD,DE->ME", x_MD.astype(jnp.float32), self.router_D_E)
        if moe.router_bias:
            logits_ME = logits_ME + value_of(self.router_bias_E).astype(jnp.float32)
        return logits_ME


def router_names(moe: Moe) -> list[str]:
    """Name the parameters of a layer's router."""
    return [
        *(["router_D_E"] if moe.router.needs_logits else []),
        *(["router_bias_E"] if moe.router_bias else []),
        *(["router_correction_E"] if moe.router.needs_correction else []),
    ]


def bank_names(arch: Architecture) -> list[str]:
    """Name the parameters that every expert has its own of."""
    products = (["gate"] if arch.ffw_gated else []) + ["up", "down"]
    kernels = {"gate": "gate_E_D_F", "up": "up_E_D_F", "down": "down_E_F_D"}
    biases = {"gate": "gate_bias_EF", "up": "up_bias_EF", "down": "down_bias_ED"}
    with_bias = arch.moe is not None and arch.moe.expert_bias
    return [kernels[p] for p in products] + ([biases[p] for p in products] if with_bias else [])


def statistics(
    logits_ME: jax.Array, routing: Routing, dropped_MA: jax.Array, tokens: Tokens, share: float
) -> RouterStatistics:
    """Add up what a router did over the real tokens of each row.

    Args:
      share: of the tokens that an expert gets at balanced load.
    """
    num_experts = logits_ME.shape[1]

    def rows(x: jax.Array) -> jax.Array:
        return x.reshape(tokens.rows, -1, *x.shape[1:])

    def total(x: jax.Array) -> jax.Array:
        real = tokens.real_M.reshape(-1, *([1] * (x.ndim - 1)))
        return rows(jnp.where(real, x, 0.0).astype(jnp.float32)).sum(axis=1)

    p_ME = routing.probability_ME
    log_p_ME = jnp.log(jnp.where(p_ME > 0, p_ME, 1.0))
    taken_MAE = routing.experts_MA[:, :, None] == jnp.arange(num_experts)
    load_ME = jnp.sum(taken_MAE & routing.kept_MA[:, :, None], axis=1)
    shortfall_ME = routing.shortfall_ME
    tokens_B = total(jnp.ones_like(tokens.real_M, jnp.float32))
    balanced_BE = None
    if shortfall_ME is not None:
        missing_BTE = rows(jnp.where(tokens.real_M[:, None], shortfall_ME, jnp.inf))
        balanced_BE = tokens_B[:, None] * quantile(missing_BTE, tokens_B, share)
    return RouterStatistics(
        load_BE=total(load_ME),
        probability_BE=total(p_ME),
        z_B=total(jnp.square(jax.nn.logsumexp(logits_ME, axis=-1))),
        entropy_B=jax.lax.stop_gradient(total(-jnp.sum(p_ME * log_p_ME, axis=-1))),
        dropped_B=total(jnp.sum(dropped_MA, axis=-1)),
        tokens_B=tokens_B,
        chosen_BTA=rows(jnp.where(routing.kept_MA, routing.experts_MA, -1)).astype(jnp.int32),
        balanced_BE=balanced_BE,
    )


def quantile(values_BTE: jax.Array, counts_B: jax.Array, share: float) -> Float[Array, "B E"]:
    """Give the value that `share` of each row's first `counts_B` smallest values lie below.

    Half way between the values on either side, so that exactly that share is reached; 0 for a row
    that has none. Values that do not count are +inf.
    """
    sorted_BTE = jnp.sort(values_BTE, axis=1)
    below_B = jnp.round(counts_B * share).astype(jnp.int32)
    last_B = jnp.maximum(counts_B.astype(jnp.int32) - 1, 0)
    under = jnp.take_along_axis(
        sorted_BTE, jnp.clip(below_B - 1, 0, last_B)[:, None, None], axis=1
    )[:, 0]
    over = jnp.take_along_axis(sorted_BTE, jnp.clip(below_B, 0, last_B)[:, None, None], axis=1)
    return jnp.where(counts_B[:, None] > 0, 0.5 * (under + over[:, 0]), 0.0)
