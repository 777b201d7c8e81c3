"""GLM-4 (0414): norms on both sides of a branch, half of each head rotated, by neighbours."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import llama, phi3
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.huggingface.rotary import read_rope
from research.models.architecture import Architecture

FRACTION = 0.5
EPS = 1.5625e-7
NAMES = llama.NAMES | {
    "layers/attention_post_norm_D": "model.layers.{layer}.post_self_attn_layernorm.weight",
    "layers/ffw_post_norm_D": "model.layers.{layer}.post_mlp_layernorm.weight",
    "layers/ffw/gate_D_F": phi3.GATE_UP(index=0),
    "layers/ffw/up_D_F": phi3.GATE_UP(index=1),
}


def read(fields: Fields) -> Architecture:
    """Read a glm4 config."""
    rope = read_rope(fields, fraction=FRACTION, interleaved=True)
    return Architecture(
        **llama.read_sizes(fields, head_dim=128, norm_eps=EPS, rope=rope),
        post_norm=True,
        qkv_bias=bool(fields.take("attention_bias", True)),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write a glm4 config."""
    return llama.write_sizes(arch) | {
        "attention_bias": arch.qkv_bias,
        "partial_rotary_factor": arch.rope.fraction if arch.rope else FRACTION,
    }


FAMILY = Family(
    model_type="glm4", class_name="Glm4ForCausalLM", read=read, write=write, names=NAMES
)
