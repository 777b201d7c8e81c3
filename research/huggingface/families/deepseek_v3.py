"""DeepSeek-V3, R1 and what shares their tensors (Moonlight): latent attention, sigmoid routing."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import experts, llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.huggingface.rotary import read_rope
from research.models.architecture import Architecture, Latent
from research.models.rope import Rope, YarnScaling

NAMES = (
    llama.NAMES
    | experts.SIGMOID_NAMES
    | {
        "layers/attention/query_down_D_I": "model.layers.{layer}.self_attn.q_a_proj.weight",
        "layers/attention/query_down_bias_I": "model.layers.{layer}.self_attn.q_a_proj.bias",
        "layers/attention/query_norm_I": "model.layers.{layer}.self_attn.q_a_layernorm.weight",
        "layers/attention/query_up_I_KGH": "model.layers.{layer}.self_attn.q_b_proj.weight",
        "layers/attention/latent_D_Q": "model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight",
        "layers/attention/latent_bias_Q": "model.layers.{layer}.self_attn.kv_a_proj_with_mqa.bias",
        "layers/attention/latent_norm_J": "model.layers.{layer}.self_attn.kv_a_layernorm.weight",
        "layers/attention/key_value_J_KU": "model.layers.{layer}.self_attn.kv_b_proj.weight",
        "layers/attention/out_KW_D": "model.layers.{layer}.self_attn.o_proj.weight",
    }
)


def read(fields: Fields) -> Architecture:
    """Read a deepseek_v3 config.

    `auto_map` names the code that first computed this model; what it computes is this family.
    """
    fields.take("auto_map", None)
    latent = Latent(
        query_rank=fields.take("q_lora_rank", None),
        kv_rank=fields.take("kv_lora_rank"),
        nope_dim=fields.take("qk_nope_head_dim"),
        rotary_dim=fields.take("qk_rope_head_dim"),
        value_dim=fields.take("v_head_dim"),
    )
    width = latent.nope_dim + latent.rotary_dim
    fields.expect("qk_head_dim", width, why="it is qk_nope_head_dim + qk_rope_head_dim")
    fields.expect("head_dim", latent.rotary_dim, why="it is qk_rope_head_dim in this family")
    rope = read_rope(fields, interleaved=bool(fields.take("rope_interleave", True)))
    sizes: dict[str, Any] = llama.read_sizes(fields, rope=rope) | {"head_dim": width}
    biased = bool(fields.take("attention_bias", False))
    return Architecture(
        **sizes,
        qkv_bias=biased,
        out_bias=biased,
        latent=latent,
        attention_scale=_scale(width, rope),
        moe=experts.read_sigmoid(fields, sizes["num_layers"]),
    )


def _scale(width: int, rope: Rope) -> float | None:
    """width^-0.5 m^2, with YaRN's m = 0.1 mscale_all_dim ln(factor) + 1; None where m is 1.

    Source: `yarn_get_mscale` of DeepSeek-V3's released code.
    """
    scaling = rope.scaling
    if not isinstance(scaling, YarnScaling) or not scaling.mscale_all_dim:
        return None
    return width**-0.5 * scaling.heat(scaling.mscale_all_dim) ** 2


def write(arch: Architecture) -> dict[str, Any]:
    """Write a deepseek_v3 config.

    Raises:
      ValueError: keys and values come from no latent, or there are no experts.
    """
    latent = arch.latent
    if latent is None:
        raise ValueError(
            "latent: None cannot be said in a deepseek_v3 config.json; choose another family"
        )
    sizes = llama.write_sizes(arch)
    del sizes["head_dim"]  # which this family calls otherwise
    return (
        sizes
        | experts.write_sigmoid(arch)
        | {
            "attention_bias": arch.qkv_bias,
            "q_lora_rank": latent.query_rank,
            "kv_lora_rank": latent.kv_rank,
            "qk_nope_head_dim": latent.nope_dim,
            "qk_rope_head_dim": latent.rotary_dim,
            "v_head_dim": latent.value_dim,
            "rope_interleave": arch.rope is not None and arch.rope.interleaved,
        }
    )


FAMILY = Family(
    model_type="deepseek_v3",
    class_name="DeepseekV3ForCausalLM",
    read=read,
    write=write,
    names=NAMES,
    parameters=experts.PARAMETERS,
    ignored=experts.NEXT_TOKEN_LAYERS,
)
