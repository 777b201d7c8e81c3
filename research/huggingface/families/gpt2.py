"""GPT-2: learned positions, layer norms, biases everywhere, an ungated feed-forward, Conv1D."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from research.huggingface.activation import read_activation, write_activation
from research.huggingface.family import Family, Foreign
from research.huggingface.fields import Fields
from research.models.architecture import Architecture

_QKV = functools.partial(Foreign, of=("KGH", "KH", "KH"), conv=True)
_WEIGHT, _BIAS = "h.{layer}.attn.c_attn.weight", "h.{layer}.attn.c_attn.bias"
BARE = {
    "embed_V_D": Foreign("wte.weight"),
    "positions_S_D": Foreign("wpe.weight"),
    "layers/attention_norm_D": Foreign("h.{layer}.ln_1.weight"),
    "layers/attention_norm_bias_D": Foreign("h.{layer}.ln_1.bias"),
    "layers/attention/query_D_KGH": _QKV(_WEIGHT, index=0),
    "layers/attention/key_D_KH": _QKV(_WEIGHT, index=1),
    "layers/attention/value_D_KH": _QKV(_WEIGHT, index=2),
    "layers/attention/query_bias_KGH": _QKV(_BIAS, index=0),
    "layers/attention/key_bias_KH": _QKV(_BIAS, index=1),
    "layers/attention/value_bias_KH": _QKV(_BIAS, index=2),
    "layers/attention/out_KGH_D": Foreign("h.{layer}.attn.c_proj.weight", conv=True),
    "layers/attention/out_bias_D": Foreign("h.{layer}.attn.c_proj.bias"),
    "layers/ffw_norm_D": Foreign("h.{layer}.ln_2.weight"),
    "layers/ffw_norm_bias_D": Foreign("h.{layer}.ln_2.bias"),
    "layers/ffw/up_D_F": Foreign("h.{layer}.mlp.c_fc.weight", conv=True),
    "layers/ffw/up_bias_F": Foreign("h.{layer}.mlp.c_fc.bias"),
    "layers/ffw/down_F_D": Foreign("h.{layer}.mlp.c_proj.weight", conv=True),
    "layers/ffw/down_bias_D": Foreign("h.{layer}.mlp.c_proj.bias"),
    "final_norm_D": Foreign("ln_f.weight"),
    "final_norm_bias_D": Foreign("ln_f.bias"),
}
"""Names as OpenAI's folders have them; transformers puts `transformer.` before them."""
HEAD = {"head_D_V": "lm_head.weight"}
NAMES = HEAD | {
    ours: dataclasses.replace(foreign, name=f"transformer.{foreign.name}")
    for ours, foreign in BARE.items()
}
MASKS = ("*.attn.bias", "*.attn.masked_bias")
"""Causal masks that old folders store."""
SUMMARY = (
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
)
DROPOUT = ("attn_pdrop", "embd_pdrop", "resid_pdrop")


def read(fields: Fields) -> Architecture:
    """Read a gpt2 config. The dropout it was pre-trained with is not applied."""
    for name in (*SUMMARY, *DROPOUT, "n_ctx", "reorder_and_upcast_attn"):
        fields.take(name, None)
    why = "scores are scaled alike in every layer"
    fields.expect("scale_attn_by_inverse_layer_idx", False, why=why)
    model_dim, num_heads = fields.take("n_embd"), fields.take("n_head")
    std = fields.take("initializer_range", None)
    return Architecture(
        vocab_size=fields.take("vocab_size"),
        model_dim=model_dim,
        num_layers=fields.take("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        ffw_dim=fields.take("n_inner", None) or 4 * model_dim,
        rope=None,
        learned_positions=True,
        norm_eps=float(fields.take("layer_norm_epsilon", 1e-5)),
        layer_norm=True,
        qkv_bias=True,
        out_bias=True,
        ffw_bias=True,
        ffw_gated=False,
        activation=read_activation(fields, "activation_function", "gelu_new"),
        attention_scale=None if fields.take("scale_attn_weights", True) else 1.0,
        tied_head=bool(fields.take("tie_word_embeddings", True)),
        max_positions=fields.take("n_positions"),
        init_std=None if std is None else float(std),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write a gpt2 config, without dropout."""
    std = {} if arch.init_std is None else {"initializer_range": arch.init_std}
    return {
        "vocab_size": arch.vocab_size,
        "n_embd": arch.model_dim,
        "n_layer": arch.num_layers,
        "n_head": arch.num_heads,
        "n_inner": arch.ffw_dim,
        "n_positions": arch.max_positions,
        "n_ctx": arch.max_positions,
        "activation_function": write_activation(arch.activation, "gelu_new"),
        "layer_norm_epsilon": arch.norm_eps,
        "scale_attn_weights": arch.attention_scale is None,
        "tie_word_embeddings": arch.tied_head,
        **dict.fromkeys(DROPOUT, 0.0),
        **std,
    }


FAMILY = Family(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    read=read,
    write=write,
    names=NAMES,
    alternatives=(BARE,),
    ignored=MASKS,
)
