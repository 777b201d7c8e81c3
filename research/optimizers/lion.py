"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any

import jax
import optax

from research.core.parts import part, require
from research.optimizers.matrices import descend, lift
from research.optimizers.moments import Float32, Moments, seed_of


@part
class Lion:
    """Descend along sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g; one moment.

    Every element moves by the learning rate, so it wants 3 to 10 times less of it than AdamW, and
    as many times more weight decay.

    Attributes:
      moments: how m is kept between steps; an update always computes with float32.

    Source: Chen et al. 2023, arXiv 2302.06675; the direction is `optax.scale_by_lion`.
    """

    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    moments: Moments = Float32()

    def __post_init__(self) -> None:
        require(
            self,
            (0 <= self.b1 < 1, f"b1={self.b1} must lie in [0, 1)"),
            (0 <= self.b2 < 1, f"b2={self.b2} must lie in [0, 1)"),
            (self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative"),
        )

    def init(self, trainable: Any) -> Any:
        """Make a zero moment."""
        return self._kept(self._direction().init(lift(trainable)))

    def update(
        self, gradients: Any, state: Any, trainable: Any, learning_rate: jax.Array
    ) -> tuple[Any, Any]:
        """Give (updates to add, new state)."""
        held = state._replace(mu=self.moments.read(state.mu, signed=True))
        direction, state = self._direction().update(lift(gradients), held)
        updates = descend(direction, trainable, learning_rate, self.weight_decay)
        return updates, self._kept(state)

    def _kept(self, state: Any) -> Any:
        m = self.moments.keep(state.mu, seed_of(state.count, 1), signed=True)
        return state._replace(mu=m)

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)
