"""TPU splash attention: Pallas kernels that skip the blocks a static mask hides."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from research.core.parts import part, require
from research.models.attention.visibility import Visibility

LANES = 128


@part
class Splash:
    """Splash attention over segment ids with a causal or local mask; for ordered rows only.

    The kernel compares indices where the rule compares positions: the same thing inside a segment
    that is ordered. Padding sees padding in the kernel, and is zeroed behind it. Under a mesh it
    has to run inside `Sharded`: the compiler cannot split a kernel.

    Attributes:
      query_block, key_block: positions a block, a multiple of 128; cut to a divisor of T.
      interpret: emulate the kernel on any platform; for tests.
    """

    query_block: int = 512
    key_block: int = 512
    interpret: bool = False

    def __post_init__(self) -> None:
        blocks = (self.query_block, self.key_block)
        require(
            self,
            (
                all(block > 0 and block % LANES == 0 for block in blocks),
                f"query_block, key_block = {blocks}: expected multiples of {LANES}",
            ),
        )

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
        reason = self.refusal(query_BTKGH, key_BSKH, seen)
        if reason is not None:
            raise ValueError(f"Splash: {reason}; use Blockwise")
        num_rows, num_queries, num_kv_heads, groups, width = query_BTKGH.shape
        num_heads = num_kv_heads * groups
        kernel = self._kernel(num_queries, num_heads, seen.window, soft_cap)
        scaled_BTKGH = (query_BTKGH.astype(jnp.float32) * scale).astype(query_BTKGH.dtype)
        query_BNTH = scaled_BTKGH.reshape(num_rows, num_queries, num_heads, width).swapaxes(1, 2)
        segments = kernels.SegmentIds(q=seen.query_segments_BT, kv=seen.key_segments_BS)
        sinks = None if sinks_KG is None else sinks_KG.astype(jnp.float32).reshape(num_heads)
        mixed_BNTH: Any = jax.vmap(kernel, in_axes=(0, 0, 0, 0, None))(
            query_BNTH, key_BSKH.swapaxes(1, 2), value_BSKH.swapaxes(1, 2), segments, sinks
        )
        mixed_BTKGH = mixed_BNTH.swapaxes(1, 2).reshape(query_BTKGH.shape)
        return jnp.where((seen.query_segments_BT > 0)[:, :, None, None, None], mixed_BTKGH, 0)

    def refusal(self, query_BTKGH: jax.Array, key_BSKH: jax.Array, seen: Visibility) -> str | None:
        """Say why the kernel cannot run these operands, or None."""
        num_queries, num_keys = query_BTKGH.shape[1], key_BSKH.shape[1]
        if not seen.ordered:
            return "queries and keys are not the same ordered tokens (cached decoding)"
        if num_queries != num_keys or num_queries % LANES:
            return f"T={num_queries}, S={num_keys}; expected one length, a multiple of {LANES}"
        return None

    def _kernel(
        self, length: int, num_heads: int, window: int | None, soft_cap: float | None
    ) -> kernels.SplashAttentionKernel:
        query_block = math.gcd(length, self.query_block)
        key_block = math.gcd(length, self.key_block)
        mask = (
            masks.CausalMask((length, length))
            if window is None
            else masks.LocalMask((length, length), window_size=(window - 1, 0), offset=0)
        )
        return kernels.make_splash_mha(
            masks.MultiHeadMask([mask] * num_heads),
            block_sizes=kernels.BlockSizes(
                block_q=query_block,
                block_kv=key_block,
                block_q_dkv=query_block,
                block_kv_dkv=key_block,
                block_q_dq=query_block,
                block_kv_dq=key_block,
            ),
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=soft_cap,
            interpret=self.interpret,
        )
