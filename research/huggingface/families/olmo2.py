"""OLMo 2: norms after each branch instead of before, and over whole queries and keys."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.models.architecture import Architecture

NAMES = llama.NAMES | {
    "layers/attention_post_norm_D": "model.layers.{layer}.post_attention_layernorm.weight",
    "layers/ffw_post_norm_D": "model.layers.{layer}.post_feedforward_layernorm.weight",
    "layers/attention/query_norm_KGH": "model.layers.{layer}.self_attn.q_norm.weight",
    "layers/attention/key_norm_KH": "model.layers.{layer}.self_attn.k_norm.weight",
}


def read(fields: Fields) -> Architecture:
    """Read an olmo2 config."""
    biased = bool(fields.take("attention_bias", False))
    return Architecture(
        **llama.read_sizes(fields, norm_eps=1e-5),
        pre_norm=False,
        post_norm=True,
        projection_norm=True,
        qkv_bias=biased,
        out_bias=biased,
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write an olmo2 config."""
    return llama.write_sizes(arch) | {"attention_bias": arch.qkv_bias}


FAMILY = Family(
    model_type="olmo2", class_name="Olmo2ForCausalLM", read=read, write=write, names=NAMES
)
