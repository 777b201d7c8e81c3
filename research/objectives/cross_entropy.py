"""Cross-entropy: the negative log-likelihood of the trained targets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from research.core.parts import part
from research.core.protocols import Model
from research.core.records import Batch, Report, Total, sum_by_example, summed
from research.core.vocabulary import token_statistics


@part
class CrossEntropy:
    """Minimise sum_t w_t (-ln p(target_t)) / sum_t w_t, the quotient taken by the step, globally.

    Attributes:
      entropy: also report the entropy of every trained prediction (the free curriculum signal).

    Law: targets of weight 0 change nothing; packed = unpacked; micro-batches add up to the batch.
    """

    entropy: bool = True

    def __call__(self, model: Model, params: Any, batch: Batch) -> tuple[Total, Report]:
        """Give the loss as (sum, count) in nats, and sums over the batch and per example."""
        output = model.apply(params, batch)
        logprob_BT, entropy_BT = token_statistics(output, batch.targets_BT)
        weights_BT = batch.weights_BT
        seen = {"loss_nats": -logprob_BT} | ({"entropy_nats": entropy_BT} if self.entropy else {})
        sums_BT = {
            name: jnp.where(weights_BT > 0, weights_BT * values_BT, 0.0)
            for name, values_BT in seen.items()
        }
        count = jnp.sum(weights_BT)
        totals = {name: Total(sum=jnp.sum(v_BT), count=count) for name, v_BT in sums_BT.items()}
        rows = {name: sum_by_example(v_BT, batch) for name, v_BT in sums_BT.items()}
        rows |= {"id": batch.ids_BZ, "tokens": sum_by_example(weights_BT, batch)}
        router = summed(output.router)
        report = jax.lax.stop_gradient(Report(totals=totals, rows=rows, router=router))
        return totals["loss_nats"], report
