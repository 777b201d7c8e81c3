"""What numbers allow one to say: intervals, paired tests, and corrected p-values.

Everything is two-sided at 95 %. Items (X) are the unit of evaluation, seeds (S) of training. A
metric of an item is a sum over a count (nats over tokens, found over asked for); over items it is
the ratio of the sums of both.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import scipy.optimize
import scipy.stats
from numpy.typing import ArrayLike

from research.evaluate.results import Estimate

LEVEL = 0.05
POWER = 0.8
SMALLEST_P = 1e-12  # below it a t distribution of the model says nothing of the data
RESAMPLES = 9_999
RESAMPLED_AT_ONCE = 4_000_000  # array elements a bootstrap may hold: 32 MB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference with its interval and its p-value.

    Attributes:
      detectable: the smallest true difference that this comparison would have seen with 80 % power.
    """

    value: float
    low: float
    high: float
    p: float
    detectable: float = float("nan")
    seeds: int = 1
    items: int = 0


def mean_interval(values: ArrayLike) -> Estimate:
    """Give the mean with Student's t interval: mean +- t(n - 1) s / sqrt(n).

    One value has no interval: its bounds are NaN.
    """
    x = np.asarray(values, np.float64)
    if x.size == 0:
        raise ValueError("a mean of no values was asked for; expected at least one")
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(value=mean, count=1, low=float("nan"), high=float("nan"))
    half = float(scipy.stats.t.ppf(1 - LEVEL / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return Estimate(value=mean, count=x.size, low=mean - half, high=mean + half)


def proportion(successes: int, count: int) -> Estimate:
    """Give a proportion with Wilson's score interval.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22; `scipy.stats.binomtest`.
    """
    interval = scipy.stats.binomtest(successes, count).proportion_ci(1 - LEVEL, method="wilson")
    return Estimate(
        value=successes / count, count=count, low=float(interval.low), high=float(interval.high)
    )


def influence(sum_X: ArrayLike, count_X: ArrayLike) -> np.ndarray:
    """Spread a ratio of sums over its items: values whose mean is the ratio.

    u_i = r + (sum_i - r count_i) X / sum(count), r = sum(sum) / sum(count). The t interval of u is
    the delta-method interval of r; with equal counts u_i is the item's own value.

    Source: linearisation of a ratio estimator, Cochran 1977, Sampling Techniques, section 6.
    """
    s, c = np.asarray(sum_X, np.float64), np.asarray(count_X, np.float64)
    total = c.sum()
    if total <= 0:
        raise ValueError(
            f"a ratio over a total count of {total} was asked for; nothing was counted"
        )
    ratio = s.sum() / total
    return ratio + (s - ratio * c) * (c.size / total)


def ratio_interval(sum_X: ArrayLike, count_X: ArrayLike) -> Estimate:
    """Estimate sum(sum) / sum(count) over items: Wilson for yes/no items, else the t interval.

    Items that are all wholly wrong, or all wholly right, count as yes/no too: they have no spread,
    yet that does not make the ratio certain.
    """
    s, c = np.asarray(sum_X, np.float64), np.asarray(count_X, np.float64)
    if np.all(c == 1) and np.all((s == 0) | (s == 1)):
        return proportion(int(s.sum()), s.size)
    if np.all(s == 0) or np.all(s == c):
        return proportion(int(np.sum(s == c)), s.size)
    estimate = mean_interval(influence(s, c))
    return dataclasses.replace(estimate, value=float(s.sum() / c.sum()))


def paired_bootstrap(difference_X: ArrayLike, seed: int = 0) -> Difference:
    """Resample items and give the mean difference with its percentile interval.

    p is twice the smaller share of resampled means on either side of 0 (itself counted once).

    Source: Efron & Tibshirani 1993, chapters 13 and 16; `scipy.stats.bootstrap`.
    """
    d = np.asarray(difference_X, np.float64)
    if d.size < 2:
        raise ValueError(f"{d.size} paired items were given; a bootstrap needs at least 2")
    mean = float(d.mean())
    if np.ptp(d) == 0:
        return Difference(
            value=mean, low=mean, high=mean, p=1.0 if mean == 0 else 0.0, items=d.size
        )
    result = scipy.stats.bootstrap(
        (d,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, RESAMPLED_AT_ONCE // d.size),
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    means = result.bootstrap_distribution
    beyond = 1 + min(int(np.sum(means <= 0)), int(np.sum(means >= 0)))
    return Difference(
        value=mean,
        low=float(result.confidence_interval.low),
        high=float(result.confidence_interval.high),
        p=min(1.0, 2 * beyond / (RESAMPLES + 1)),
        items=d.size,
    )


def paired_difference(difference_SX: np.ndarray) -> Difference:
    """Compare two arms on the same items under the same seeds; both may vary.

    d_sx = mu + seed_s + item_x + noise_sx. The interval at level a is mean +- h(a) with
    h(a)^2 = (t_a(S - 1) e_S)^2 + (t_a(X - 1) e_X)^2, where e_S^2 = MS_seed / (S X) and
    e_X^2 = (MS_item - MS_noise) / (S X), at least 0; p is the a at which h(a) = |mean|. So arms
    that differ by the luck of their seeds alone do not differ, however many items there are, and
    two seeds that happen to agree prove little. One seed leaves the paired t test over items; one
    item the paired t test over seeds.

    Source: two-way random effects; intervals of the two parts joined as in Zou 2008, Stat. Med. 27.
      By simulation (2 to 5 seeds, 105 and 500 items, all mixtures of variances) at most 6 % of
      differences of 0 get p < 0.05 and at most 1 % p < 0.005; Satterthwaite's degrees of freedom
      let up to 14 % and 9 % through.
    """
    d = np.atleast_2d(np.asarray(difference_SX, np.float64))
    seeds, items = d.shape
    if d.size < 2:
        raise ValueError("one difference was given; expected several items or several seeds")
    mean, (seed_error, item_error) = float(d.mean()), _standard_errors(d)
    if seed_error == item_error == 0:
        return _constant(mean, seeds, items)

    reach = functools.partial(half_width, seeds=(seed_error, seeds), items=(item_error, items))
    half = reach(LEVEL)
    return Difference(
        value=mean,
        low=mean - half,
        high=mean + half,
        p=_level_at(reach, abs(mean)),
        detectable=half + reach(2 * (1 - POWER)),
        seeds=seeds,
        items=items,
    )


def half_width(level: float, seeds: tuple[float, int], items: tuple[float, int]) -> float:
    """Give h(level) of `paired_difference` from (standard error, number) of seeds and of items."""
    parts = (e * scipy.stats.t.ppf(1 - level / 2, max(n - 1, 1)) for e, n in (seeds, items))
    return math.hypot(*parts)


def _level_at(reach: Callable[[float], float], distance: float) -> float:
    """Give the level whose interval just reaches `distance`."""
    if distance >= reach(SMALLEST_P):
        return SMALLEST_P
    found = scipy.optimize.root_scalar(
        lambda x: reach(math.exp(x)) - distance, bracket=(math.log(SMALLEST_P), 0.0)
    )
    return math.exp(found.root)


def _standard_errors(d: np.ndarray) -> tuple[float, float]:
    """Give the parts of the standard error of the mean of d_SX: (by seeds, by items)."""
    seeds, items = d.shape
    if seeds == 1:
        return 0.0, float(d.std(ddof=1) / np.sqrt(items))
    if items == 1:
        return float(d.std(ddof=1) / np.sqrt(seeds)), 0.0
    by_seed, by_item = d.mean(axis=1), d.mean(axis=0)
    noise_SX = d - by_seed[:, None] - by_item[None, :] + d.mean()
    noise = float(np.sum(noise_SX**2)) / ((seeds - 1) * (items - 1))
    item_variance = max(0.0, by_item.var(ddof=1) / items - noise / d.size)
    return float(by_seed.std(ddof=1) / np.sqrt(seeds)), float(np.sqrt(item_variance))


def _constant(value: float, seeds: int, items: int) -> Difference:
    """Give the difference of arms that differ by exactly `value` everywhere."""
    p = 1.0 if value == 0 else 0.0
    return Difference(
        value=value, low=value, high=value, p=p, detectable=0.0, seeds=seeds, items=items
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Discordance:
    """Items on which exactly one of two arms is right, and McNemar's exact p-value."""

    only_first: int
    only_second: int
    items: int
    p: float

    @property
    def rate(self) -> float:
        """The share of items on which the arms disagree."""
        return (self.only_first + self.only_second) / self.items


def mcnemar(first_X: ArrayLike, second_X: ArrayLike) -> Discordance:
    """Test whether two arms are right equally often on the same yes/no items, exactly.

    Source: McNemar 1947; under the null the discordant items are Binomial(n, 1/2).
    """
    first, second = np.asarray(first_X), np.asarray(second_X)
    values = set(np.unique(first)) | set(np.unique(second))
    if first.shape != second.shape or not values <= {0, 1}:
        raise ValueError(
            f"McNemar's test compares yes/no items in pairs; got shapes {first.shape} and "
            f"{second.shape} with values {sorted(values)[:5]}; use paired_bootstrap for others"
        )
    only_first = int(np.sum((first == 1) & (second == 0)))
    only_second = int(np.sum((first == 0) & (second == 1)))
    discordant = only_first + only_second
    p = float(scipy.stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return Discordance(only_first=only_first, only_second=only_second, items=first.size, p=p)


def holm(p_values: ArrayLike) -> list[float]:
    """Correct p-values for their number; any dependence between them is allowed.

    The k-th smallest of m becomes max over j <= k of min(1, (m - j + 1) p_(j)).

    Source: Holm 1979, Scand. J. Statist. 6.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(p.size, 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(stepped)
    return [float(value) for value in corrected]


def spearman(first_X: ArrayLike, second_X: ArrayLike) -> Estimate:
    """Correlate two rankings; the interval is Fisher's with Bonett and Wright's variance.

    NaN where one side is constant or fewer than 4 pairs are finite.

    Source: Bonett & Wright 2000, Psychometrika 65: se(atanh r) = sqrt((1 + r^2 / 2) / (n - 3)).
    """
    first, second = np.asarray(first_X, np.float64), np.asarray(second_X, np.float64)
    kept = np.isfinite(first) & np.isfinite(second)
    first, second = first[kept], second[kept]
    nan = float("nan")
    if first.size < 4 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Estimate(value=nan, count=first.size, low=nan, high=nan)
    r = float(np.asarray(scipy.stats.spearmanr(first, second))[0])
    if abs(r) > 1 - 1e-12:
        return Estimate(value=r, count=first.size, low=r, high=r)
    half = scipy.stats.norm.ppf(1 - LEVEL / 2) * np.sqrt((1 + r * r / 2) / (first.size - 3))
    low, high = np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)
    return Estimate(value=r, count=first.size, low=float(low), high=float(high))


def overlap_at(first_X: ArrayLike, second_X: ArrayLike, fraction: float) -> float:
    """Give the share of the top `fraction` by one score that is in the top by the other.

    Chance is `fraction`. Ties go to the lower index, as in selection.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} was given; expected more than 0 and at most 1")
    first, second = np.asarray(first_X, np.float64), np.asarray(second_X, np.float64)
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"scores of shapes {first.shape} and {second.shape} cannot be overlapped")
    count = max(1, round(fraction * first.size))
    top = [set(np.argsort(-x, kind="stable")[:count].tolist()) for x in (first, second)]
    return len(top[0] & top[1]) / count
