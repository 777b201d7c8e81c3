"""What the folds of a cross-validation allow one to say: they share most of their training rows.

The variance over J runs of k folds is corrected for what they share:

    e^2 = (1 / J + 1 / (k - 1)) s^2,   t with J - 1 degrees of freedom,

1 / (k - 1) being the rows a run is tested on over those it is trained on.

Source: Nadeau & Bengio 2003, Machine Learning 52, "Inference for the generalization error", the
  corrected resampled t-test; for repeated k-fold, Bouckaert & Frank 2004.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from research.evaluate.results import Estimate
from research.evaluate.statistics import LEVEL, POWER, Difference


def fold_interval(values: ArrayLike, folds: int) -> Estimate:
    """Give the mean over runs of folds with its corrected interval; one run has none."""
    x = np.asarray(values, np.float64)
    half = _reach(LEVEL, x.size) * standard_error(x, folds) if x.size > 1 else math.nan
    mean = float(x.mean())
    return Estimate(value=mean, count=x.size, low=mean - half, high=mean + half)


def fold_difference(differences: ArrayLike, folds: int) -> Difference:
    """Compare two arms fold by fold; a difference is of the two runs of one fold."""
    d = np.asarray(differences, np.float64)
    mean, error = float(d.mean()), standard_error(d, folds)
    if error == 0:
        p = 1.0 if mean == 0 else 0.0
        return Difference(value=mean, low=mean, high=mean, p=p, detectable=0.0, seeds=d.size)
    half = _reach(LEVEL, d.size) * error
    return Difference(
        value=mean,
        low=mean - half,
        high=mean + half,
        p=float(2 * scipy.stats.t.sf(abs(mean) / error, d.size - 1)),
        detectable=half + _reach(2 * (1 - POWER), d.size) * error,
        seeds=d.size,
    )


def standard_error(values: np.ndarray, folds: int) -> float:
    """Give the corrected standard error of a mean over runs of `folds` folds."""
    if folds < 2 or values.size < 2:
        raise ValueError(f"{values.size} runs of {folds} folds; expected at least 2 of each")
    return float(values.std(ddof=1) * math.sqrt(1 / values.size + 1 / (folds - 1)))


def _reach(level: float, runs: int) -> float:
    """How many standard errors an interval at a level reaches."""
    return float(scipy.stats.t.ppf(1 - level / 2, runs - 1))
