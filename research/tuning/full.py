"""Full fine-tuning: every parameter is trained, but for those that are named frozen."""

from __future__ import annotations

from typing import Any

import jax

from research.core.parts import part
from research.core.tree import flatten, unflatten
from research.tuning.targets import named


@part
class Full:
    """Train every parameter at the dtype in which it is stored.

    Attributes:
      frozen: parameters that stay as they are (`router_D_E`: a frozen router), by name, by the end
        of their path, or "all_linear".
    """

    frozen: tuple[str, ...] = ()

    def split(self, params: Any, key: jax.Array) -> tuple[Any, Any]:
        """Give (what is trained, what is frozen); no new parameter is drawn.

        Raises:
          ValueError: a name of `frozen` matches nothing; the error lists the names there are.
        """
        del key
        leaves = flatten(params)
        held = set(named(leaves, self.frozen, "frozen"))
        trained = {path: leaf for path, leaf in leaves.items() if path not in held}
        return unflatten(trained), unflatten({path: leaves[path] for path in held})

    def join(self, trainable: Any, frozen: Any, key: jax.Array | None = None) -> Any:
        """Give the whole tree."""
        del key
        return unflatten(flatten(trainable) | flatten(frozen)) if frozen else trainable

    def merge(self, trainable: Any, frozen: Any) -> Any:
        """Give the whole tree."""
        return self.join(trainable, frozen)
