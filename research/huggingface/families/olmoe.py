"""OLMoE: norms over all heads at once, experts weighted by their own probability."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import experts, llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.models.architecture import Architecture, Moe
from research.models.moe.softmax_top_k import SoftmaxTopK

NAMES = (
    llama.NAMES
    | experts.NAMES
    | {
        "layers/attention/query_norm_KGH": "model.layers.{layer}.self_attn.q_norm.weight",
        "layers/attention/key_norm_KH": "model.layers.{layer}.self_attn.k_norm.weight",
    }
)


def read(fields: Fields) -> Architecture:
    """Read an olmoe config."""
    sizes = llama.read_sizes(fields, norm_eps=1e-5)
    biased = bool(fields.take("attention_bias", False))
    clip = fields.take("clip_qkv", None)
    return Architecture(
        **sizes,
        projection_norm=True,
        qkv_bias=biased,
        out_bias=biased,
        qkv_clip=None if clip is None else float(clip),
        moe=Moe(
            num_experts=fields.take("num_experts", 64),
            experts_per_token=fields.take("num_experts_per_tok", 8),
            expert_dim=sizes["ffw_dim"],
            router=SoftmaxTopK(normalise=bool(fields.take("norm_topk_prob", False))),
        ),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write an olmoe config."""
    moe = experts.of(arch)
    return llama.write_sizes(arch) | {
        "attention_bias": arch.qkv_bias,
        "clip_qkv": arch.qkv_clip,
        "intermediate_size": moe.expert_dim,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "norm_topk_prob": experts.normalises(moe),
    }


FAMILY = Family(
    model_type="olmoe",
    class_name="OlmoeForCausalLM",
    read=read,
    write=write,
    names=NAMES,
    parameters=experts.PARAMETERS,
)
