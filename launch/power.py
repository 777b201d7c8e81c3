"""`maktab power`: how small a difference a study would see, before it is run."""

from __future__ import annotations

import math

from rich.table import Table

from research.evaluate.power import (
    detectable_difference,
    detectable_over_seeds,
    detectable_paired_difference,
    paired_items,
    unpaired_items,
)
from research.evaluate.statistics import LEVEL

SPREADS = (0.0, 0.005, 0.01, 0.02)  # of seeds: none, and what small test sets have shown


def power(
    items: int,
    *,
    rate: float,
    discordance: float | None,
    seeds: int | None,
    seed_spread: float | None,
    comparisons: int,
    difference: float | None,
) -> Table:
    """Tabulate what two arms would show on `items` yes/no items, by how they are compared.

    Args:
      rate: the control's share of right answers.
      discordance: the share of items on which exactly one of the two is right.
      seed_spread: between seeds, of the difference, in shares; None: several are tried.
      comparisons: that are corrected together by Holm's method; the first has to pass level / m.
      difference: for which the items that it needs are wanted.

    Raises:
      ValueError: a share is none, or an option needs another.
    """
    _check(rate, discordance, seeds, seed_spread, difference)
    level = LEVEL / comparisons
    sought = math.nan if difference is None else difference
    rows = [
        (
            f"unpaired, control at {rate:.0%}",
            detectable_difference(rate, items, level=level),
            unpaired_items(rate, rate + sought, level=level) if rate + sought <= 1 else math.inf,
        )
    ]
    if discordance is not None:
        how = f"paired, {discordance:.0%} disagree"
        needed = paired_items(sought, discordance, level=level) if discordance else math.inf
        least = detectable_paired_difference(discordance, items, level=level)
        rows.append((how, least, needed if sought <= discordance else math.inf))
    if discordance is not None and seeds is not None:
        for spread in SPREADS if seed_spread is None else (seed_spread,):
            how = f"paired, {seeds} seeds, spread {_points(spread)}"
            least = detectable_over_seeds(discordance, items, seeds, spread, level=level)
            rows.append((how, least, math.nan))
    table = Table(title_justify="left", title_style="", box=None, pad_edge=False)
    corrected = f" after Holm's correction for {comparisons} comparisons" * (comparisons > 1)
    table.title = f"Two arms on {items:,} yes/no items, at {LEVEL:.0%}{corrected}, 80 % power"
    table.add_column("compared")
    table.add_column("smallest seen", justify="right")
    if difference is not None:
        table.add_column(f"items for {_points(difference)}", justify="right")
    for how, least, needed in rows:
        table.add_row(how, _points(least), *([] if difference is None else [_count(needed)]))
    return table


def _points(share: float) -> str:
    return f"{100 * share:.3g} points" if math.isfinite(share) else "none"


def _count(items: float) -> str:
    return f"{math.ceil(items):,}" if math.isfinite(items) else "-"


def _check(
    rate: float,
    discordance: float | None,
    seeds: int | None,
    seed_spread: float | None,
    difference: float | None,
) -> None:
    shares = {"rate": rate, "discordance": discordance, "difference": difference}
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"--{name} {share}: expected a share from 0 to 1, such as 0.2")
    if difference == 0:
        raise ValueError("--difference 0: no number of items shows it; give what you look for")
    if seeds is not None and discordance is None:
        raise ValueError(
            "--seeds needs --discordance: arms of the same seeds are compared on the same items; "
            "for answers that have nothing in common give 2 p (1 - p), which is "
            f"{2 * rate * (1 - rate):.2f} here"
        )
    if seed_spread is not None and seeds is None:
        raise ValueError("--seed-spread takes no effect without --seeds; give their number")
