"""How a model is computed, not what it computes: dtypes, remat, attention, unrolling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research.core.layout import Placement
from research.core.parts import part, require
from research.models.attention.automatic import Automatic
from research.models.attention.sharded import Sharded
from research.models.attention.visibility import AttentionBackend
from research.models.moe.automatic import dispatch_for
from research.models.moe.dispatch import Dispatch

REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_without_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
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
        return jax.checkpoint(body, policy=REMAT_POLICIES[self.remat], prevent_cse=self.unroll)

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
