"""Gradients of single rows for a chosen few parameters: what influence and effort are made of."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.core.parts import require
from research.core.protocols import Model, Tree
from research.core.records import Batch, sum_by_example
from research.core.vocabulary import token_statistics

ADAPTERS = ("a", "b")  # the factors of every low-rank weight


def require_targets(owner: Any) -> None:
    """Check the `targets` of an estimator of gradients."""
    require(owner, (bool(owner.targets), "targets is empty; name parameters, or 'a' and 'b'"))


def chosen(params: Tree, targets: tuple[str, ...]) -> Tree:
    """Keep the leaves of a tree whose path names one of `targets`; the others are None.

    A path is the keys of the parameter tree, and below an adapted weight `base`, `a` and `b`, of
    which `b` has the adapter's scale in it.

    Raises:
      ValueError: a target matches nothing; it lists what there is.
    """
    names = {name for path, _ in jax.tree_util.tree_leaves_with_path(params) for name in _of(path)}
    if missing := [target for target in targets if target not in names]:
        adapters = " (the run trains no adapters)" if set(missing) & set(ADAPTERS) else ""
        raise ValueError(
            f"targets {missing} match no parameter{adapters}; there are "
            f"{sorted(name for name in names if not name.isdigit())}"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if set(_of(path)) & set(targets) else None, params
    )


def by_row(
    model: Model,
    params: Tree,
    batch: Batch,
    targets: tuple[str, ...],
    measure: Callable[[Tree], Any],
) -> Any:
    """Give `measure(gradient of a row's mean loss)` of every row, stacked.

    One row after the other: a single gradient exists at a time. Rows must not be split over
    devices; the scorer sees to it.
    """
    kept = chosen(params, targets)

    def loss(kept: Tree, row: Batch) -> Array:
        joined = jax.tree.map(
            lambda new, old: old if new is None else new, kept, params, is_leaf=_is_none
        )
        logprob_BT, _ = token_statistics(model.apply(joined, row), row.targets_BT)
        weights_BT = row.weights_BT
        total = jnp.sum(jnp.where(weights_BT > 0, -logprob_BT * weights_BT, 0.0))
        return total / jnp.maximum(jnp.sum(weights_BT), 1.0)

    def one(row: Batch) -> Any:
        return measure(jax.grad(loss)(kept, jax.tree.map(lambda x: x[None], row)))

    return jax.lax.map(one, batch)


def has_target(batch: Batch) -> Float[Array, " B"]:
    """Give 1 for rows with a trained target, 0 for padding."""
    return jnp.float32(jnp.sum(sum_by_example(batch.weights_BT, batch), axis=1) > 0)


def sketch(gradient: Tree, size: int, seed: int) -> Float[Array, " {size}"]:
    """Project a gradient on `size` numbers: each element is added, with a random sign, to one.

    Law: inner products are kept in expectation, with variance of about |x|^2 |y|^2 / size.
    Source: the count sketch, Charikar et al. 2002; as a random projection of features, Weinberger
    et al. 2009, arXiv 0902.2206.
    """
    total = jnp.zeros(size, jnp.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32("/".join(_of(path)).encode()))
        words = jax.random.bits(key, leaf.shape, jnp.uint32).ravel()
        signs = jnp.where(words >> 31, -1.0, 1.0)
        buckets = (words & 0x7FFFFFFF) % size
        total = total.at[buckets].add(signs * leaf.astype(jnp.float32).ravel())
    return total


def _of(path: tuple) -> tuple[str, ...]:
    """Name the steps of a path."""
    return tuple(str(getattr(step, "key", getattr(step, "name", step))) for step in path)


def _is_none(leaf: Any) -> bool:
    return leaf is None
