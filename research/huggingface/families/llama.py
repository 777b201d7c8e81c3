"""Llama 2, 3, 3.1, 3.2 and what shares their tensors: TinyLlama, SmolLM2, Yi, ..."""

from __future__ import annotations

from typing import Any

from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.huggingface.rotary import read_rope, write_rope
from research.models.architecture import Architecture
from research.models.rope import Rope

NAMES = {
    "embed_V_D": "model.embed_tokens.weight",
    "final_norm_D": "model.norm.weight",
    "head_D_V": "lm_head.weight",
    "layers/attention_norm_D": "model.layers.{layer}.input_layernorm.weight",
    "layers/attention/query_D_KGH": "model.layers.{layer}.self_attn.q_proj.weight",
    "layers/attention/key_D_KH": "model.layers.{layer}.self_attn.k_proj.weight",
    "layers/attention/value_D_KH": "model.layers.{layer}.self_attn.v_proj.weight",
    "layers/attention/out_KGH_D": "model.layers.{layer}.self_attn.o_proj.weight",
    "layers/attention/query_bias_KGH": "model.layers.{layer}.self_attn.q_proj.bias",
    "layers/attention/key_bias_KH": "model.layers.{layer}.self_attn.k_proj.bias",
    "layers/attention/value_bias_KH": "model.layers.{layer}.self_attn.v_proj.bias",
    "layers/attention/out_bias_D": "model.layers.{layer}.self_attn.o_proj.bias",
    "layers/ffw_norm_D": "model.layers.{layer}.post_attention_layernorm.weight",
    "layers/ffw/gate_D_F": "model.layers.{layer}.mlp.gate_proj.weight",
    "layers/ffw/up_D_F": "model.layers.{layer}.mlp.up_proj.weight",
    "layers/ffw/down_F_D": "model.layers.{layer}.mlp.down_proj.weight",
    "layers/ffw/gate_bias_F": "model.layers.{layer}.mlp.gate_proj.bias",
    "layers/ffw/up_bias_F": "model.layers.{layer}.mlp.up_proj.bias",
    "layers/ffw/down_bias_D": "model.layers.{layer}.mlp.down_proj.bias",
}


def read_sizes(
    fields: Fields,
    head_dim: int | None = None,
    rope: Rope | None = None,
    norm_eps: float = 1e-6,
    tied: bool = False,
) -> dict[str, Any]:
    """Read what all families of this shape share.

    Args:
      head_dim, norm_eps, tied: the family's defaults, if any.
      rope: as the family reads it; None: as most do.
    """
    num_heads, model_dim = fields.take("num_attention_heads"), fields.take("hidden_size")
    std = fields.take("initializer_range", None)
    return {
        "vocab_size": fields.take("vocab_size"),
        "model_dim": model_dim,
        "num_layers": fields.take("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": fields.take("num_key_value_heads", None) or num_heads,
        "head_dim": fields.take("head_dim", head_dim) or model_dim // num_heads,
        "ffw_dim": fields.take("intermediate_size"),
        "rope": rope or read_rope(fields),
        "norm_eps": float(fields.take("rms_norm_eps", norm_eps)),
        "tied_head": bool(fields.take("tie_word_embeddings", tied)),
        "max_positions": fields.take("max_position_embeddings"),
        "init_std": None if std is None else float(std),
    }


def write_sizes(arch: Architecture) -> dict[str, Any]:
    """Write what `read_sizes` reads."""
    std = {} if arch.init_std is None else {"initializer_range": arch.init_std}
    return {
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.model_dim,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "intermediate_size": arch.ffw_dim,
        "hidden_act": "silu",
        "rms_norm_eps": arch.norm_eps,
        "tie_word_embeddings": arch.tied_head,
        "max_position_embeddings": arch.max_positions,
        "attention_dropout": 0.0,
        "pad_token_id": None,  # some families have one by default, beyond a small vocabulary
        **std,
        **write_rope(arch.rope),
    }


def read(fields: Fields) -> Architecture:
    """Read a llama config."""
    biased = bool(fields.take("attention_bias", False))
    return Architecture(
        **read_sizes(fields),
        qkv_bias=biased,
        out_bias=biased,
        ffw_bias=bool(fields.take("mlp_bias", False)),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write a llama config."""
    return write_sizes(arch) | {"attention_bias": arch.qkv_bias, "mlp_bias": arch.ffw_bias}


FAMILY = Family(
    model_type="llama", class_name="LlamaForCausalLM", read=read, write=write, names=NAMES
)
