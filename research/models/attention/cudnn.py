"""NVIDIA's fused attention, given the boundaries of the examples."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.models.attention.visibility import Visibility


@part
class Cudnn:
    """cuDNN flash attention through `jax.nn.dot_product_attention`.

    That function has no argument for packed examples (sequence lengths know one example a row), so
    the whole visibility goes in as a mask, which XLA hands to cuDNN as a [B, 1, T, S] bias: exact,
    shared by all heads, and 2 T S bytes a row. `is_causal` repeats what the mask says, so that
    cuDNN skips the blocks above the diagonal.

    Attributes:
      implementation: "cudnn"; or "xla", the same call anywhere, which is how its laws are tested.
    """

    implementation: Literal["cudnn", "xla"] = "cudnn"

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
        reason = self.refusal(query_BTKGH, key_BSKH, soft_cap, sinks_KG)
        if reason is not None:
            raise ValueError(f"Cudnn: {reason}; use Blockwise")
        num_rows, num_queries, num_kv_heads, groups, width = query_BTKGH.shape
        mixed_BTNH = jax.nn.dot_product_attention(
            query_BTKGH.reshape(num_rows, num_queries, num_kv_heads * groups, width),
            key_BSKH,
            value_BSKH,
            mask=seen.mask()[:, None],
            scale=scale,
            is_causal=seen.ordered,
            implementation=self.implementation,
        )
        sees_BT = jnp.any(seen.mask(), axis=-1)
        mixed_BTKGH = mixed_BTNH.reshape(query_BTKGH.shape)
        return jnp.where(sees_BT[:, :, None, None, None], mixed_BTKGH, 0)

    def refusal(
        self,
        query_BTKGH: jax.Array,
        key_BSKH: jax.Array,
        soft_cap: float | None,
        sinks_KG: jax.Array | None,
    ) -> str | None:
        """Say why cuDNN cannot run these operands, or None. Source: cuDNN's support matrix."""
        width, lengths = query_BTKGH.shape[-1], (query_BTKGH.shape[1], key_BSKH.shape[1])
        if soft_cap is not None:
            return f"soft_cap={soft_cap}, but cuDNN attention has no soft-cap"
        if sinks_KG is not None:
            return "attention sinks were given, but cuDNN attention has none"
        if self.implementation == "cudnn" and query_BTKGH.dtype not in (jnp.bfloat16, jnp.float16):
            return f"dtype {query_BTKGH.dtype}, but cuDNN attention needs bfloat16 or float16"
        if width % 8 or width > 256:
            return f"head width {width}, but cuDNN attention needs a multiple of 8 up to 256"
        if any(length % 2 for length in lengths):
            return f"lengths {lengths}, but cuDNN attention with a mask needs even ones"
        return None
