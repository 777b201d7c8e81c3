"""What an estimator is made of: the measurements that are run, and how they become one score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from research.core.protocols import Combination


def terms_of(estimator: Any) -> tuple[Any, ...]:
    """List the measurements of an estimator, each once, in the order in which they are named.

    A combination is its terms'; anything else is itself; None is nothing.
    """
    if estimator is None:
        return ()
    if not isinstance(estimator, Combination):
        return (estimator,)
    return tuple(dict.fromkeys(leaf for term in estimator.terms for leaf in terms_of(term)))


def value_of(estimator: Any, signal_X: Mapping[Any, np.ndarray]) -> np.ndarray:
    """Evaluate an estimator over the pool, given the signal of each of its measurements."""
    if not isinstance(estimator, Combination):
        return np.asarray(signal_X[estimator], np.float64)
    values = [value_of(term, signal_X) for term in estimator.terms]
    size = len(next(iter(signal_X.values())))
    return estimator.combine(np.stack(values) if values else np.zeros((0, size)))
