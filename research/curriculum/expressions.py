"""Estimators combined by arithmetic: `standardised(Loss()) - 0.5 * standardised(Length())`.

A measurement enters an expression by one of three doors, which say in what unit it counts:

    nats(e)           as it was measured
    standardised(e)   (s - mean) / standard deviation, over the pool
    ranked(e)         its place in the pool, from 0 (lowest) to 1 (highest), equal scores alike

Behind them + - * / < > and `where`, `quantile` do what they do to numbers, example by example.
A measurement that occurs twice is run once. An example has no score where a measurement that its
value depends on is not known. An expression is a part: it compares, varies and travels as JSON like
any estimator.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from research.core.parts import part, require
from research.curriculum.ordering import rounded

Signals = Float[np.ndarray, "Y X"]


def _arithmetic(cls: type) -> type:
    """Give a part the operators that build larger expressions."""

    def binary(make: Callable[[Any, Any], Any], mirrored: bool) -> Callable[[Any, Any], Any]:
        def method(self: Any, other: Any) -> Any:
            other = _expression(other)
            return make(other, self) if mirrored else make(self, other)

        return method

    table: dict[str, Callable[[Any, Any], Any]] = {
        "add": lambda a, b: Sum(left=a, right=b),
        "sub": lambda a, b: Sum(left=a, right=Product(left=Number(value=-1.0), right=b)),
        "mul": lambda a, b: Product(left=a, right=b),
        "truediv": lambda a, b: Ratio(left=a, right=b),
    }
    for name, make in table.items():
        setattr(cls, f"__{name}__", binary(make, mirrored=False))
        setattr(cls, f"__r{name}__", binary(make, mirrored=True))
    cls.__lt__ = binary(lambda a, b: Below(left=a, right=b), mirrored=False)
    cls.__gt__ = binary(lambda a, b: Below(left=a, right=b), mirrored=True)
    cls.__neg__ = lambda self: Product(left=Number(value=-1.0), right=self)
    return cls


def _expression(value: Any) -> Any:
    """Turn a number into an expression.

    Raises:
      TypeError: it is neither; an estimator enters by one of the three doors.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Number(value=float(value))
    if hasattr(value, "terms") and hasattr(value, "combine"):
        return value
    raise TypeError(
        f"{value!r} stands in an expression without a unit; say nats(...), standardised(...) or "
        "ranked(...) of it"
    )


def _operands(self: Any) -> tuple[Any, ...]:
    """Give what an operation is made of, in the order of its fields."""
    return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


@_arithmetic
@part
class Number:
    """The same value for every example."""

    value: float

    terms = ()

    def combine(self, signal_YX: Signals) -> np.ndarray:
        """Give the value, once for every example."""
        return np.full(signal_YX.shape[1], float(self.value))


@_arithmetic
@part
class Nats:
    """A measurement as it is."""

    of: Any

    @property
    def terms(self) -> tuple[Any]:
        return (self.of,)

    def combine(self, signal_YX: Signals) -> np.ndarray:
        """Give it back."""
        return signal_YX[0]


@_arithmetic
@part
class Standardised:
    """(s - mean) / standard deviation over the examples that have a score; 0 where all are alike.

    Law: mean 0 and variance 1; s -> a s + b with a > 0 changes nothing.
    """

    of: Any

    @property
    def terms(self) -> tuple[Any]:
        return (self.of,)

    def combine(self, signal_YX: Signals) -> np.ndarray:
        """See the class."""
        return standard(rounded(signal_YX[0]))


@_arithmetic
@part
class Ranked:
    """The place in the pool over (number - 1): 0 lowest, 1 highest, equal scores their mean place.

    Scores are rounded to 1e-4 nats first, so float noise moves no place.

    Law: any increasing change of the scores changes nothing.
    """

    of: Any

    @property
    def terms(self) -> tuple[Any]:
        return (self.of,)

    def combine(self, signal_YX: Signals) -> np.ndarray:
        """See the class."""
        return places(rounded(signal_YX[0]))


@_arithmetic
@part
class Quantile:
    """The value below which `fraction` of the pool lies, the same for every example."""

    of: Any
    fraction: float

    def __post_init__(self) -> None:
        require(
            self,
            (0 <= self.fraction <= 1, f"fraction={self.fraction}: expected 0 to 1, 0.5 median"),
        )

    @property
    def terms(self) -> tuple[Any]:
        return (self.of,)

    def combine(self, signal_YX: Signals) -> np.ndarray:
        """Interpolate between the two nearest scores."""
        known = signal_YX[0][~np.isnan(signal_YX[0])]
        level = np.quantile(known, float(self.fraction)) if len(known) else np.nan
        return np.full(signal_YX.shape[1], level)


@_arithmetic
@part
class Sum:
    """left + right."""

    left: Any
    right: Any

    terms = property(_operands)

    def combine(self, signal_YX: Signals) -> np.ndarray:
        """Add."""
        return operator.add(*signal_YX)


@_arithmetic
@part
class Product:
    """left * right."""

    left: Any
    right: Any

    terms = property(_operands)

    def combine(self, signal_YX: Signals) -> np.ndarray:
        """Multiply."""
        return operator.mul(*signal_YX)


@_arithmetic
@part
class Ratio:
    """left / right; an example is not scored where right is 0."""

    left: Any
    right: Any

    terms = property(_operands)

    def combine(self, signal_YX: Signals) -> np.ndarray:
        """Divide."""
        left_X, right_X = signal_YX
        return np.divide(left_X, right_X, out=np.full_like(left_X, np.nan), where=right_X != 0)


@_arithmetic
@part
class Below:
    """1 where left < right, else 0."""

    left: Any
    right: Any

    terms = property(_operands)

    def combine(self, signal_YX: Signals) -> np.ndarray:
        """Compare what is known, rounded like every score."""
        left_X, right_X = signal_YX
        unknown = np.isnan(left_X) | np.isnan(right_X)
        return np.where(unknown, np.nan, rounded(left_X) < rounded(right_X))


@_arithmetic
@part
class Where:
    """`then` where the condition is not 0, `otherwise` where it is."""

    condition: Any
    then: Any
    otherwise: Any

    terms = property(_operands)

    def combine(self, signal_YX: Signals) -> np.ndarray:
        """Choose."""
        condition_X, then_X, otherwise_X = signal_YX
        chosen_X = np.where(condition_X != 0, then_X, otherwise_X)
        return np.where(np.isnan(condition_X), np.nan, chosen_X)


def nats(estimator: Any) -> Any:
    """Take a measurement as it is, in its own unit."""
    return Nats(of=estimator)


def standardised(estimator: Any) -> Any:
    """Take a measurement in standard deviations from the pool's mean."""
    return Standardised(of=estimator)


def ranked(estimator: Any) -> Any:
    """Take a measurement as its place in the pool, from 0 to 1."""
    return Ranked(of=estimator)


def quantile(expression: Any, fraction: float) -> Any:
    """Give the level below which a fraction of the pool lies; 0.5: the median."""
    return Quantile(of=_expression(expression), fraction=fraction)


def where(condition: Any, then: Any, otherwise: Any) -> Any:
    """Choose example by example; numbers are allowed."""
    return Where(
        condition=_expression(condition),
        then=_expression(then),
        otherwise=_expression(otherwise),
    )


def standard(score_X: Float[np.ndarray, " X"]) -> Float[np.ndarray, " X"]:
    """Give (s - mean) / standard deviation of what is known; 0 where all are alike."""
    known = score_X[~np.isnan(score_X)]
    if not len(known):
        return score_X
    spread = float(np.std(known))
    return (score_X - np.mean(known)) / (spread if spread > 0 else 1.0)


def places(score_X: Float[np.ndarray, " X"]) -> Float[np.ndarray, " X"]:
    """Give each known score's place over (number - 1), equal scores the mean of their places."""
    known = np.flatnonzero(~np.isnan(score_X))
    _, inverse, counts = np.unique(score_X[known], return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    middle = last - (counts - 1) / 2
    place_X = np.full(len(score_X), np.nan)
    place_X[known] = middle[inverse] / max(1, len(known) - 1)
    return place_X
