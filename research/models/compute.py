"""How a model is computed, not what it computes: dtypes, remat, attention, unrolling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from research.core.layout import HOST, Placement
from research.core.parts import part, require
from research.models.attention.automatic import Automatic
from research.models.attention.sharded import Sharded
from research.models.attention.visibility import AttentionBackend
from research.models.moe.automatic import dispatch_for
from research.models.moe.dispatch import Dispatch

LAYER_INPUT, ATTENTION = "layer_input", "attention"  # names of activations that policies keep
policies = jax.checkpoint_policies
# What a layer keeps for its backward pass besides its input, which every policy keeps.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,  # everything that the backward pass reads
    "dots": policies.dots_saveable,  # all products, those of attention's scores too
    "dots_without_batch": policies.dots_with_no_batch_dims_saveable,  # products with weights
    "attention": policies.save_only_these_names(ATTENTION),  # what heads give; scores run once
    "full": policies.nothing_saveable,  # nothing: the layer runs twice
    # Nothing on the device: the input waits in the host's memory, and the layer runs twice.
    "offload": policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst=HOST,
    ),
    # The input and what heads give wait in the host's memory.
    "offload_attention": policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT, ATTENTION],
        offload_src="device",
        offload_dst=HOST,
    ),
    # Products with weights wait in the host's memory, the input stays.
    "offload_dots": policies.offload_dot_with_no_batch_dims("device", HOST),
}


@part
class Compute:
    """A compute policy.

    Attributes:
      dtype: of activations and products; norms, softmax and loss are float32 whatever it says.
      param_dtype: of stored weights.
      attention: the back-end; None takes the best one for the mesh's platform.
      remat: which activations a layer keeps for the backward pass, by name (REMAT_POLICIES).
      vocabulary_chunk: positions a row whose logits exist at once; None: all.
      scoring_rows: rows that the curriculum's scorer runs at once; changes no score.
      scoring_refill: while the scorer decodes, a row that has ended makes room for another; False:
        each batch is decoded to its longest answer. Changes no score.
      unroll: run layers as separate programs instead of one scan.
      dispatch: how tokens reach their experts; None: dropless, over the mesh where it has an axis
        for experts.
      scoring_dispatch: that of scoring, evaluation and decoding, which refuse a dispatch that makes
        rows depend on one another; None: as in training.
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    attention: AttentionBackend | None = None
    remat: str = "none"
    vocabulary_chunk: int | None = None
    unroll: bool = False
    scoring_rows: int = 32
    scoring_refill: bool = True
    dispatch: Dispatch | None = None
    scoring_dispatch: Dispatch | None = None

    def __post_init__(self) -> None:
        require(
            self,
            (self.dtype in ("float32", "bfloat16"), f"dtype={self.dtype!r}: float32 or bfloat16"),
            (
                self.param_dtype in ("float32", "bfloat16"),
                f"param_dtype={self.param_dtype!r}: float32 or bfloat16",
            ),
            (self.scoring_rows > 0, f"scoring_rows={self.scoring_rows} must be positive"),
            (
                self.remat in REMAT_POLICIES,
                f"remat={self.remat!r} is unknown; choose from {sorted(REMAT_POLICIES)}",
            ),
            (
                self.vocabulary_chunk is None or self.vocabulary_chunk > 0,
                f"vocabulary_chunk={self.vocabulary_chunk} must be positive, or None",
            ),
        )

    def attention_on(self, place: Placement) -> AttentionBackend:
        """Give the attention back-end for a placement (never for the machine that compiles)."""
        backend = self.attention or Automatic(platform=place.platform)
        return backend if place.mesh.size == 1 else Sharded(backend, place)

    def dispatch_on(self, place: Placement) -> Dispatch:
        """Give the dispatch of experts for a placement."""
        return self.dispatch or dispatch_for(place)

    def rematerialise(self, body: Callable) -> Callable:
        """Wrap a layer so that its backward pass keeps what the policy names."""
        if self.remat == "none":
            return body

        def named(x: jax.Array, layer: Any) -> Any:
            return body(checkpoint_name(x, LAYER_INPUT), layer)

        return jax.checkpoint(named, policy=REMAT_POLICIES[self.remat], prevent_cse=self.unroll)

    def require_memory(self, place: Placement) -> None:
        """Refuse to offload where devices cannot address the host's memory.

        Raises:
          ValueError: with the kinds of memory that there are.
        """
        if self.remat.startswith("offload"):
            place.require_host_memory(f"remat={self.remat!r}")

    def repeat(
        self, body: Callable, x: jax.Array, layers: Any, count: int
    ) -> tuple[jax.Array, Any]:
        """Apply `body` to each slice of `layers` in turn: a scan, or unrolled."""
        if not self.unroll:
            return jax.lax.scan(body, x, layers)
        kept = []
        for index in range(count):
            x, seen = body(x, jax.tree.map(lambda leaf: leaf[index], layers))  # noqa: B023
            kept.append(seen)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)
