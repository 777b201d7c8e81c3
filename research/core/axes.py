"""The one alphabet: what each axis letter means, and how a parameter's name declares its axes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

ALPHABET: Mapping[str, str] = {
    "A": "experts active per token",
    "B": "rows of a batch",
    "C": "samples per prompt",
    "D": "residual width",
    "E": "experts",
    "F": "feed-forward width",
    "G": "query heads per key/value head",
    "H": "head width",
    "I": "latent of the queries",
    "J": "latent of keys and values",
    "K": "key/value heads",
    "L": "layers of a stack (scanned)",
    "M": "tokens, flattened",
    "N": "updates in a cycle, or tokens generated",
    "Q": "latent of keys and values, and the rotated key that heads share",
    "R": "adapter rank",
    "S": "positions attended to",
    "T": "positions (queries)",
    "U": "unrotated key and value of a head, side by side",
    "V": "vocabulary",
    "W": "head width of the values",
    "X": "examples in the pool",
    "Y": "measurements that an estimator is made of",
    "Z": "examples packed into one row",
}


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes that a parameter's name declares.

    `query_D_KGH` consumes D and produces K, G, H; `up_E_D_F` is a bank of E matrices from D to F;
    `attention_norm_D` is a vector over D. An array may carry more leading axes than its name
    declares: those are stacks (L), added by `lax.scan`.
    """

    bank: str
    inputs: str
    outputs: str

    @property
    def letters(self) -> str:
        """All declared letters, in the order of the array's axes."""
        return self.bank + self.inputs + self.outputs

    @property
    def is_kernel(self) -> bool:
        """Whether the parameter is a matrix: the only kind that weight decay and adapters touch."""
        return bool(self.inputs)

    @property
    def is_table(self) -> bool:
        """Whether rows are looked up, by token or position, where a kernel is multiplied."""
        return self.inputs in ("V", "S")

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """View `shape` as (stacked matrices, inputs, outputs)."""
        num_outputs, num_inputs = len(self.outputs), len(self.inputs)
        split = len(shape) - num_outputs
        return (
            math.prod(shape[: split - num_inputs]),
            math.prod(shape[split - num_inputs : split]),
            math.prod(shape[split:]),
        )


@functools.cache
def axes_of(name: str) -> Axes | None:
    """Parse the axes that a parameter's name declares, or None where it declares none.

    Raises:
      ValueError: a letter is not in the alphabet, or there are more than three groups.
    """
    groups: list[str] = []
    for piece in reversed(name.split("_")):
        if not (piece.isalpha() and piece.isupper()):
            break
        groups.insert(0, piece)
    if not groups:
        return None
    unknown = sorted({letter for group in groups for letter in group} - set(ALPHABET))
    if unknown or len(groups) > 3:
        raise ValueError(
            f"parameter name {name!r}: unknown letters {unknown} or over three groups; expected "
            "name_OUT, name_IN_OUT or name_E_IN_OUT with letters of research/core/axes.py"
        )
    bank, inputs, outputs = ["", "", *groups][-3:]
    return Axes(bank, inputs, outputs)


def declared(name: str) -> Axes:
    """Give the axes that a parameter's name declares.

    Raises:
      ValueError: it declares none.
    """
    axes = axes_of(name)
    if axes is None:
        raise ValueError(f"parameter name {name!r} declares no axes; expected a name like gate_D_F")
    return axes


def shape_of(name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Give the shape of one parameter (without stacks) from the size of each letter."""
    return tuple(sizes[letter] for letter in declared(name).letters)
