"""Compile a layer of experts, forward and backward, for hardware that is not here.

Run in a process of its own, because the compiler's settings are read when jax starts:
`python -m tests.aot.compile_experts tpu|cuda dropless|exchanged`. Prints JSON.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from tests.aot.compile_step import devices_of  # sets the environment before jax starts

# isort: split
import jax
import jax.numpy as jnp
from flax import nnx

from configs import layouts
from research.core.layout import Placement
from research.models.architecture import Architecture, Moe
from research.models.moe.automatic import dispatch_for
from research.models.moe.experts import MixtureOfExperts
from research.models.moe.routing import Tokens
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.tuning.lora import Lora

NUM_ROWS, NUM_POSITIONS, WIDTH, EXPERTS, ACTIVE, EXPERT_WIDTH = 8, 256, 512, 64, 4, 256
LORA = Lora(rank=8, targets=("up_E_D_F", "down_E_F_D", "router_D_E"))


def lowered_layer(place: Placement) -> Any:
    """Lower the gradients of every weight, of factors beside them, and of the input."""
    arch = Architecture(
        vocab_size=8,
        model_dim=WIDTH,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        ffw_dim=1,
        moe=Moe(
            num_experts=EXPERTS,
            experts_per_token=ACTIVE,
            expert_dim=EXPERT_WIDTH,
            router=SoftmaxTopK(),
        ),
    )
    dispatch = dispatch_for(place)

    def layer() -> MixtureOfExperts:
        return MixtureOfExperts(jax.random.key(0), arch, place)

    graphdef, state = nnx.split(nnx.eval_shape(layer))

    def loss(params: Any, factors: Any, x_BTD: jax.Array, ids_M: jax.Array) -> jax.Array:
        tokens = Tokens(ids_M=ids_M, real_M=ids_M > 0, rows=NUM_ROWS)
        layer: Any = nnx.merge(graphdef, LORA.join(factors, params))
        return jnp.square(layer(x_BTD, tokens, dispatch)[0].astype(jnp.float32)).sum()

    def placed(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, jnp.bfloat16, sharding=sharding
            ),
            tree,
            shardings,
        )

    params = nnx.to_pure_dict(state)
    factors, _ = jax.eval_shape(LORA.split, params, jax.eval_shape(lambda: jax.random.key(0)))
    x_BTD = jax.ShapeDtypeStruct((NUM_ROWS, NUM_POSITIONS, WIDTH), jnp.bfloat16)
    ids_M = jax.ShapeDtypeStruct(
        (NUM_ROWS * NUM_POSITIONS,), jnp.int32, sharding=place.batch(x_BTD)
    )
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return gradients.lower(
        placed(params, place.weights(params)),
        placed(factors, place.weights(factors)),
        placed(x_BTD, place.batch(x_BTD)),
        ids_M,
    )


def main(platform: str, arrangement: str) -> None:
    """Compile and print what a test wants to know."""
    layout = layouts.expert(4, fsdp=2) if arrangement == "exchanged" else layouts.fsdp(8)
    place = layout.on(devices_of(platform))
    lowered = lowered_layer(place)
    text = lowered.compile().as_text()
    print(
        json.dumps(
            {
                "platform": place.platform,
                "ragged": lowered.as_text().count("ragged_dot"),
                "triton": lowered.as_text().count("__gpu$xla.gpu.triton"),
                "exchanges": len(re.findall(r"= .* all-to-all(?:-start)?\(", text)),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
