"""Small random checkpoints of every mixture-of-experts family: configs, tensors, folders."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]
VOCAB_SIZE = 37
CASES: dict[str, dict[str, Any]] = {
    "mixtral": {
        "model_type": "mixtral", "hidden_size": 18, "intermediate_size": 23, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0, "sliding_window": None, "num_local_experts": 5,
        "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02, "output_router_logits": False,
    },
    "qwen3_moe_window": {  # layers 0 and 2 are dense by the step, 1 by its number
        "model_type": "qwen3_moe", "hidden_size": 20, "intermediate_size": 27,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 14,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_bias": True,
        "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3,
        "decoder_sparse_step": 2, "mlp_only_layers": [1], "moe_intermediate_size": 17,
        "num_experts": 7, "num_experts_per_tok": 3, "norm_topk_prob": True,
    },
    "olmoe": {
        "model_type": "olmoe", "hidden_size": 24, "intermediate_size": 19, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": True, "clip_qkv": 1.1,
        "num_experts": 9, "num_experts_per_tok": 4, "norm_topk_prob": False, "pad_token_id": 0,
    },
    "gpt_oss_window": {
        "model_type": "gpt_oss", "hidden_size": 26, "intermediate_size": 21, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 50.0, "rope_scaling": {
            "rope_type": "yarn", "factor": 8.0, "beta_fast": 2.0, "beta_slow": 0.2,
            "original_max_position_embeddings": 24, "truncate": False,
        },
        "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "attention_bias": True, "swiglu_limit": 0.8, "num_local_experts": 5,
        "num_experts_per_tok": 3, "experts_per_token": 3, "initial_context_length": 24,
        "router_aux_loss_coef": 0.9, "output_router_logits": False, "pad_token_id": 0,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3", "hidden_size": 28, "intermediate_size": 33,
        "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3,
        "rms_norm_eps": 1e-3, "rope_theta": 10000.0, "rope_scaling": {
            "type": "yarn", "factor": 4.0, "beta_fast": 8, "beta_slow": 1, "mscale": 0.7,
            "mscale_all_dim": 1.3, "original_max_position_embeddings": 40,
        },
        "q_lora_rank": 16, "kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6,
        "v_head_dim": 8, "attention_bias": True, "n_routed_experts": 8, "n_shared_experts": 2,
        "num_experts_per_tok": 3, "moe_intermediate_size": 11, "first_k_dense_replace": 1,
        "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.6, "norm_topk_prob": True,
        "moe_layer_freq": 1, "ep_size": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 1, "seq_aux": True, "aux_loss_alpha": 0.001,
    },
    "deepseek_v3_direct": {  # queries without a latent, halves rotated, no groups
        "model_type": "deepseek_v3", "hidden_size": 30, "intermediate_size": 35,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6, "rope_theta": 5000.0, "rope_scaling": None, "rope_interleave": False,
        "q_lora_rank": None, "kv_lora_rank": 14, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
        "v_head_dim": 10, "attention_bias": False, "n_routed_experts": 6, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 13, "first_k_dense_replace": 0,
        "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.4, "norm_topk_prob": False,
    },
    "glm4_moe": {
        "model_type": "glm4_moe", "hidden_size": 32, "intermediate_size": 37,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 12,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "rope_scaling": None,
        "partial_rotary_factor": 0.5, "attention_bias": True, "use_qk_norm": True,
        "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3,
        "moe_intermediate_size": 15, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 1.4, "norm_topk_prob": True, "num_nextn_predict_layers": 1,
    },
}  # fmt: skip
"""One entry a case; a name with `window` keeps its rows free of jumps in position."""
SEEDS: Mapping[str, int] = {
    "mixtral": 7,
    "qwen3_moe_window": 2,
    "gpt_oss_window": 1,
    "deepseek_v3": 2,
    "glm4_moe": 18,
}
"""Other than 0, where a token's choice of experts would be a near tie."""
CLASSES = {
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
}


def config_of(case: str) -> dict[str, Any]:
    """Give the config of a case in the style of transformers 4."""
    held = CASES[case]
    return {
        "architectures": [CLASSES[held["model_type"]]],
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **held,
    }


def shapes_of(config: dict[str, Any]) -> Shapes:
    """Spell out the tensors of a checkpoint: on purpose without the tables under test."""
    size = (config["vocab_size"], config["hidden_size"])
    shapes: Shapes = {"model.embed_tokens.weight": size, "lm_head.weight": size}
    shapes["model.norm.weight"] = (config["hidden_size"],)
    latent = config["model_type"] == "deepseek_v3"
    for layer in range(config["num_hidden_layers"]):
        found = {f"{name}_layernorm.weight": size[1:] for name in ("input", "post_attention")}
        found |= latent_shapes(config) if latent else attention_shapes(config)
        found |= sparse_shapes(config) if is_sparse(config, layer) else dense_shapes(config)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in found.items()}
    return shapes


def is_sparse(config: dict[str, Any], layer: int) -> bool:
    """Say whether a layer has experts."""
    if config["model_type"] == "qwen3_moe":
        every = (layer + 1) % config["decoder_sparse_step"] == 0
        return every and layer not in config["mlp_only_layers"]
    return layer >= config.get("first_k_dense_replace", 0)


def attention_shapes(config: dict[str, Any]) -> Shapes:
    """Spell out grouped-query attention."""
    family, d, heads = config["model_type"], config["hidden_size"], config["num_attention_heads"]
    width, biased = config.get("head_dim", d // heads), config.get("attention_bias", False)
    queries, keys = heads * width, config["num_key_value_heads"] * width
    shapes = linear("self_attn.q_proj", queries, d, biased)
    shapes |= linear("self_attn.k_proj", keys, d, biased)
    shapes |= linear("self_attn.v_proj", keys, d, biased)
    shapes |= linear("self_attn.o_proj", d, queries, biased and family != "glm4_moe")
    if family == "gpt_oss":
        shapes["self_attn.sinks"] = (heads,)
    if family == "olmoe":
        shapes |= {"self_attn.q_norm.weight": (queries,), "self_attn.k_norm.weight": (keys,)}
    if family == "qwen3_moe" or config.get("use_qk_norm"):
        shapes |= {f"self_attn.{name}_norm.weight": (width,) for name in "qk"}
    return shapes


def latent_shapes(config: dict[str, Any]) -> Shapes:
    """Spell out multi-head latent attention."""
    d, heads, biased = (
        config["hidden_size"],
        config["num_attention_heads"],
        config["attention_bias"],
    )
    rank, nope, rotary = (
        config[f"{n}"] for n in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")
    )
    value, query_rank = config["v_head_dim"], config["q_lora_rank"]
    queries = heads * (nope + rotary)
    if query_rank is None:
        shapes = linear("self_attn.q_proj", queries, d)
    else:
        shapes = linear("self_attn.q_a_proj", query_rank, d, biased)
        shapes |= linear("self_attn.q_b_proj", queries, query_rank)
        shapes["self_attn.q_a_layernorm.weight"] = (query_rank,)
    shapes |= linear("self_attn.kv_a_proj_with_mqa", rank + rotary, d, biased)
    shapes["self_attn.kv_a_layernorm.weight"] = (rank,)
    shapes |= linear("self_attn.kv_b_proj", heads * (nope + value), rank)
    return shapes | linear("self_attn.o_proj", d, heads * value, biased)


def dense_shapes(config: dict[str, Any], place: str = "mlp", width: int | None = None) -> Shapes:
    """Spell out a dense feed-forward."""
    d, f = config["hidden_size"], width or config["intermediate_size"]
    shapes = linear(f"{place}.gate_proj", f, d) | linear(f"{place}.up_proj", f, d)
    return shapes | linear(f"{place}.down_proj", d, f)


def sparse_shapes(config: dict[str, Any]) -> Shapes:
    """Spell out experts and their router."""
    family, d = config["model_type"], config["hidden_size"]
    f = config.get("moe_intermediate_size", config["intermediate_size"])
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    count = next(config[name] for name in names if name in config)
    if family == "gpt_oss":
        return {
            **linear("mlp.router", count, d, biased=True),
            "mlp.experts.gate_up_proj": (count, d, 2 * f),
            "mlp.experts.gate_up_proj_bias": (count, 2 * f),
            "mlp.experts.down_proj": (count, f, d),
            "mlp.experts.down_proj_bias": (count, d),
        }
    if family == "mixtral":
        shapes = linear("block_sparse_moe.gate", count, d)
        for expert in range(count):
            place = f"block_sparse_moe.experts.{expert}"
            shapes |= linear(f"{place}.w1", f, d) | linear(f"{place}.w3", f, d)
            shapes |= linear(f"{place}.w2", d, f)
        return shapes
    shapes = linear("mlp.gate", count, d)
    for expert in range(count):
        shapes |= dense_shapes(config, f"mlp.experts.{expert}", f)
    if "n_shared_experts" in config:
        shapes["mlp.gate.e_score_correction_bias"] = (count,)
        shapes |= dense_shapes(config, "mlp.shared_experts", f * config["n_shared_experts"])
    return shapes


def linear(name: str, num_out: int, num_in: int, biased: bool = False) -> Shapes:
    """Spell out one torch layer."""
    bias = {f"{name}.bias": (num_out,)} if biased else {}
    return {f"{name}.weight": (num_out, num_in), **bias}


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Draw every tensor, each from a stream of its own name."""
    drawn = {}
    for name, shape in shapes_of(config).items():
        random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
        value = random.standard_normal(shape)
        if "norm" in name:
            value = 1 + 0.2 * value
        elif name.endswith(("moe.gate.weight", "mlp.gate.weight", "router.weight")):
            value = ROUTER_SCALE * value / shape[1] ** 0.5
        elif len(shape) > 1 and "bias" not in name:
            value = 0.5 * value if "embed" in name else value / shape[1] ** 0.5
        else:
            value = 0.3 * value
        drawn[name] = value.astype(np.float32)
    return drawn


ROUTER_SCALE = 2.0  # logits that far apart, so that few tokens are near a tie


def write_checkpoint(folder: Path, case: str, seed: int | None = None) -> Path:
    """Write a case as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(case)
    (folder / "config.json").write_text(json.dumps(config))
    weights = random_weights(config, SEEDS.get(case, 0) if seed is None else seed)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_packed_checkpoint(folder: Path) -> Path:
    """Write a GPT-OSS whose experts are MXFP4, quantised from random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of("gpt_oss_window") | {
        "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"], "num_local_experts": 3,
        "num_experts_per_tok": 2, "experts_per_token": 2, "quantization_config": {
            "quant_method": "mxfp4", "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                "lm_head",
            ],
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    stored: dict[str, np.ndarray] = {}
    for name, value in random_weights(config).items():
        if name.endswith("_proj"):  # (E, in, out) is stored as E x out rows of groups
            blocks, scales = quantise(value.swapaxes(1, 2))
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            stored[name] = value
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round to the nearest MXFP4 numbers: groups of 32 along the last axis share a power of two.

    Source: OCP Microscaling Formats v1.0, section 6.3.
    """
    groups = rows.reshape(*rows.shape[:-1], -1, 32)
    exponent = np.floor(np.log2(np.abs(groups).max(axis=-1))).astype(np.int32) - 2
    sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    scaled = np.abs(groups) / np.exp2(exponent, dtype=np.float32)[..., None]
    codes = np.abs(scaled[..., None] - sizes).argmin(axis=-1) + 8 * (groups < 0)
    blocks = codes[..., ::2] + 16 * codes[..., 1::2]
    return blocks.astype(np.uint8), (exponent + 127).astype(np.uint8)
