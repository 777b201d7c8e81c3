"""How little the question helps with the answer: instruction-following difficulty."""

from __future__ import annotations

import jax

from research.core.parts import part
from research.core.protocols import Model, Tree, View
from research.core.records import Batch
from research.curriculum.estimators.teacher_forced_loss import mean_loss


@part
class Ifd:
    """Score by the ratio of two mean losses of the same answer (a number, not nats):

    IFD = mean_t -ln p(y*_t | x, y*_<t)  /  mean_t -ln p(y*_t | y*_<t)

    Below 1 the question helps; above 1 it misleads, and the authors drop such rows: `Window` does
    that by rank, `where(nats(Ifd()) < 1, nats(Ifd()), 0)` by value.

    Source: Li et al. 2023 (Cherry), arXiv 2308.12032; Superfiltering, arXiv 2402.00530,
    is the same by a small model: `ScoredBy(estimator=Ifd(), model=...)`.
    Law: the ratio of `TeacherForcedLoss` to the loss of the answer behind BOS alone.
    """

    views = (View(content="training"), View(content="answer"))
    new_tokens = 0

    def score(
        self,
        model: Model,
        params: Tree,
        batches: tuple[Batch, ...],
        key_B: jax.Array,
        stop_ids: tuple[int, ...],
    ) -> jax.Array:
        """Give the ratio for each row; NaN where it has no trained target."""
        del key_B, stop_ids
        asked, alone = batches
        return mean_loss(model, params, asked) / mean_loss(model, params, alone)
