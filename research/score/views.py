"""The views of a pool that an estimator declares, rendered once and used every round."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from research.core.protocols import Differentiating, Estimator, Tree
from research.curriculum.gradients import chosen
from research.data.examples import Example
from research.data.pool import Pool
from research.models.architecture import Architecture
from research.models.flops import forward_flops, training_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """What an estimator is shown of every example.

    Attributes:
      examples: for each declared view, the pool in that view.
      counts: tokens of each view of each example that the model is fed; 0 where it is not.
    """

    examples: tuple[tuple[Example, ...], ...]
    counts: Int[np.ndarray, "views X"]

    @functools.cached_property
    def longest(self) -> Int[np.ndarray, " X"]:
        """Give the tokens of each example's longest view."""
        sizes = [[len(example.tokens) for example in view] for view in self.examples]
        return np.array(sizes).max(axis=0)


def render_views(estimator: Estimator, pool: Pool) -> Views:
    """Show the whole pool in the estimator's views; they never change, so once a run is enough."""
    everyone = range(len(pool))
    examples = tuple(tuple(pool.views(everyone, view)) for view in estimator.views)
    counts = np.array(
        [
            [len(example.tokens) * view.is_fed for example in shown]
            for view, shown in zip(estimator.views, examples, strict=True)
        ]
    )
    return Views(examples=examples, counts=counts)


def scoring_flops(
    estimator: Estimator, arch: Architecture, params: Tree, views: Views
) -> Float[np.ndarray, " X"]:
    """Give what it costs to score each example, analytically: padding is free, and an answer that
    ends early is charged in full.

    A forward pass over every view that is fed; where tokens are generated, over view and prefix
    together, with predictions at the prefix alone; where gradients are taken, forward and backward.
    """
    counts = views.counts
    if isinstance(estimator, Differentiating):
        kept = chosen(params, estimator.targets)
        return training_flops(arch, params, kept, counts).sum(axis=0)
    if estimator.new_tokens is None:
        return np.zeros(counts.shape[1])
    if estimator.new_tokens == 0:
        return forward_flops(arch, params, counts).sum(axis=0)
    prefix = estimator.new_tokens
    flops = forward_flops(arch, params, counts + prefix, predictions=prefix)
    return np.where(counts > 0, flops, 0.0).sum(axis=0)


def guide_flops(
    estimator: Estimator, arch: Architecture, params: Tree, guide: Views | None
) -> float:
    """Give what it costs to ask the guide rows once, as every scoring of them does."""
    return 0.0 if guide is None else float(scoring_flops(estimator, arch, params, guide).sum())
