"""How small a difference a study would see, said before it is run.

Everything is two-sided, at 95 % and with 80 % power unless told otherwise, and about shares of
yes/no items: a rate is the share of right answers, a discordance the share of items on which
exactly one of two arms is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import scipy.optimize
import scipy.stats

from research.evaluate.statistics import LEVEL, POWER, half_width


def unpaired_power(first: float, second: float, items: float, level: float = LEVEL) -> float:
    """Give the chance that two rates differ visibly, each measured on its own `items` items.

    Phi((sqrt(n) |p1 - p2| - z_a sqrt(2 p (1 - p))) / sqrt(p1 (1 - p1) + p2 (1 - p2))), with
    p = (p1 + p2) / 2. It is also that of the same items, where the pairing is not used.

    Source: Fleiss, Levin & Paik 2003, Statistical Methods for Rates and Proportions, section 4.2,
      without continuity correction; R's `power.prop.test`.
    """
    middle = (first + second) / 2
    null = math.sqrt(2 * middle * (1 - middle))
    spread = math.sqrt(first * (1 - first) + second * (1 - second))
    beyond = math.sqrt(items) * abs(first - second) - _z(1 - level / 2) * null
    return float(scipy.stats.norm.cdf(beyond / spread)) if spread else float(beyond > 0)


def unpaired_items(
    first: float, second: float, *, level: float = LEVEL, power: float = POWER
) -> float:
    """Give how many items each arm needs for a difference of two rates to show.

    Source: as `unpaired_power`, solved for n.
    """
    middle = (first + second) / 2
    null = _z(1 - level / 2) * math.sqrt(2 * middle * (1 - middle))
    spread = _z(power) * math.sqrt(first * (1 - first) + second * (1 - second))
    return ((null + spread) / (first - second)) ** 2


def detectable_difference(
    rate: float, items: float, *, level: float = LEVEL, power: float = POWER
) -> float:
    """Give the smallest rise over a control's `rate` that an unpaired test of `items` each sees.

    Where not even a rise to 1 would show it is the smallest fall; infinite where neither does.
    """
    rise = _smallest(lambda d: unpaired_power(rate, rate + d, items, level) - power, 1.0 - rate)
    if math.isfinite(rise):
        return rise
    return _smallest(lambda d: unpaired_power(rate, rate - d, items, level) - power, rate)


def paired_power(
    difference: float, discordance: float, items: float, level: float = LEVEL
) -> float:
    """Give the chance that McNemar's test sees a difference of rates on the same `items` items.

    Phi((sqrt(n) |delta| - z_a sqrt(psi)) / sqrt(psi - delta^2)), psi being the discordance.

    Source: Connor 1987, Biometrics 43.
    """
    beyond = math.sqrt(items) * abs(difference) - _z(1 - level / 2) * math.sqrt(discordance)
    spread = math.sqrt(max(discordance - difference**2, 0.0))
    return float(scipy.stats.norm.cdf(beyond / spread)) if spread else float(beyond > 0)


def paired_items(
    difference: float, discordance: float, *, level: float = LEVEL, power: float = POWER
) -> float:
    """Give how many items two arms must share for a difference of rates to show.

    n = (z_a sqrt(psi) + z_b sqrt(psi - delta^2))^2 / delta^2.

    Source: Connor 1987, Biometrics 43.
    """
    null = _z(1 - level / 2) * math.sqrt(discordance)
    spread = _z(power) * math.sqrt(max(discordance - difference**2, 0.0))
    return ((null + spread) / difference) ** 2


def detectable_paired_difference(
    discordance: float, items: float, *, level: float = LEVEL, power: float = POWER
) -> float:
    """Give the smallest difference of rates that McNemar's test sees on `items` shared items.

    Infinite where not even all discordant items in one direction would show.
    """
    return _smallest(
        lambda delta: paired_power(delta, discordance, items, level) - power, discordance
    )


def detectable_over_seeds(
    discordance: float,
    items: int,
    seeds: int,
    seed_spread: float,
    *,
    level: float = LEVEL,
    power: float = POWER,
) -> float:
    """Give the smallest difference that `paired_difference` sees over seeds on shared items.

    h(a) + h(2 (1 - power)), with h as there, e_S = s / sqrt(S) and e_X = sqrt(psi / X).

    Args:
      seed_spread: the standard deviation, between seeds, of an arm's difference to the control on
        very many items. From a pilot; 0 claims that training twice gives the same model.

    Law: never too small: e_X takes the items' whole variance for one that all seeds share.
    """
    of_seeds = (seed_spread / math.sqrt(seeds), seeds)
    of_items = (math.sqrt(discordance / items), items)
    return half_width(level, of_seeds, of_items) + half_width(2 * (1 - power), of_seeds, of_items)


def _z(quantile: float) -> float:
    return float(scipy.stats.norm.ppf(quantile))


def _smallest(excess: Callable[[float], float], largest: float) -> float:
    """Find where a rising function of a difference crosses 0; infinite where it does not."""
    if largest <= 0 or excess(largest) < 0:
        return math.inf
    return float(scipy.optimize.root_scalar(excess, bracket=(0.0, largest)).root)
