"""Sparse upcycling: a dense model becomes a mixture of copies of its own feed-forwards."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from research.core.axes import declared
from research.models.architecture import Moe
from research.models.moe.experts import router_names
from research.models.parameters import parameter
from research.models.transformer import Params, Transformer


def upcycle(
    model: Transformer, params: Params, moe: Moe, key: jax.Array, router_std: float = 0.02
) -> tuple[Transformer, Params]:
    """Give a mixture of experts that starts as the dense model it comes from.

    Every expert is a copy of its layer's feed-forward; the router is drawn at random, so that
    training can tell the copies apart.

    Args:
      moe: `expert_dim` is the dense width; its weights must sum to 1 over a token's experts.
      router_std: of the router's normal draw; 0: every token is indifferent between the copies.

    Law: where a token's weights sum to 1, the logits are the dense model's.

    Raises:
      ValueError: the model has experts already, or the sizes do not fit.

    Source: Komatsuzaki et al. 2022, arXiv 2212.05055.
    """
    dense = model.arch
    problems = [
        *(["it has experts already"] if dense.moe is not None else []),
        *([f"expert_dim must be {dense.ffw_dim}"] if moe.expert_dim != dense.ffw_dim else []),
        *(["shared_dim must be 0, a copy more would change it"] if moe.shared_dim else []),
        *([f"expert_bias must be {dense.ffw_bias}"] if moe.expert_bias != dense.ffw_bias else []),
    ]
    moe.router.require(moe.num_experts, moe.experts_per_token)
    if problems:
        raise ValueError(f"this model cannot be upcycled to {moe}: {'; '.join(problems)}")
    arch = dataclasses.replace(dense, moe=moe)
    sparse = dataclasses.replace(model, arch=arch)
    origin = {
        layer: (stack.name, slot)
        for stage in dense.stages()
        for stack in stage
        for slot, layer in enumerate(stack.layers)
    }

    def layer_of(params: Params, layer: int, key: jax.Array) -> Params:
        name, slot = origin[layer]
        held = jax.tree.map(lambda leaf: leaf[slot], params["layers"][name])
        if not arch.kind(layer).sparse:
            return held
        key = jax.random.fold_in(key, layer)
        sizes = {"D": dense.model_dim, "E": moe.num_experts}
        router = {
            name: parameter(name, key, sizes, router_std).get_value() for name in router_names(moe)
        }
        copies = {
            _banked(name): jnp.broadcast_to(leaf, (moe.num_experts, *leaf.shape))
            for name, leaf in held["ffw"].items()
        }
        return held | {"ffw": router | copies}

    def build(params: Params, key: jax.Array) -> Params:
        layers = {
            stack.name: jax.tree.map(
                lambda *leaves: jnp.stack(leaves),
                *(layer_of(params, layer, key) for layer in stack.layers),
            )
            for stage in arch.stages()
            for stack in stage
        }
        dtype = model.compute.param_dtype
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params | {"layers": layers})

    shardings: Any = model.place.weights(sparse.abstract())
    return sparse, jax.jit(build, out_shardings=shardings)(params, key)


def _banked(name: str) -> str:
    """Name a feed-forward's parameter as one of a bank: `up_D_F` -> `up_E_D_F`."""
    letters = declared(name)
    if letters.is_kernel:
        return name.replace(f"_{letters.inputs}_", f"_E_{letters.inputs}_")
    return name.removesuffix(letters.outputs) + f"E{letters.outputs}"
