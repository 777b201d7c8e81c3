"""Full fine-tuning: every parameter is trained."""

from __future__ import annotations

from typing import Any

import jax

from research.core.parts import part


@part
class Full:
    """Train every parameter at the dtype in which it is stored."""

    def split(self, params: Any, key: jax.Array) -> tuple[Any, Any]:
        """Give (params, nothing); no new parameter is drawn."""
        del key
        return params, {}

    def join(self, trainable: Any, frozen: Any, key: jax.Array | None = None) -> Any:
        """Give the trained tree itself."""
        del frozen, key
        return trainable

    def merge(self, trainable: Any, frozen: Any) -> Any:
        """Give the trained tree itself."""
        del frozen
        return trainable
