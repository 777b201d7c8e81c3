"""The views of a pool that an estimator declares, rendered once and used every round."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from research.core.protocols import Estimator, Tree
from research.data.examples import Example
from research.data.pool import Pool
from research.models.architecture import Architecture
from research.models.flops import forward_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """What an estimator is shown of every example.

    Attributes:
      examples: for each declared view, the pool in that view.
      counts: tokens of each view of each example.
    """

    examples: tuple[tuple[Example, ...], ...]
    counts: Int[np.ndarray, "views X"]

    @property
    def longest(self) -> Int[np.ndarray, " X"]:
        """Give the tokens of each example's longest view."""
        return self.counts.max(axis=0)


def render_views(estimator: Estimator, pool: Pool) -> Views:
    """Show the whole pool in the estimator's views; they never change, so once a run is enough."""
    everyone = range(len(pool))
    examples = tuple(tuple(pool.views(everyone, view)) for view in estimator.views)
    counts = np.array([[len(example.tokens) for example in view] for view in examples])
    return Views(examples=examples, counts=counts)


def scoring_flops(
    estimator: Estimator, arch: Architecture, params: Tree, views: Views
) -> Float[np.ndarray, " X"]:
    """Give what it costs to score each example, analytically: padding is free, and an answer that
    ends early is charged in full.

    A forward pass over every view; where tokens are generated, over view and prefix together, with
    predictions at the prefix alone.
    """
    counts = views.counts
    if estimator.new_tokens is None:
        return np.zeros(counts.shape[1])
    if estimator.new_tokens == 0:
        return forward_flops(arch, params, counts).sum(axis=0)
    prefix = estimator.new_tokens
    return forward_flops(arch, params, counts + prefix, predictions=prefix).sum(axis=0)
