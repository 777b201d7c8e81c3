"""What a report is made of, before it is a page or a terminal's text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from research.evaluate.results import Estimate

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header; the first column names the row.

    Attributes:
      prose: the last column is running text.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    prose: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure: `name`.png, its bytes, and what one sees on it."""

    name: str
    png: bytes
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with sentences, then tables, then plots.

    Attributes:
      brief: a terminal shows its sentences and tables too.
    """

    heading: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    brief: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A whole page; its first section says what was found, or what the page is.

    Attributes:
      beside: other pages in the same folder: (file name, what one finds there).
    """

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    beside: tuple[tuple[str, str], ...] = ()


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with `digits` decimals, or significant digits where it is large or tiny."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value != 0 and not 10**-digits <= abs(value) < 1e4:
        return f"{value:.{digits}g}".replace("-", MINUS)
    return f"{value:.{digits}f}".replace("-", MINUS)


def interval(low: float, high: float, digits: int = 3) -> str:
    """Write an interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    return f"[{number(low, digits)}, {number(high, digits)}]"


def estimate(found: Estimate | None) -> str:
    """Write an estimate with its interval."""
    if found is None:
        return MISSING
    return f"{number(found.value)} {interval(found.low, found.high)}"


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return ("+" if value > 0 else "") + number(value)


def p_value(p: float | None) -> str:
    """Write a p-value as papers do."""
    if p is None or not math.isfinite(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def amount(value: float | None) -> str:
    """Write a large count with a thousands prefix."""
    if value is None or not math.isfinite(value):
        return MISSING
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g}" if value % 1 else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Write a time in the unit one would say it in."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
