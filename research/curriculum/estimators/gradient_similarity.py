"""How much an example pulls the weights the way a validation set wants: influence."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from research.core.parts import part, require
from research.core.protocols import Model, Tree, View
from research.core.records import Batch, Total
from research.curriculum.gradients import ADAPTERS, by_row, has_target, require_targets, sketch


@part
class GradientSimilarity:
    """Score by the agreement of an example's gradient with the mean gradient of the guide rows.

    g(x) = P d L(x) / d theta', L the mean loss over the trained targets, theta' the parameters
    named by `targets`, P a random projection on `size` numbers; v = mean of g over the guide.

    cosine: g(x) . v / (|g(x)| |v|)      LESS, which so removes that short answers have large norms
    dot:    g(x) . v                     first-order influence of a step on x (TracIn, one term)

    What differs from LESS: the gradient is the plain one (its SGD form, not Adam's direction), at
    the present model instead of a sum over checkpoints of a warm-up (re-scoring every round walks
    along the run's own), one guide instead of several tasks, and P is a count sketch instead of
    dense random signs. DEFT's and DEALRec's influence goes through the inverse Hessian of a
    surrogate model; "dot" takes the identity for it, `ScoredBy` gives the surrogate.

    Attributes:
      guide: a few validation rows, a `Data`; never test rows.
      targets: as in `GradientNorm`.
      size: numbers that are kept of a gradient.
      seed: of the projection.

    Source: LESS, Xia et al. 2024, arXiv 2402.04333, sections 3 and 4; TracIn, Pruthi et al. 2020,
    arXiv 2002.08484.
    Law: -1 <= cosine <= 1; a guide of one row has cosine 1 with that row.
    """

    guide: Any
    targets: tuple[str, ...] = ADAPTERS
    size: int = 1024
    similarity: Literal["cosine", "dot"] = "cosine"
    seed: int = 0

    views = (View(content="training"),)
    new_tokens = 0

    def __post_init__(self) -> None:
        require_targets(self)
        require(
            self,
            (self.size >= 2, f"size={self.size}: expected at least 2 numbers of a gradient"),
            (
                self.similarity in ("cosine", "dot"),
                f"similarity={self.similarity!r}: choose 'cosine' or 'dot'",
            ),
            (
                hasattr(self.guide, "sources"),
                f"guide={self.guide!r} are no rows; give a Data of a few validation rows",
            ),
        )

    def direction(self, model: Model, params: Tree, batch: Batch) -> Total:
        """Add up the projected gradients of guide rows."""
        real_B = has_target(batch)
        summed = jnp.einsum("B,BR->R", real_B, self._projected(model, params, batch))
        return Total(sum=summed, count=jnp.sum(real_B))

    def score(
        self,
        model: Model,
        params: Tree,
        batches: tuple[Batch, ...],
        key_B: jax.Array,
        stop_ids: tuple[int, ...],
        guide: Total,
    ) -> jax.Array:
        """Compare each row with the guide; NaN where one of the two has no direction."""
        del key_B, stop_ids
        (batch,) = batches
        own_BR = self._projected(model, params, batch)
        mean_R = guide.sum / guide.count
        dot_B = own_BR @ mean_R
        if self.similarity == "cosine":
            dot_B = dot_B / (jnp.linalg.norm(own_BR, axis=1) * jnp.linalg.norm(mean_R))
        return jnp.where(has_target(batch) > 0, dot_B, jnp.nan)

    def _projected(self, model: Model, params: Tree, batch: Batch) -> jax.Array:
        def measure(gradient: Tree) -> jax.Array:
            return sketch(gradient, self.size, self.seed)

        return by_row(model, params, batch, self.targets, measure)
