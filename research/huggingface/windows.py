"""Which layers slide, between `config.json` and an architecture's windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from research.huggingface.fields import Fields
from research.models.architecture import Architecture

FULL, SLIDING = "full_attention", "sliding_attention"


def read_windows(
    fields: Fields, num_layers: int, window: int | None, slides: Callable[[int], bool]
) -> tuple[int | None, ...]:
    """Read each layer's window from `layer_types`.

    Args:
      window: of the layers that slide; None: none may.
      slides: which layers do where `layer_types` is absent: the family's rule.

    Raises:
      ValueError: a layer type is unknown, or slides where there is no window.
    """
    kinds = fields.take("layer_types", None)
    if kinds is None:
        kinds = [SLIDING if window and slides(i) else FULL for i in range(num_layers)]
    if len(kinds) != num_layers or set(kinds) - {FULL, SLIDING}:
        raise ValueError(
            f"{fields.where}: layer_types={kinds}; expected {num_layers} of {FULL!r} or {SLIDING!r}"
        )
    if SLIDING in kinds and not window:
        raise ValueError(
            f"{fields.where}: layer_types has {SLIDING!r}, but use_sliding_window is false or "
            "sliding_window is not set; set both, or make every layer full"
        )
    windows = tuple(window if kind == SLIDING else None for kind in kinds)
    return windows if SLIDING in kinds else ()


def write_windows(arch: Architecture) -> dict[str, Any]:
    """Write what `read_windows` reads, and the window itself."""
    windows = arch.windows or (None,) * arch.num_layers
    return {
        "sliding_window": next((window for window in windows if window), None),
        "layer_types": [SLIDING if window else FULL for window in windows],
    }
