"""Adafactor: second moments kept as the row and column means of each matrix."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from research.core.axes import Axes, declared
from research.core.parts import part, require
from research.core.tree import flatten, unflatten
from research.optimizers.matrices import descend, factor_names, lift, sides


@part
class Adafactor:
    """Descend along g / sqrt(v), v = row column' / mean(row), clipped and scaled matrix by matrix.

    row and column are decayed means of g^2 + eps over the outputs and the inputs that the kernel's
    name declares, never over layers, experts or single heads. They are named by their own axes
    (`row_D`, `column_KGH`), so that they are sharded like the kernel. Vectors and small matrices
    keep v itself.

    Attributes:
      decay: v_t = b v + (1 - b) g^2 with b = 1 - t^-decay.
      eps: added to g^2.
      clip_rms: the direction's root mean square is at most this; None: not clipped.
      min_scale: the step is relative, times max(min_scale, rms(W)); None: it is absolute.
      min_factored: a matrix whose smaller side is shorter keeps v itself.
      weight_decay: decoupled, for kernels.

    Source: Shazeer & Stern 2018, arXiv 1804.04235, without momentum; equal to `optax.adafactor` on
      a single matrix. (On stacks optax factors the two longest axes, whatever they mean.)
    """

    decay: float = 0.8
    eps: float = 1e-30
    clip_rms: float | None = 1.0
    min_scale: float | None = 1e-3
    min_factored: int = 128
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require(
            self,
            (self.decay > 0, f"decay={self.decay} must be positive"),
            (self.eps > 0, f"eps={self.eps} must be positive"),
            (
                self.clip_rms is None or self.clip_rms > 0,
                f"clip_rms={self.clip_rms} must be positive, or None",
            ),
            (
                self.min_scale is None or self.min_scale > 0,
                f"min_scale={self.min_scale} must be positive, or None",
            ),
            (self.min_factored > 0, f"min_factored={self.min_factored} must be positive"),
            (self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative"),
        )

    def init(self, trainable: Any) -> Any:
        """Make zero second moments, float32, factored where the matrix is large enough."""
        moments = {}
        for path, leaf in flatten(trainable).items():
            axes = declared(path[-1])
            square = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
            parts = jax.eval_shape(lambda g: self._means(axes, g), square)  # noqa: B023
            moments[path] = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), parts)
        return {"count": jnp.int32(0), "moments": unflatten(moments)}

    def update(
        self, gradients: Any, state: Any, trainable: Any, learning_rate: jax.Array
    ) -> tuple[Any, Any]:
        """Give (updates to add, new state)."""
        count = state["count"] + 1
        keep = 1.0 - count.astype(jnp.float32) ** -self.decay
        weights, held = flatten(lift(trainable)), _moments(state["moments"], trainable)
        directions, moments = {}, {}
        for path, gradient in flatten(lift(gradients)).items():
            axes = declared(path[-1])
            means = self._means(axes, gradient * gradient + self.eps)
            moments[path] = jax.tree.map(
                lambda old, new: keep * old + (1.0 - keep) * new, held[path], means
            )
            direction = gradient * _inverse_root(axes, moments[path])
            directions[path] = self._bounded(axes, direction, weights[path])
        updates = descend(unflatten(directions), trainable, learning_rate, self.weight_decay)
        return updates, {"count": count, "moments": unflatten(moments)}

    def _means(self, axes: Axes, square: jax.Array) -> Any:
        """Give {row, column} means of one stack of matrices, or the array itself."""
        if not axes.is_kernel or min(axes.matrix(square.shape)[1:]) < self.min_factored:
            return square
        inputs, outputs = sides(axes)
        row, column = factor_names(axes)
        return {row: jnp.mean(square, outputs), column: jnp.mean(square, inputs)}

    def _bounded(self, axes: Axes, direction: jax.Array, weight: jax.Array) -> jax.Array:
        """Clip the root mean square of each matrix and make it relative to the weight's."""
        own = tuple(range(-len(axes.inputs + axes.outputs), 0))
        if self.clip_rms is not None:
            direction = direction / jnp.maximum(1.0, _rms(direction, own) / self.clip_rms)
        if self.min_scale is not None:
            direction = direction * jnp.maximum(self.min_scale, _rms(weight, own))
        return direction


def _inverse_root(axes: Axes, moment: Any) -> jax.Array:
    """Give 1 / sqrt(v) from v itself or from its row and column means."""
    if not isinstance(moment, dict):
        return jax.lax.rsqrt(moment)
    row, column = (moment[name] for name in factor_names(axes))
    inputs, outputs = sides(axes)
    kept = tuple(range(-len(inputs), 0))
    row = row / jnp.mean(row, kept, keepdims=True)
    row, column = jnp.expand_dims(row, outputs), jnp.expand_dims(column, inputs)
    return jax.lax.rsqrt(row) * jax.lax.rsqrt(column)


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(x * x, axes, keepdims=True))


def _moments(moments: Any, trainable: Any) -> dict[tuple[str, ...], Any]:
    """List the moments (arrays, or row and column) by the path of their parameter."""
    found = {}
    for path in flatten(trainable):
        node = moments
        for key in path:
            node = node[key]
        found[path] = node
    return found
