"""Losses that balance the load of experts, and an objective with some of them added."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.core.parts import part, require
from research.core.protocols import Model, Objective
from research.core.records import Batch, Output, Report, RouterStatistics, Total


class BalanceLoss(Protocol):
    """A scalar of what the routers of all layers did: a part.

    Attributes:
      name: under which its value is reported.
      weight: factor on it in the loss.
    """

    name: ClassVar[str]

    @property
    def weight(self) -> float: ...

    def __call__(self, seen: RouterStatistics) -> Float[Array, ""]:
        """Give the loss of layers stacked on L; padding counts for nothing."""
        ...


@part
class SwitchBalance:
    """sum_layers E sum_e f_e P_e: f_e is expert e's share of the assignments, P_e its mean
    probability, both over all tokens of the batch.

    Source: Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6; f is divided by
    experts_per_token, so that the minimum does not depend on it.
    Law: least at uniform load and probability, where every layer adds 1.
    """

    name: ClassVar[str] = "balance_switch"

    weight: float = 0.01

    def __call__(self, seen: RouterStatistics) -> jax.Array:
        """See `BalanceLoss`."""
        f_LE, p_LE = _shares(seen.load_BE.sum(-2)), _shares(seen.probability_BE.sum(-2))
        return jnp.sum(f_LE * p_LE) * f_LE.shape[-1]


@part
class HuggingFaceBalance:
    """E sum_e f_e P_e over the tokens of all layers, laid end to end.

    f_e is assignments a token, so that they add up to experts_per_token. What is balanced is the
    load of all layers together, which no single layer need have.

    Source: `load_balancing_loss_func` of transformers, with its attention mask.
    Law: at least experts_per_token, reached at uniform load and probability.
    """

    name: ClassVar[str] = "balance_hugging_face"

    weight: float = 0.001

    def __call__(self, seen: RouterStatistics) -> jax.Array:
        """See `BalanceLoss`."""
        num_tokens = jnp.maximum(jnp.sum(seen.tokens_B), 1.0)
        f_E = seen.load_BE.sum((0, 1)) / num_tokens
        p_E = seen.probability_BE.sum((0, 1)) / num_tokens
        return jnp.sum(f_E * p_E) * f_E.shape[-1]


@part
class SequenceBalance:
    """sum_layers mean_rows E sum_e f_e P_e: the balance of every row by itself.

    A packed row is balanced as a whole.

    Source: DeepSeek-V3, arXiv 2412.19437, equations 17 to 20.
    Law: least at uniform load and probability in every row, where every layer adds 1.
    """

    name: ClassVar[str] = "balance_sequence"

    weight: float = 1e-4

    def __call__(self, seen: RouterStatistics) -> jax.Array:
        """See `BalanceLoss`."""
        f_LBE, p_LBE = _shares(seen.load_BE), _shares(seen.probability_BE)
        row_LB = jnp.sum(f_LBE * p_LBE, axis=-1) * f_LBE.shape[-1]
        num_rows_L = jnp.sum(seen.tokens_B > 0, axis=-1)
        return jnp.sum(jnp.sum(row_LB, axis=-1) / jnp.maximum(num_rows_L, 1))


@part
class RouterZ:
    """sum_layers mean_tokens logsumexp(logits)^2: keeps router logits small.

    Source: Zoph et al. 2022 (ST-MoE), arXiv 2202.08906, equation 5.
    """

    name: ClassVar[str] = "router_z"

    weight: float = 0.001

    def __call__(self, seen: RouterStatistics) -> jax.Array:
        """See `BalanceLoss`."""
        num_tokens_L = jnp.maximum(jnp.sum(seen.tokens_B, axis=-1), 1.0)
        return jnp.sum(jnp.sum(seen.z_B, axis=-1) / num_tokens_L)


@part
class Balanced:
    """An objective plus sum_i weight_i loss_i of the routers; each is reported by its name.

    The losses are of a micro-batch and enter with its count, so that the step's quotient is the
    objective's mean plus their mean.

    Attributes:
      objective: what is minimised beside them.
      losses: parts of this file, at most one of a kind.
    """

    objective: Objective
    losses: tuple[Any, ...]

    def __post_init__(self) -> None:
        names = [loss.name for loss in self.losses]
        require(
            self,
            (bool(names), f"losses is empty; say {type(self.objective).__name__} itself"),
            (len(set(names)) == len(names), f"losses {names} repeat one; give one of a kind"),
        )

    def __call__(self, model: Model, params: Any, batch: Batch) -> tuple[Total, Report]:
        """Give the loss as (sum, count), and what was seen.

        Raises:
          ValueError: the model is dense.
        """
        output = model.apply(params, batch)
        if output.router is None:
            raise ValueError(
                "Balanced needs a mixture-of-experts model, and this one has no router; say the "
                "inner objective itself"
            )
        seen = _all_layers(output.router)
        applied = cast(Model, _Applied(model, batch, output))
        total, report = self.objective(applied, params, batch)
        values = {loss.name: loss(seen) for loss in self.losses}
        added = sum(loss.weight * values[loss.name] for loss in self.losses)
        reported = {
            name: jax.lax.stop_gradient(Total(sum=value * total.count, count=total.count))
            for name, value in values.items()
        }
        report = dataclasses.replace(report, totals=report.totals | reported)
        return Total(sum=total.sum + added * total.count, count=total.count), report


class _Applied:
    """A model whose output for one batch is there already; objectives apply it all the same."""

    def __init__(self, model: Model, batch: Batch, output: Output):
        self._model, self._batch, self._output = model, batch, output

    def apply(self, params: Any, batch: Batch) -> Output:
        """Give what is there, or apply the model to another batch."""
        return self._output if batch is self._batch else self._model.apply(params, batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _all_layers(router: dict[str, RouterStatistics]) -> RouterStatistics:
    """Lay the layers of all stacks end to end on L."""
    stacks = [dataclasses.replace(seen, chosen_BTA=None) for seen in router.values() if seen]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacks)


def _shares(sums: jax.Array) -> jax.Array:
    """Divide by the sum over experts; zeros where it is zero."""
    total = jnp.sum(sums, axis=-1, keepdims=True)
    return sums / jnp.where(total > 0, total, 1.0)
