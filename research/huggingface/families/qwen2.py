"""Qwen2 and Qwen2.5: biases on queries, keys and values; sliding windows by layer."""

from __future__ import annotations

from typing import Any

from research.huggingface import windows
from research.huggingface.families import llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.models.architecture import Architecture


def read_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    """Read each layer's window: `layer_types`, or else every layer from `max_window_layers` on."""
    window = fields.take("sliding_window", 4096)
    window = window if fields.take("use_sliding_window", False) else None
    first = fields.take("max_window_layers", 28)
    return windows.read_windows(fields, num_layers, window, lambda layer: layer >= first)


def write_windows(arch: Architecture) -> dict[str, Any]:
    """Write what `read_windows` reads, also for readers that know no `layer_types`."""
    held = windows.write_windows(arch)
    full = next((i for i, window in enumerate(arch.windows) if window), arch.num_layers)
    return held | {"use_sliding_window": any(arch.windows), "max_window_layers": full}


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
