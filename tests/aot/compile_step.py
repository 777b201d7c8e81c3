"""Compile one training step for hardware that is not here and print what came out, as JSON.

Run in a process of its own, because the compiler's settings are read when jax starts:
`python -m tests.aot.compile_step tpu|cuda splash|blockwise|cudnn|automatic`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    XLA_FLAGS="--xla_gpu_autotune_level=0" if "cuda" in sys.argv else "",
)

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from configs import layouts
from research.core.layout import Placement
from research.core.records import Batch
from research.models.architecture import Architecture
from research.models.attention.blockwise import Blockwise
from research.models.attention.cudnn import Cudnn
from research.models.attention.splash import Splash
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.objectives.cross_entropy import CrossEntropy

BACKENDS = {
    "splash": Splash(),
    "blockwise": Blockwise(),
    "cudnn": Cudnn(),
    "automatic": None,
}
NUM_ROWS, NUM_POSITIONS, NUM_EXAMPLES = 16, 1024, 3


def devices_of(platform: str) -> list:
    """Describe eight devices: a TPU v5e 2x4 slice, or eight H200."""
    if platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    target = Path(__file__).with_name("h200.txtpb").read_text()
    return topologies.get_topology_desc(
        platform="cuda", topology_name="h200", topology="1x1x8", target_config=target
    ).devices


def abstract_batch(rows: int = NUM_ROWS, positions: int = NUM_POSITIONS) -> Batch:
    """Give the shapes of a packed batch."""
    ints = jax.ShapeDtypeStruct((rows, positions), jnp.int32)
    return Batch(
        tokens_BT=ints,
        targets_BT=ints,
        weights_BT=jax.ShapeDtypeStruct(ints.shape, jnp.float32),
        positions_BT=ints,
        segments_BT=ints,
        ids_BZ=jax.ShapeDtypeStruct((rows, NUM_EXAMPLES), jnp.int32),
    )


def placed(tree: Any, shardings: Any) -> Any:
    """Give shapes with the shardings of the devices that are not here."""
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings
    )


def lowered_step(place: Placement, backend: Any) -> Any:
    """Lower value and gradient of the loss of a small Qwen3-style model, one layer in two local."""
    arch = Architecture(
        vocab_size=4096,
        model_dim=512,
        num_layers=4,
        num_heads=8,
        num_kv_heads=2,
        head_dim=128,
        ffw_dim=1536,
        query_key_norm=True,
        windows=(256, None, 256, None),
    )
    compute = Compute(dtype="bfloat16", attention=backend, remat="full", vocabulary_chunk=256)
    model = Transformer(arch, place, compute)

    def loss(params: Any, batch: Batch) -> jax.Array:
        total, _ = CrossEntropy()(model, params, batch)
        return total.sum / total.count

    params, batch = model.abstract(), abstract_batch()
    shardings = place.weights(params)
    step = jax.jit(jax.value_and_grad(loss), out_shardings=(place.replicated, shardings))
    return step.trace(placed(params, shardings), placed(batch, place.batch(batch)))


def main(platform: str, backend: str) -> None:
    """Print the facts that the tests assert."""
    place = layouts.fsdp().on(devices_of(platform))
    traced = lowered_step(place, BACKENDS[backend])
    lowered = traced.lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    facts: dict[str, Any] = {
        "platform": place.platform,
        "cudnn_calls": [line for line in text.splitlines() if "@__cudnn$" in line],
    }
    if backend != "cudnn":
        compiled = traced.lower().compile()
        program = compiled.as_text()
        facts |= {
            "splash_kernels": sum(
                "splash_mha" in x for x in program.splitlines() if "custom-call(" in x
            ),
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            "gathers": program.count("all-gather"),
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
