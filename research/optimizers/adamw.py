"""AdamW: Adam's direction with decoupled weight decay on kernels."""

from __future__ import annotations

from typing import Any

import jax
import optax

from research.core.parts import part, require
from research.optimizers.matrices import descend, lift
from research.optimizers.moments import Float32, Moments, seed_of


@part
class AdamW:
    """Descend along m / (sqrt(v) + eps), both bias-corrected, plus weight_decay W for kernels.

    Elementwise: a stack is its layers, and a kernel its matrix, by nature.

    Attributes:
      moments: how m and v are kept between steps; an update always computes with float32.

    Source: Loshchilov & Hutter 2017, arXiv 1711.05101; the direction is `optax.scale_by_adam`.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    moments: Moments = Float32()

    def __post_init__(self) -> None:
        require(
            self,
            (0 <= self.b1 < 1, f"b1={self.b1} must lie in [0, 1)"),
            (0 <= self.b2 < 1, f"b2={self.b2} must lie in [0, 1)"),
            (self.eps > 0, f"eps={self.eps} must be positive"),
            (self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative"),
        )

    def init(self, trainable: Any) -> Any:
        """Make zero moments."""
        return self._kept(self._direction().init(lift(trainable)))

    def update(
        self, gradients: Any, state: Any, trainable: Any, learning_rate: jax.Array
    ) -> tuple[Any, Any]:
        """Give (updates to add, new state)."""
        direction, state = self._direction().update(lift(gradients), self._read(state))
        updates = descend(direction, trainable, learning_rate, self.weight_decay)
        return updates, self._kept(state)

    def _kept(self, state: Any) -> Any:
        m = self.moments.keep(state.mu, seed_of(state.count, 1), signed=True)
        v = self.moments.keep(state.nu, seed_of(state.count, 2), signed=False)
        return state._replace(mu=m, nu=v)

    def _read(self, state: Any) -> Any:
        m = self.moments.read(state.mu, signed=True)
        return state._replace(mu=m, nu=self.moments.read(state.nu, signed=False))

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)
