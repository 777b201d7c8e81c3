"""GPT-OSS: attention with sinks, every second layer sliding, experts with clamped activations."""

from __future__ import annotations

from typing import Any

from research.huggingface import mxfp4
from research.huggingface.families import experts, llama
from research.huggingface.family import Family, Foreign
from research.huggingface.fields import Fields
from research.huggingface.rotary import read_rope
from research.huggingface.windows import read_windows, write_windows
from research.models.activations import ClampedSwiglu
from research.models.architecture import Architecture, Moe
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.models.rope import Rope, YarnScaling

ROPE = Rope(
    theta=150000.0,
    scaling=YarnScaling(
        factor=32.0, original_max_positions=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
    ),
)
"""Where a config says nothing."""
_MLP = "model.layers.{layer}.mlp."
_GATE_UP = {"of": ("F", "F"), "stacked": True, "interleaved": True}
PARAMETERS = {
    "layers/ffw/gate_E_D_F": Foreign(_MLP + "experts.gate_up_proj", **_GATE_UP, conv=True),
    "layers/ffw/up_E_D_F": Foreign(_MLP + "experts.gate_up_proj", **_GATE_UP, index=1, conv=True),
    "layers/ffw/down_E_F_D": Foreign(_MLP + "experts.down_proj", stacked=True, conv=True),
    "layers/ffw/router_D_E": _MLP + "router.weight",
}
NAMES = (llama.NAMES | PARAMETERS) | {
    "layers/attention/sinks_KG": "model.layers.{layer}.self_attn.sinks",
    "layers/ffw/router_bias_E": _MLP + "router.bias",
    "layers/ffw/gate_bias_EF": Foreign(_MLP + "experts.gate_up_proj_bias", **_GATE_UP),
    "layers/ffw/up_bias_EF": Foreign(_MLP + "experts.gate_up_proj_bias", **_GATE_UP, index=1),
    "layers/ffw/down_bias_ED": Foreign(_MLP + "experts.down_proj_bias", stacked=True),
}


def read(fields: Fields) -> Architecture:
    """Read a gpt_oss config; weights in MXFP4 are read as what they stand for.

    Raises:
      ValueError: the weights are quantised otherwise, or a layer is neither full nor sliding.
    """
    mxfp4.take(fields)
    said = any(fields.take(name, None) for name in ("rope_scaling", "rope_parameters"))
    theta = fields.take("rope_theta", None)
    rope = read_rope(fields, theta=ROPE.theta) if said or theta is not None else ROPE
    sizes = llama.read_sizes(fields, head_dim=64, rope=rope, norm_eps=1e-5)
    biased = bool(fields.take("attention_bias", True))
    per_token = fields.take("num_experts_per_tok", 4)
    fields.expect("experts_per_token", per_token, why="it is num_experts_per_tok once more")
    fields.take("initial_context_length", None)  # what the rope settings say already
    return Architecture(
        **sizes,
        qkv_bias=biased,
        out_bias=biased,
        sinks=True,
        activation=ClampedSwiglu(
            alpha=float(fields.take("swiglu_alpha", 1.702)),
            limit=float(fields.take("swiglu_limit", 7.0)),
        ),
        windows=read_windows(
            fields,
            sizes["num_layers"],
            fields.take("sliding_window", 128),
            lambda layer: layer % 2 == 0,
        ),
        moe=Moe(
            num_experts=fields.take("num_local_experts", 128),
            experts_per_token=per_token,
            expert_dim=sizes["ffw_dim"],
            router=SoftmaxTopK(),
            router_bias=True,
            expert_bias=True,
        ),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write a gpt_oss config, of weights that are not quantised."""
    moe = experts.of(arch)
    clamped = arch.activation if isinstance(arch.activation, ClampedSwiglu) else ClampedSwiglu()
    return (llama.write_sizes(arch) | write_windows(arch)) | {
        "attention_bias": arch.qkv_bias,
        "swiglu_alpha": clamped.alpha,
        "swiglu_limit": clamped.limit,
        "intermediate_size": moe.expert_dim,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
    }


FAMILY = Family(
    model_type="gpt_oss",
    class_name="GptOssForCausalLM",
    read=read,
    write=write,
    names=NAMES,
    parameters=PARAMETERS,
)
