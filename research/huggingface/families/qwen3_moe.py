"""Qwen3-MoE: the attention of Qwen3, and experts in all layers or in some."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import experts, llama, qwen3
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.models.architecture import Architecture, Moe
from research.models.moe.softmax_top_k import SoftmaxTopK


def read(fields: Fields) -> Architecture:
    """Read a qwen3_moe config; a window, where it is used, is every layer's."""
    sizes = llama.read_sizes(fields)
    biased = bool(fields.take("attention_bias", False))
    return Architecture(
        **sizes,
        query_key_norm=True,
        qkv_bias=biased,
        out_bias=biased,
        windows=_read_windows(fields, sizes["num_layers"]),
        moe=Moe(
            num_experts=fields.take("num_experts", None) or fields.take("num_local_experts"),
            experts_per_token=fields.take("num_experts_per_tok", 8),
            expert_dim=fields.take("moe_intermediate_size", 768),
            router=SoftmaxTopK(normalise=bool(fields.take("norm_topk_prob", False))),
            dense_layers=_read_dense(fields, sizes["num_layers"]),
        ),
    )


def _read_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    window = fields.take("sliding_window", 4096)
    fields.take("max_window_layers", None)  # which this family's code never looks at
    used = fields.take("use_sliding_window", False) and window
    return (window,) * num_layers if used else ()


def _read_dense(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """Read which layers keep a dense feed-forward: by their number, or by a step."""
    named = fields.take("mlp_only_layers", None) or ()
    step = fields.take("decoder_sparse_step", 1)
    return tuple(i for i in range(num_layers) if i in named or (i + 1) % step)


def write(arch: Architecture) -> dict[str, Any]:
    """Write a qwen3_moe config."""
    moe = experts.of(arch)
    return llama.write_sizes(arch) | {
        "attention_bias": arch.qkv_bias,
        "use_sliding_window": bool(arch.windows),
        "sliding_window": arch.window(0),
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(moe.dense_layers),
        "moe_intermediate_size": moe.expert_dim,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "norm_topk_prob": experts.normalises(moe),
    }


FAMILY = Family(
    model_type="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    read=read,
    write=write,
    names=qwen3.NAMES | experts.NAMES,
    parameters=experts.PARAMETERS,
)
