"""Compile a gradient for one TPU chip under several remat policies; print its memory as JSON.

Run in a process of its own, because the compiler's settings are read when jax starts:
`python -m tests.aot.compile_remat full offload`.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax

from configs import layouts
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.objectives.cross_entropy import CrossEntropy
from research.plan.topologies import parse_topology
from tests.aot.compile_step import abstract_batch, placed

ROWS, TOKENS = 8, 2048
ARCH = Architecture(
    vocab_size=1024,
    model_dim=1024,
    num_layers=8,
    num_heads=8,
    num_kv_heads=8,
    head_dim=128,
    ffw_dim=2048,
)


def main() -> None:
    """Print {policy: [bytes on the device, bytes on the host]} of what is made and dropped."""
    place = layouts.single().on(parse_topology("v5e:2x2").devices()[:1])
    found = {}
    for remat in sys.argv[1:]:
        compute = Compute(remat=remat, dtype="bfloat16", vocabulary_chunk=256)
        model = Transformer(ARCH, place, compute)

        def loss(params, batch, model=model):
            return CrossEntropy()(model, params, batch)[0].sum

        params, batch = model.abstract(), abstract_batch(ROWS, TOKENS)
        params = placed(params, place.weights(params))
        batch = placed(batch, place.batch(batch))
        memory = jax.jit(jax.grad(loss)).lower(params, batch).compile().memory_analysis()
        found[remat] = [memory.temp_size_in_bytes, memory.host_temp_size_in_bytes]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
