"""How much an example would move the weights: the effort score."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.core.protocols import Model, Tree, View
from research.core.records import Batch
from research.curriculum.gradients import ADAPTERS, by_row, has_target, require_targets


@part
class GradientNorm:
    """Score by || d L(x) / d theta' ||_2, L the mean loss over the trained targets, theta' the
    parameters named by `targets` (not nats).

    Attributes:
      targets: names of parameters; the factors `a` and `b` of all adapters, or, for a run without
        adapters, such as `("down_F_D",)` or `("final_norm_D",)`.

    Source: the effort score of DEALRec, Lin et al. 2024, arXiv 2401.17197; GraNd, Paul
    et al. 2021, arXiv 2107.07075.
    Law: >= 0; 0 where every target is certain.
    """

    targets: tuple[str, ...] = ADAPTERS

    views = (View(content="training"),)
    new_tokens = 0

    def __post_init__(self) -> None:
        require_targets(self)

    def score(
        self,
        model: Model,
        params: Tree,
        batches: tuple[Batch, ...],
        key_B: jax.Array,
        stop_ids: tuple[int, ...],
    ) -> jax.Array:
        """Give the norm of each row's gradient; NaN where a row has no trained target."""
        del key_B, stop_ids
        (batch,) = batches

        def norm(gradient: Tree) -> jax.Array:
            squares = [
                jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradient)
            ]
            return jnp.sqrt(jnp.sum(jnp.stack(squares)))

        norm_B = by_row(model, params, batch, self.targets, norm)
        return jnp.where(has_target(batch) > 0, norm_B, jnp.nan)
