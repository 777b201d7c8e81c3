"""GLM-4.5, 4.6 and 4.7: half of each head rotated, DeepSeek's routing, the first layers dense."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import experts, llama, qwen3
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.huggingface.rotary import read_rope
from research.models.architecture import Architecture


def read(fields: Fields) -> Architecture:
    """Read a glm4_moe config."""
    rope = read_rope(fields, fraction=0.5)
    sizes = llama.read_sizes(fields, rope=rope, norm_eps=1e-5)
    return Architecture(
        **sizes,
        qkv_bias=bool(fields.take("attention_bias", False)),
        query_key_norm=bool(fields.take("use_qk_norm", False)),
        moe=experts.read_sigmoid(fields, sizes["num_layers"]),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write a glm4_moe config."""
    return (
        llama.write_sizes(arch)
        | experts.write_sigmoid(arch)
        | {
            "partial_rotary_factor": 1.0 if arch.rope is None else arch.rope.fraction,
            "attention_bias": arch.qkv_bias,
            "use_qk_norm": arch.query_key_norm,
        }
    )


FAMILY = Family(
    model_type="glm4_moe",
    class_name="Glm4MoeForCausalLM",
    read=read,
    write=write,
    names=qwen3.NAMES | experts.SIGMOID_NAMES,
    parameters=experts.PARAMETERS,
    ignored=experts.NEXT_TOKEN_LAYERS,
)
