"""Qwen2 and Qwen2.5: biases on queries, keys and values; sliding windows by layer."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.models.architecture import Architecture

FULL, SLIDING = "full_attention", "sliding_attention"


def read_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    """Read each layer's window: `layer_types`, or else every layer from `max_window_layers` on.

    Raises:
      ValueError: a layer type is unknown, or slides where there is no window.
    """
    window = fields.take("sliding_window", 4096)
    window = window if fields.take("use_sliding_window", False) else None
    first = fields.take("max_window_layers", 28)
    kinds = fields.take("layer_types", None)
    if kinds is None:
        slides = window is not None
        kinds = [SLIDING if slides and i >= first else FULL for i in range(num_layers)]
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
    """Write what `read_windows` reads, also for readers that know no `layer_types`."""
    windows = arch.windows or (None,) * arch.num_layers
    full = next((i for i, window in enumerate(windows) if window), arch.num_layers)
    return {
        "use_sliding_window": any(windows),
        "sliding_window": next((window for window in windows if window), None),
        "max_window_layers": full,
        "layer_types": [SLIDING if window else FULL for window in windows],
    }


def read(fields: Fields) -> Architecture:
    """Read a qwen2 config."""
    sizes = llama.read_sizes(fields)
    return Architecture(**sizes, qkv_bias=True, windows=read_windows(fields, sizes["num_layers"]))


def write(arch: Architecture) -> dict[str, Any]:
    """Write a qwen2 config."""
    return llama.write_sizes(arch) | write_windows(arch)


FAMILY = Family(
    model_type="qwen2", class_name="Qwen2ForCausalLM", read=read, write=write, names=llama.NAMES
)
