"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any

import jax
import optax

from research.core.parts import part, require
from research.optimizers.matrices import descend, lift


@part
class Lion:
    """Descend along sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g; one float32 moment.

    Every element moves by the learning rate, so it wants 3 to 10 times less of it than AdamW, and
    as many times more weight decay.

    Source: Chen et al. 2023, arXiv 2302.06675; the direction is `optax.scale_by_lion`.
    """

    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require(
            self,
            (0 <= self.b1 < 1, f"b1={self.b1} must lie in [0, 1)"),
            (0 <= self.b2 < 1, f"b2={self.b2} must lie in [0, 1)"),
            (self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative"),
        )

    def init(self, trainable: Any) -> Any:
        """Make a zero moment, float32."""
        return self._direction().init(lift(trainable))

    def update(
        self, gradients: Any, state: Any, trainable: Any, learning_rate: jax.Array
    ) -> tuple[Any, Any]:
        """Give (updates to add, new state)."""
        direction, state = self._direction().update(lift(gradients), state)
        return descend(direction, trainable, learning_rate, self.weight_decay), state

    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)
