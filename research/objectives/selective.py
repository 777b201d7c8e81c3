"""Selective back-propagation: look at the whole batch, train on its hardest rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from research.core.parts import part, require
from research.core.protocols import Model, Objective
from research.core.records import Batch, Report, Total


@part
class Selective:
    """Minimise an objective over the rows of a (micro-)batch with the largest mean loss.

    A first pass without gradients gives every row its loss; the rows that are kept, and they alone,
    then go forward and backward. So a step costs rows * forward + kept * (forward + backward): at
    25 percent 58 % of a whole one (75 % where adapters alone are trained), while masking losses
    would save nothing. Budgets and records charge that.

    The number kept is fixed, so that shapes are. The published method keeps each example by chance,
    with the percentile of its loss among recent ones to the power beta; this is its case of large
    beta with the batch for a history, the same choice as ordered SGD's.

    Rows are kept whole: with packed data a row's mean loss is over its examples, and single
    examples cannot be chosen.

    Attributes:
      objective: what is minimised; it must report "loss_nats" and "tokens" for each example.
      keep_percent: how many of a hundred rows are kept, rounded up.

    Reported are the losses of all examples, as the first pass saw them; "kept_loss_nats" is the
    mean of what was trained on, its count those tokens.

    Source: Jiang et al. 2019, arXiv 1910.00762; the top of a batch: Kawaguchi & Lu 2020,
    arXiv 1907.04371; Shrivastava et al. 2016, arXiv 1604.03540.
    Law: at 100 percent it is the objective itself; the gradient is that of the kept rows alone.
    """

    objective: Objective
    keep_percent: int

    def __post_init__(self) -> None:
        require(
            self,
            (
                1 <= self.keep_percent <= 100,
                f"keep_percent={self.keep_percent}: expected 1 to 100 percent of the rows",
            ),
        )

    def num_kept(self, num_rows: int) -> int:
        """Give how many of a batch's rows are trained on."""
        return -(-self.keep_percent * num_rows // 100)

    def __call__(self, model: Model, params: Any, batch: Batch) -> tuple[Total, Report]:
        """Give the loss of the kept rows as (sum, count), and what was seen of all."""
        still = jax.lax.stop_gradient(params)
        _, seen = self.objective(model, still, batch)
        tokens_B = jnp.sum(seen.rows["tokens"], axis=1)
        mean_B = jnp.sum(seen.rows["loss_nats"], axis=1) / jnp.maximum(tokens_B, 1.0)
        ranked_B = jnp.where(jnp.isnan(mean_B), jnp.inf, mean_B)  # so that NaN is seen, not hidden
        ranked_B = jnp.where(tokens_B > 0, ranked_B, -jnp.inf)
        _, rows = jax.lax.top_k(ranked_B, self.num_kept(batch.tokens_BT.shape[0]))
        kept = jax.tree.map(lambda x: x[jnp.sort(rows)], batch)
        total, trained = self.objective(model, params, kept)
        totals = seen.totals | {"kept_loss_nats": trained.totals["loss_nats"]}
        return total, dataclasses.replace(seen, totals=totals, router=trained.router)
