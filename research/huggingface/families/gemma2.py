"""Gemma 2: windows on every other layer, norms on both sides of a branch, soft-capped scores."""

from __future__ import annotations

from typing import Any

from research.huggingface.activation import read_activation, write_activation
from research.huggingface.families import llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.huggingface.windows import read_windows, write_windows
from research.models.architecture import Architecture

NAMES = llama.NAMES | {
    "layers/attention_post_norm_D": "model.layers.{layer}.post_attention_layernorm.weight",
    "layers/ffw_norm_D": "model.layers.{layer}.pre_feedforward_layernorm.weight",
    "layers/ffw_post_norm_D": "model.layers.{layer}.post_feedforward_layernorm.weight",
}


def read_shared(fields: Fields, sizes: dict[str, Any]) -> dict[str, Any]:
    """Read what Gemma 2 and 3 share; `hidden_activation` goes before `hidden_act`."""
    activation = read_activation(fields, "hidden_activation", "gelu_pytorch_tanh")
    fields.take("hidden_act", None)
    fields.take("cache_implementation", None)
    fields.expect("use_bidirectional_attention", False, why="only causal attention is supported")
    biased = bool(fields.take("attention_bias", False))
    scalar = fields.take("query_pre_attn_scalar", 256)
    return sizes | {
        "norm_offset": 1.0,
        "post_norm": True,
        "activation": activation,
        "embed_scale": sizes["model_dim"] ** 0.5,
        "attention_scale": None if scalar == sizes["head_dim"] else scalar**-0.5,
        "qkv_bias": biased,
        "out_bias": biased,
    }


def write_shared(arch: Architecture) -> dict[str, Any]:
    """Write what `read_shared` and the sizes hold."""
    named = write_activation(arch.activation, "gelu_pytorch_tanh")
    return llama.write_sizes(arch) | {
        "hidden_act": named,
        "hidden_activation": named,
        "attention_bias": arch.qkv_bias,
        "query_pre_attn_scalar": round(arch.score_scale**-2),
        **write_windows(arch),
    }


def read(fields: Fields) -> Architecture:
    """Read a gemma2 config; every other layer slides, the first one does."""
    sizes = llama.read_sizes(fields, head_dim=256, tied=True)
    window = fields.take("sliding_window", 4096)
    fields.expect("sliding_window_size", window, why="it is the old name of sliding_window")
    return Architecture(
        **read_shared(fields, sizes),
        attention_cap=_cap(fields, "attn_logit_softcapping", 50.0),
        logit_cap=_cap(fields, "final_logit_softcapping", 30.0),
        windows=read_windows(fields, sizes["num_layers"], window, lambda layer: layer % 2 == 0),
    )


def _cap(fields: Fields, name: str, default: float) -> float | None:
    cap = fields.take(name, default)
    return float(cap) if cap else None


def write(arch: Architecture) -> dict[str, Any]:
    """Write a gemma2 config."""
    caps = {
        "attn_logit_softcapping": arch.attention_cap,
        "final_logit_softcapping": arch.logit_cap,
    }
    return write_shared(arch) | caps


FAMILY = Family(
    model_type="gemma2", class_name="Gemma2ForCausalLM", read=read, write=write, names=NAMES
)
