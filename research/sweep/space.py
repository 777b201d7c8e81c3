"""Ranges in which a search looks: each is a coordinate in [0, 1) made a field's value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from research.core.parts import describe, part, require

Coordinate = float | int  # what a trial is told by: a number, or the index of a choice
Point = Mapping[str, Coordinate]  # by the path of the field


@part
class Uniform:
    """A number between two, all alike likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_order(self)

    def at(self, share: float) -> float:
        """Give the number at a share of the way from low to high."""
        return float(min(self.low + share * (self.high - self.low), self.high))

    def grid(self, points: int) -> list[Coordinate]:
        """Give numbers at equal distances, both ends among them."""
        return [self.at(share) for share in _shares(points)]

    def value(self, coordinate: Coordinate) -> float:
        """Give the field's value."""
        return float(coordinate)

    def find(self, described: Any) -> Coordinate | None:
        """Give the coordinate of a described value; None: it is not in this range."""
        return _within(self, described)


@part
class LogUniform:
    """A positive number whose logarithm is uniform, such as a learning rate."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_order(self, (self.low > 0, f"low={self.low} must be positive"))

    def at(self, share: float) -> float:
        """Give the number at a share of the way, in logarithms, from low to high."""
        wanted = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        return min(max(wanted, self.low), self.high)

    def grid(self, points: int) -> list[Coordinate]:
        """Give numbers at equal ratios, both ends among them."""
        return [self.at(share) for share in _shares(points)]

    def value(self, coordinate: Coordinate) -> float:
        """Give the field's value."""
        return float(coordinate)

    def find(self, described: Any) -> Coordinate | None:
        """Give the coordinate of a described value; None: it is not in this range."""
        return _within(self, described)


@part
class Integer:
    """A whole number from `low` to `high`, both of them possible."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _require_order(self)

    def at(self, share: float) -> int:
        """Give the number at a share of the way from low to high."""
        return min(self.low + int(share * (self.high - self.low + 1)), self.high)

    def grid(self, points: int) -> list[Coordinate]:
        """Give whole numbers at about equal distances, both ends among them."""
        wide = self.high - self.low
        return sorted({self.low + round(share * wide) for share in _shares(points)})

    def value(self, coordinate: Coordinate) -> int:
        """Give the field's value."""
        return int(coordinate)

    def find(self, described: Any) -> Coordinate | None:
        """Give the coordinate of a described value; None: it is not in this range."""
        return _within(self, described)


@part
class Choice:
    """One of some values, which may be parts: `Choice(values=(Full(), Lora(rank=8)))`."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        said = [describe(value) for value in self.values]
        require(
            self,
            (len(said) > 0, "values is empty; give at least one"),
            (all(v not in said[:i] for i, v in enumerate(said)), f"values={said} repeat a value"),
        )

    def at(self, share: float) -> int:
        """Give the index at a share of the values."""
        return min(int(share * len(self.values)), len(self.values) - 1)

    def grid(self, points: int) -> list[Coordinate]:
        """Give every index; `points` is for ranges."""
        return list(range(len(self.values)))

    def value(self, coordinate: Coordinate) -> Any:
        """Give the field's value."""
        return self.values[int(coordinate)]

    def find(self, described: Any) -> Coordinate | None:
        """Give the index of a described value; None: it is not one of these."""
        said = [describe(value) for value in self.values]
        return said.index(described) if described in said else None


Range = Uniform | LogUniform | Integer | Choice


def described_at(described: Any, path: str) -> Any:
    """Follow a dotted path through a described experiment; None where it does not lead on."""
    for step in path.split("."):
        if isinstance(described, Mapping):
            described = described.get(step)
        elif isinstance(described, list) and step.isdigit() and int(step) < len(described):
            described = described[int(step)]
        else:
            return None
    return described


def said(space: Mapping[str, Range], point: Point) -> str:
    """Say a point in one line, by the last words of its fields."""
    return ", ".join(
        f"{path.rpartition('.')[2]} {short(space[path].value(coordinate))}"
        for path, coordinate in point.items()
    )


def short(value: Any) -> str:
    """Say a value shortly: three digits of a number, of a part what is not as it is by default."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if not dataclasses.is_dataclass(value):
        return str(value)
    held = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
    own = ", ".join(f"{field.name} {short(v)}" for field, v in held if v != field.default)
    return f"{type(value).__name__}({own})" if own else type(value).__name__


def _shares(points: int) -> list[float]:
    return [index / (points - 1) for index in range(points)] if points > 1 else [0.5]


def _within(held: Any, described: Any) -> Coordinate | None:
    number = isinstance(described, (int, float)) and not isinstance(described, bool)
    return described if number and held.low <= described <= held.high else None


def _require_order(held: Any, *more: tuple[bool, str]) -> None:
    order = f"low={held.low} must be less than high={held.high}"
    require(held, (held.low < held.high, order), *more)
