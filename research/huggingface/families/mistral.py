"""Mistral 7B and what shares its tensors: one sliding window for all layers, or none."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.models.architecture import Architecture


def read(fields: Fields) -> Architecture:
    """Read a mistral config; an absent `sliding_window` means 4096, a null one means none."""
    sizes = llama.read_sizes(fields)
    window = fields.take("sliding_window", 4096)
    return Architecture(**sizes, windows=(window,) * sizes["num_layers"] if window else ())


def write(arch: Architecture) -> dict[str, Any]:
    """Write a mistral config."""
    return llama.write_sizes(arch) | {"sliding_window": arch.window(0)}


FAMILY = Family(
    model_type="mistral", class_name="MistralForCausalLM", read=read, write=write, names=llama.NAMES
)
