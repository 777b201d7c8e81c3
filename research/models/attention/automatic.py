"""Which back-end, where the user has not chosen one: by the mesh's platform and the operands."""

from __future__ import annotations

import jax

from research.core.parts import part
from research.models.attention.blockwise import Blockwise
from research.models.attention.cudnn import Cudnn
from research.models.attention.reference import Reference
from research.models.attention.splash import Splash
from research.models.attention.visibility import AttentionBackend, Visibility

CPU_BLOCK = 64  # measured on 2 cores, forward and backward: blocks of scores stay in the L2 cache
ACCELERATOR_BLOCK = 512  # enough work a loop step to hide its launch


@part
class Automatic:
    """The best back-end of a platform that admits the operands.

    Training rows take the platform's fused kernel where it admits them. Everything else (CPU,
    float32 on a GPU, cached decoding) is blockwise where there is more than one block of queries,
    and the reference where there is not (a decoding step).
    """

    platform: str

    def __call__(
        self,
        query_BTKGH: jax.Array,
        key_BSKH: jax.Array,
        value_BSKH: jax.Array,
        seen: Visibility,
        *,
        scale: float,
        soft_cap: float | None = None,
        sinks_KG: jax.Array | None = None,
    ) -> jax.Array:
        backend = self.choose(query_BTKGH, key_BSKH, seen, soft_cap=soft_cap, sinks_KG=sinks_KG)
        return backend(
            query_BTKGH,
            key_BSKH,
            value_BSKH,
            seen,
            scale=scale,
            soft_cap=soft_cap,
            sinks_KG=sinks_KG,
        )

    def choose(
        self,
        query_BTKGH: jax.Array,
        key_BSKH: jax.Array,
        seen: Visibility,
        *,
        soft_cap: float | None = None,
        sinks_KG: jax.Array | None = None,
    ) -> AttentionBackend:
        """Give the back-end for these operands."""
        if seen.ordered and self.platform == "tpu":
            splash = Splash()
            if splash.refusal(query_BTKGH, key_BSKH, seen) is None:
                return splash
        if seen.ordered and self.platform == "gpu":
            cudnn = Cudnn()
            if cudnn.refusal(query_BTKGH, key_BSKH, soft_cap, sinks_KG) is None:
                return cudnn
        block = CPU_BLOCK if self.platform == "cpu" else ACCELERATOR_BLOCK
        if query_BTKGH.shape[1] <= block:
            return Reference()
        return Blockwise(query_block=block, key_block=block)
