"""LoRA: frozen weights plus trained low-rank factors, as a kind of leaf."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from research.core.axes import Axes, declared
from research.core.parts import part, require
from research.core.tree import Path, flatten, unflatten
from research.core.weights import contract, grouped, take
from research.tuning.targets import ALL_LINEAR, key_of, means, named, select


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """A weight W + A B that is never added up: x W + (x A) B costs less than x (W + A B).

    Every array may carry a leading axis L, which `lax.scan` takes off.

    Attributes:
      base: W, any kind of leaf: an array, or a quantised weight.
      a: A, [bank, inputs, R].
      b: B with the scale folded in, [bank, R, outputs].
      key: where the dropout masks come from; None turns dropout off.
      dropout: probability that an element of the adapter's input is dropped.
      axes: the axes that the weight's name declares.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    key: jax.Array | None = None
    dropout: jax.Array | None = None
    axes: Axes = dataclasses.field(metadata={"static": True})

    def contract(self, equation: str, x: jax.Array) -> jax.Array:
        """Contract over the inputs (a linear layer) or the outputs (a tied head)."""
        terms, out = equation.split("->")
        x_letters = terms.split(",")[0]
        bank, inputs, outputs = self.axes.bank, self.axes.inputs, self.axes.outputs
        factors = [(f"{bank}{inputs}R", self.a), (f"{bank}R{outputs}", self.b)]
        summed = set(x_letters) - set(out)
        (first, first_factor), (second, second_factor) = (
            factors if summed <= set(inputs) else reversed(factors)
        )
        kept = [letter for letter in x_letters if letter not in summed]
        middle = "".join([*kept, *(letter for letter in bank if letter not in kept), "R"])
        low = contract(f"{x_letters},{first}->{middle}", self._dropped(x), first_factor)
        return contract(equation, x, self.base) + contract(
            f"{middle},{second}->{out}", low, second_factor
        )

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        """Look rows up; the adapter's input is a token, which dropout does not touch."""
        low = take(self.a, ids, dtype)
        return take(self.base, ids, dtype) + jnp.tensordot(low, self.b.astype(dtype), axes=1)

    def grouped(self, equation: str, x: jax.Array, sizes_E: jax.Array, platform: str) -> jax.Array:
        """Multiply rows that are sorted by expert: x W_e + (x A_e) B_e."""
        terms, out = equation.split("->")
        row, (bank, inputs, outputs) = out[0], (self.axes.bank, self.axes.inputs, self.axes.outputs)
        x_letters = terms.split(",")[0]
        down, up = f"{x_letters},{bank}{inputs}R->{row}R", f"{row}R,{bank}R{outputs}->{out}"
        low = grouped(down, self._dropped(x), self.a, sizes_E, platform)
        return grouped(equation, x, self.base, sizes_E, platform) + grouped(
            up, low, self.b, sizes_E, platform
        )

    def letters(self) -> LowRank:
        """Give the axis letters of each array that this weight is made of."""
        bank, inputs, outputs = self.axes.bank, self.axes.inputs, self.axes.outputs
        return dataclasses.replace(
            self,
            base=self.base.letters() if hasattr(self.base, "letters") else self.axes.letters,
            a=f"{bank}{inputs}R",
            b=f"{bank}R{outputs}",
            key=None if self.key is None else "",
            dropout=None if self.dropout is None else "",
        )

    def _dropped(self, x: jax.Array) -> jax.Array:
        if self.key is None or self.dropout is None:
            return x
        kept = jax.random.bernoulli(self.key, 1.0 - self.dropout, x.shape)
        return jnp.where(kept, x / (1.0 - self.dropout), 0.0).astype(x.dtype)


@part
class Override:
    """What is different about some of the targets.

    Attributes:
      target: a parameter's name or the end of its path.
      rank: their rank.
      alpha: their alpha; None: that of the tuning.
    """

    target: str
    rank: int
    alpha: float | None = None


@part
class Lora:
    """Train W + scale A B with W frozen; scale = alpha / rank, or alpha / sqrt(rank) for rsLoRA.

    A is uniform in +-1/sqrt(inputs) and B is 0, both float32; for a table that is looked up
    (`embed_V_D`) A is 0 and B is normal. Both as in PEFT.

    Attributes:
      rank, alpha: of every target that no override names.
      rslora: scale by 1/sqrt(rank), which keeps the update's size when the rank grows.
      dropout: probability that an element of the adapter's input is dropped; None: no dropout.
      targets: parameters' names, ends of paths, or "all_linear" (every kernel of the layers).
      overrides: ranks of single targets; the last one that names a target counts.
      trained: parameters of any kind that are trained whole beside the factors (`router_D_E`).

    Source: Hu et al. 2021, arXiv 2106.09685; Kalajdzievski 2023, arXiv 2312.03732.
    Law: the output at step 0 equals the frozen model's, bit for bit.
    """

    rank: int = 16
    alpha: float = 32.0
    rslora: bool = False
    dropout: float | None = None
    targets: tuple[str, ...] = (ALL_LINEAR,)
    overrides: tuple[Override, ...] = ()
    trained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ranks = [self.rank, *(override.rank for override in self.overrides)]
        require(
            self,
            (min(ranks) > 0, f"ranks {ranks} must be positive"),
            (self.alpha > 0, f"alpha={self.alpha} must be positive"),
            (
                self.dropout is None or 0 <= self.dropout < 1,
                f"dropout={self.dropout} must lie in [0, 1), or be None",
            ),
            (bool(self.targets), "targets is empty; name parameters, or 'all_linear'"),
        )

    def split(self, params: Any, key: jax.Array) -> tuple[Any, Any]:
        """Give (fresh factors of every target and what is trained whole, the rest of params).

        Raises:
          ValueError: a target matches nothing, or is both adapted and trained whole; the error
            lists the names there are.
        """
        leaves = flatten(params)
        whole = named(leaves, self.trained, "trained")
        paths = select(leaves, self.targets, "targets")
        select(paths, [override.target for override in self.overrides], "overrides")
        if both := sorted({".".join(path) for path in set(whole) & set(paths)}):
            raise ValueError(f"{both} are in targets and in trained; choose one of the two")
        factors = {path: self._draw(path, leaves[path], key_of(key, path)) for path in paths}
        frozen = {path: leaf for path, leaf in leaves.items() if path not in whole}
        return unflatten(factors | {path: leaves[path] for path in whole}), unflatten(frozen)

    def join(self, trainable: Any, frozen: Any, key: jax.Array | None = None) -> Any:
        """Give the tree with low-rank leaves; `key` draws the dropout masks of this call."""

        def leaf(path: Path, base: Any, axes: Axes, a: jax.Array, b: jax.Array) -> LowRank:
            stacks = a.shape[: a.ndim - len(axes.bank + axes.inputs) - 1]
            if key is None or self.dropout is None:
                return LowRank(base=base, a=a, b=b, axes=axes)
            keys = jax.random.split(key_of(key, path), stacks)
            dropout = jnp.broadcast_to(jnp.float32(self.dropout), stacks)
            return LowRank(base=base, a=a, b=b, key=keys, dropout=dropout, axes=axes)

        return self._replace(trainable, frozen, leaf)

    def merge(self, trainable: Any, frozen: Any) -> Any:
        """Give plain arrays: W + scale A B, added in float32 and cast once."""

        def add(path: Path, base: Any, axes: Axes, a: jax.Array, b: jax.Array) -> jax.Array:
            del path
            left, right = f"{axes.bank}{axes.inputs}R", f"{axes.bank}R{axes.outputs}"
            delta = jnp.einsum(
                f"...{left},...{right}->...{axes.letters}",
                a,
                b,
                precision=jax.lax.Precision.HIGHEST,
            )
            return (base.astype(jnp.float32) + delta).astype(base.dtype)

        return self._replace(trainable, frozen, add)

    def rank_and_alpha(self, path: Path) -> tuple[int, Any]:
        """Give the rank and alpha of the target at `path`."""
        rank, alpha = self.rank, self.alpha
        for override in self.overrides:
            if means(override.target, path):
                rank = override.rank
                alpha = self.alpha if override.alpha is None else override.alpha
        return rank, alpha

    def scale(self, rank: int, alpha: Any) -> Any:
        """Give the factor on A B."""
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _draw(self, path: Path, base: Any, key: jax.Array) -> dict[str, jax.Array]:
        """Make A and B of one target, with the stacks of its weight."""
        axes, rank = declared(path[-1]), self.rank_and_alpha(path)[0]
        a_name, b_name = factor_names(axes)
        num_outputs = len(axes.outputs)
        outputs = base.shape[base.ndim - num_outputs :]
        inputs = base.shape[: base.ndim - num_outputs]
        bank = inputs[: len(inputs) - len(axes.inputs)]
        a_shape, b_shape = (*inputs, rank), (*bank, rank, *outputs)
        if path[-1].startswith("embed"):
            return {a_name: jnp.zeros(a_shape), b_name: jax.random.normal(key, b_shape)}
        bound = axes.matrix(base.shape)[1] ** -0.5
        a = jax.random.uniform(key, a_shape, jnp.float32, -bound, bound)
        return {a_name: a, b_name: jnp.zeros(b_shape, jnp.float32)}

    def _replace(self, trainable: Any, frozen: Any, leaf: Any) -> Any:
        """Put `leaf(path, base, axes, a, scaled b)` where there are factors."""
        leaves, factors = flatten(frozen), flatten(trainable)
        adapted = {path[:-1] for path in factors if path[:-1] in leaves}
        leaves |= {path: leaf for path, leaf in factors.items() if path[:-1] not in adapted}
        for path in sorted(adapted):
            axes = declared(path[-1])
            a_name, b_name = factor_names(axes)
            b = factors[*path, b_name] * self.scale(*self.rank_and_alpha(path))
            leaves[path] = leaf(path, leaves[path], axes, factors[*path, a_name], b)
        return unflatten(leaves)


def factor_names(axes: Axes) -> tuple[str, str]:
    """Name the factors of a weight by their own axes: `query_D_KGH` has `a_D_R` and `b_R_KGH`."""
    bank = f"_{axes.bank}" if axes.bank else ""
    return f"a{bank}_{axes.inputs}_R", f"b{bank}_R_{axes.outputs}"
