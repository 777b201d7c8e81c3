"""Mixtral 8x7B and 8x22B: Mistral's attention, and eight experts of which a token takes two."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import experts, llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.huggingface.rotary import read_rope
from research.models.architecture import Architecture, Moe
from research.models.moe.softmax_top_k import SoftmaxTopK

THETA = 1000000.0
NAMES = llama.NAMES | {
    "layers/ffw/router_D_E": "model.layers.{layer}.block_sparse_moe.gate.weight",
    "layers/ffw/gate_E_D_F": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
    "layers/ffw/up_E_D_F": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
    "layers/ffw/down_E_F_D": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
}


def read(fields: Fields) -> Architecture:
    """Read a mixtral config; an absent `sliding_window` means none."""
    sizes = llama.read_sizes(fields, rope=read_rope(fields, theta=THETA), norm_eps=1e-5)
    window = fields.take("sliding_window", None)
    return Architecture(
        **sizes,
        windows=(window,) * sizes["num_layers"] if window else (),
        moe=Moe(
            num_experts=fields.take("num_local_experts", 8),
            experts_per_token=fields.take("num_experts_per_tok", 2),
            expert_dim=sizes["ffw_dim"],
            router=SoftmaxTopK(),
        ),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write a mixtral config."""
    moe = experts.of(arch)
    return llama.write_sizes(arch) | {
        "sliding_window": arch.window(0),
        "intermediate_size": moe.expert_dim,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
    }


FAMILY = Family(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    read=read,
    write=write,
    names=NAMES,
    parameters=experts.PARAMETERS,
)
