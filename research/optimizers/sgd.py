"""SGD, with heavy-ball or Nesterov momentum."""

from __future__ import annotations

from typing import Any

import jax
import optax

from research.core.parts import part, require
from research.optimizers.matrices import descend, lift


@part
class Sgd:
    """Descend along the gradient, or along its decayed sum.

    Attributes:
      momentum: factor on the old sum; None keeps no state.
      nesterov: look one step ahead of the sum.
      weight_decay: decoupled, for kernels.

    Source: Sutskever et al. 2013; the direction is `optax.trace`.
    """

    momentum: float | None = None
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require(
            self,
            (
                self.momentum is None or 0 <= self.momentum < 1,
                f"momentum={self.momentum} must lie in [0, 1), or be None",
            ),
            (
                self.momentum is not None or not self.nesterov,
                "nesterov=True has no effect without momentum; set momentum",
            ),
            (self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative"),
        )

    def init(self, trainable: Any) -> Any:
        """Make a zero sum of gradients, float32, or nothing."""
        return self._direction().init(lift(trainable))

    def update(
        self, gradients: Any, state: Any, trainable: Any, learning_rate: jax.Array
    ) -> tuple[Any, Any]:
        """Give (updates to add, new state)."""
        direction, state = self._direction().update(lift(gradients), state)
        return descend(direction, trainable, learning_rate, self.weight_decay), state

    def _direction(self) -> optax.GradientTransformation:
        if self.momentum is None:
            return optax.identity()
        return optax.trace(self.momentum, self.nesterov)
