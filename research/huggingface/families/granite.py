"""Granite 3: a llama whose embeddings, scores, branches and logits are multiplied by constants."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.models.architecture import Architecture

DECIMALS = 9
"""To which a divisor of logits is rounded when written: 1 / (1 / 49) is not 49."""


def read(fields: Fields) -> Architecture:
    """Read a granite config. The dropout it was pre-trained with is not applied."""
    sizes = llama.read_sizes(fields)
    fields.take("attention_dropout", 0.0)
    biased = bool(fields.take("attention_bias", False))
    scale = float(fields.take("attention_multiplier", 1.0))
    return Architecture(
        **sizes,
        qkv_bias=biased,
        out_bias=biased,
        ffw_bias=bool(fields.take("mlp_bias", False)),
        attention_scale=None if scale == sizes["head_dim"] ** -0.5 else scale,
        embed_scale=float(fields.take("embedding_multiplier", 1.0)),
        residual_scale=float(fields.take("residual_multiplier", 1.0)),
        logit_scale=1.0 / fields.take("logits_scaling", 1.0),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write a granite config."""
    divisor = round(1.0 / arch.logit_scale, DECIMALS)
    exact = 1.0 / divisor == arch.logit_scale
    return llama.write(arch) | {
        "attention_multiplier": arch.score_scale,
        "embedding_multiplier": arch.embed_scale,
        "residual_multiplier": arch.residual_scale,
        "logits_scaling": divisor if exact else 1.0 / arch.logit_scale,
    }


FAMILY = Family(
    model_type="granite",
    class_name="GraniteForCausalLM",
    read=read,
    write=write,
    names=llama.NAMES,
)
