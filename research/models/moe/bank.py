"""The experts of one layer: one feed-forward, many times, run over rows in three arrangements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.core.weights import contract, grouped, letters_of, value_of

Product = Callable[[str, str, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """down(activation(gate(x), up(x))) of every expert; kernels of any kind of leaf.

    Attributes:
      weights: up_E_D_F and down_E_F_D, gate_E_D_F where it is gated, and biases of them
        (up_bias_EF, ...) where there are any.
      activation: called as activation(gate, up), or activation(up).
      platform: of the placement.
    """

    weights: dict[str, Any]
    activation: Any = dataclasses.field(metadata={"static": True})
    platform: str = dataclasses.field(metadata={"static": True})

    def letters(self) -> Experts:
        """Give the axis letters of every array, in the same tree."""
        weights = {name: letters_of(name, leaf) for name, leaf in self.weights.items()}
        return dataclasses.replace(self, weights=weights)

    def grouped(self, x_MD: Float[Array, "M D"], sizes_E: Int[Array, " E"]) -> Float[Array, "M D"]:
        """Run rows that are sorted by expert, sizes_E each; rows beyond them give zeros."""

        def product(name: str, letters: str, x: jax.Array) -> jax.Array:
            equation = f"M{letters[0]},E{letters}->M{letters[1]}"
            y = grouped(
                equation, x, self.weights[f"{name}_E_{'_'.join(letters)}"], sizes_E, platform
            )
            bias = self.weights.get(f"{name}_bias_E{letters[1]}")
            if bias is None:
                return y
            ones, row = jnp.ones((x.shape[0], 1), x.dtype), value_of(bias)[:, None]
            return y + grouped(f"MI,EI{letters[1]}->M{letters[1]}", ones, row, sizes_E, platform)

        platform = self.platform
        return self._run(x_MD, product)

    def banked(self, x_ECD: Float[Array, "E C D"]) -> Float[Array, "E C D"]:
        """Run rows of every expert's own."""
        return self._run(x_ECD, self._dense("EC"))

    def every(self, x_MD: Float[Array, "M D"]) -> Float[Array, "E M D"]:
        """Run every row through every expert."""
        return self._run(x_MD, self._dense("M"))

    def _dense(self, rows: str) -> Product:
        def product(name: str, letters: str, x: jax.Array) -> jax.Array:
            left = rows if x.ndim == len(rows) + 1 else "E" + rows
            out = f"E{rows.removeprefix('E')}{letters[1]}"
            equation = f"{left}{letters[0]},E{letters}->{out}"
            y = contract(equation, x, self.weights[f"{name}_E_{'_'.join(letters)}"])
            bias = self.weights.get(f"{name}_bias_E{letters[1]}")
            return y if bias is None else y + value_of(bias)[:, None].astype(y.dtype)

        return product

    def _run(self, x: jax.Array, product: Product) -> jax.Array:
        up = product("up", "DF", x)
        if "gate_E_D_F" in self.weights:
            hidden = self.activation(product("gate", "DF", x), up)
        else:
            hidden = self.activation(up)
        return product("down", "FD", hidden)
