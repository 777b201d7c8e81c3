"""Tasks with a dial for how hard they are: every row says its difficulty, and how to check it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research.core.parts import part, require
from research.data.selection import share
from research.data.sources import Opened


@part
class Addition:
    """Sums of two numbers of `digits` digits; the difficulty is how far a carry travels.

    Row `index` of difficulty c has exactly c carries, one after the other: the first of them where
    two digits make 10 or more, each further one only because the carry came. Difficulties 0 to
    `digits` take turns. A row is a pure function of (seed, index).

    Attributes:
      count: rows; those with one remainder by `digits` + 1 share a difficulty.
    """

    digits: int
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self,
            (self.digits >= 1, f"digits={self.digits} must be at least 1"),
            (self.count >= 1, f"count={self.count} must be at least 1"),
        )

    def open(self) -> Opened:
        """Make rows when they are asked for."""
        name = f"addition-{self.digits}-{self.seed}"
        return Opened(range(self.count), self._row, lambda index: f"{name}:{index}")

    def _row(self, index: int) -> Mapping[str, Any]:
        carries = index % (self.digits + 1)
        draws = Draws(f"addition {self.digits} {self.seed} {index}")
        first = draws.below(self.digits - carries + 1)
        pairs = [
            self._pair(draws, position, first, carries)
            for position in range(self.digits)  # from the lowest digit
        ]
        left, right = (int("".join(str(p[k]) for p in reversed(pairs))) for k in (0, 1))
        return {
            "id": f"addition-{self.digits}-{self.seed}-{index}",
            "prompt": f"Question: {left:0{self.digits}d} + {right:0{self.digits}d}\nAnswer:",
            "completion": f" {left + right:0{self.digits + 1}d}",
            "difficulty": carries,
        }

    def _pair(self, draws: Draws, position: int, first: int, carries: int) -> tuple[int, int]:
        """Draw two digits whose sum carries, hands a carry on, or stops one."""
        if carries and position == first:
            low, high = 10, 18
        elif first < position < first + carries:
            low, high = 9, 9  # carries only because a carry came
        elif carries and position == first + carries:
            low, high = 0, 8  # takes the carry and makes none
        else:
            low, high = 0, 9
        total = low + draws.below(high - low + 1)
        left = max(0, total - 9) + draws.below(min(9, total) - max(0, total - 9) + 1)
        return left, total - left


@part
class Lookup:
    """Where do some hops through a table lead? The difficulty is the number of hops.

    A row shows a permutation of letters, a start and a number of hops: "a>c b>a c>b. a 2" leads to
    b. Hops of 1 to `most_hops` take turns. The permutation is one cycle, longer than any walk, so
    no shorter walk ends at the answer. A row is a pure function of (seed, index).

    Attributes:
      letters: how many letters a table has.
    """

    letters: int
    most_hops: int
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self,
            (2 <= self.letters <= 26, f"letters={self.letters}: expected 2 to 26"),
            (
                1 <= self.most_hops < self.letters,
                f"most_hops={self.most_hops}: expected 1 to letters - 1 = {self.letters - 1}",
            ),
            (self.count >= 1, f"count={self.count} must be at least 1"),
        )

    def open(self) -> Opened:
        """Make rows when they are asked for."""
        name = f"lookup-{self.letters}-{self.seed}"
        return Opened(range(self.count), self._row, lambda index: f"{name}:{index}")

    def _row(self, index: int) -> Mapping[str, Any]:
        hops = 1 + index % self.most_hops
        draws = Draws(f"lookup {self.letters} {self.seed} {index}")
        cycle = draws.shuffled("abcdefghijklmnopqrstuvwxyz"[: self.letters])
        following = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
        table = " ".join(f"{letter}>{following[letter]}" for letter in draws.shuffled(cycle))
        return {
            "id": f"lookup-{self.letters}-{self.seed}-{index}",
            "prompt": f"Question: {table}. {cycle[0]} {hops}\nAnswer:",
            "completion": f" {cycle[hops]}",
            "difficulty": hops,
        }


class Draws:
    """Numbers drawn one after the other from a name: the same on every machine and version."""

    def __init__(self, name: str):
        self._name, self._drawn = name, 0

    def below(self, count: int) -> int:
        """Draw one of 0 to count - 1."""
        self._drawn += 1
        return int(share(self._name, str(self._drawn)) * count)

    def shuffled(self, items: str) -> str:
        """Draw an order."""
        return "".join(sorted(items, key=lambda item: (self.below(2**30), item)))
