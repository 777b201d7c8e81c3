"""Qwen3 (dense): norms on queries and keys, heads of 128; sliding windows by layer."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import llama, qwen2
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.models.architecture import Architecture

NAMES = llama.NAMES | {
    "layers/attention/query_norm_H": "model.layers.{layer}.self_attn.q_norm.weight",
    "layers/attention/key_norm_H": "model.layers.{layer}.self_attn.k_norm.weight",
}


def read(fields: Fields) -> Architecture:
    """Read a qwen3 config."""
    sizes = llama.read_sizes(fields, head_dim=128)
    biased = bool(fields.take("attention_bias", False))
    return Architecture(
        **sizes,
        query_key_norm=True,
        qkv_bias=biased,
        out_bias=biased,
        windows=qwen2.read_windows(fields, sizes["num_layers"]),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write a qwen3 config."""
    bias = {"attention_bias": arch.qkv_bias}
    return llama.write_sizes(arch) | bias | qwen2.write_windows(arch)


FAMILY = Family(
    model_type="qwen3", class_name="Qwen3ForCausalLM", read=read, write=write, names=NAMES
)
