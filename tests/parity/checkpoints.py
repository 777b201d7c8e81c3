"""Small random checkpoints of every family: their configs, their tensors, their folders.

Weights come from `RandomState`, whose stream NumPy has frozen, so that only answers are stored.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CASES: dict[str, dict[str, Any]] = {
    "llama_llama3": {
        "model_type": "llama", "hidden_size": 18, "intermediate_size": 29, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "attention_bias": True,
        "mlp_bias": True, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": False, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama_linear": {
        "model_type": "llama", "hidden_size": 24, "intermediate_size": 31, "num_hidden_layers": 2,
        "num_attention_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "llama_yarn": {
        "model_type": "llama", "hidden_size": 20, "intermediate_size": 33, "num_hidden_layers": 2,
        "num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 12, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40,
            "mscale": 0.7, "mscale_all_dim": 1.4, "truncate": False,
        },
    },
    "qwen2_windows": {
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 27, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": True, "use_sliding_window": True,
        "sliding_window": 4, "max_window_layers": 1,
    },
    "qwen2_yarn": {
        "model_type": "qwen2", "hidden_size": 30, "intermediate_size": 35, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "rope_theta": 1000.0, "tie_word_embeddings": False, "use_sliding_window": False,
        "sliding_window": 4096, "max_window_layers": 2,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "qwen3": {
        "model_type": "qwen3", "hidden_size": 22, "intermediate_size": 39, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": False, "attention_bias": False,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 3,
    },
    "qwen3_windows": {
        "model_type": "qwen3", "hidden_size": 26, "intermediate_size": 41, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 14, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "attention_bias": True,
        "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 6.0, "original_max_position_embeddings": 24,
            "attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2,
        },
    },
    "mistral_window": {
        "model_type": "mistral", "hidden_size": 28, "intermediate_size": 43, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "sliding_window": 5,
    },
    "llama_dynamic": {  # rows exceed the original length
        "model_type": "llama", "hidden_size": 33, "intermediate_size": 45, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 18, "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0, "tie_word_embeddings": False, "max_position_embeddings": 64,
        "rope_scaling": {"rope_type": "dynamic", "factor": 3.0},
    },
    "olmo2_dynamic": {  # rows stay below the original length
        "model_type": "olmo2", "hidden_size": 36, "intermediate_size": 47, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0, "tie_word_embeddings": False, "attention_bias": True,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
    },
    "gemma2_windows": {
        "model_type": "gemma2", "hidden_size": 38, "intermediate_size": 49, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 11,
        "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0,
        "cache_implementation": "hybrid",
    },
    "gemma3_windows": {
        "model_type": "gemma3_text", "hidden_size": 42, "intermediate_size": 51,
        "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 12,
        "rms_norm_eps": 1e-6, "rope_theta": 30.0, "rope_local_base_freq": 200.0, "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 9, "sliding_window": 3,
        "sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 3.5},
        "tie_word_embeddings": True, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "cache_implementation": "hybrid",
    },
    "granite": {
        "model_type": "granite", "hidden_size": 48, "intermediate_size": 53, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 1e7,
        "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": False,
        "attention_dropout": 0.1, "attention_multiplier": 0.21, "embedding_multiplier": 2.5,
        "residual_multiplier": 0.6, "logits_scaling": 0.4, "rope_scaling": None,
    },
    "smollm3": {
        "model_type": "smollm3", "hidden_size": 40, "intermediate_size": 55, "num_hidden_layers": 4,
        "num_attention_heads": 5, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "rope_theta": 5e6, "no_rope_layer_interval": 2, "attention_bias": False, "mlp_bias": False,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 28,
        "tie_word_embeddings": True, "pad_token_id": 0,
    },
    "phi3_longrope": {  # rows exceed the original length; their greedy continuation does not
        "model_type": "phi3", "hidden_size": 48, "intermediate_size": 57, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "sliding_window": None,
        "original_max_position_embeddings": 40, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "pad_token_id": 0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
            "long_factor": [1.0, 1.7, 2.9, 4.3, 6.1, 8.3],
        },
    },
    "phi3_partial": {  # rows stay below the original length
        "model_type": "phi3", "hidden_size": 32, "intermediate_size": 59, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 384, "lm_head_bias": False, "mlp_bias": False,
        "pad_token_id": 0,
        "attention_bias": False, "full_attn_mod": 1, "interpolate_factor": 1, "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.2, 1.5], "long_factor": [1.0, 2.5, 6.5],
        },
    },
    "glm4": {
        "model_type": "glm4", "hidden_size": 46, "intermediate_size": 61, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "attention_bias": True,
        "tie_word_embeddings": False, "pad_token_id": 0,
    },
    "gpt2": {
        "model_type": "gpt2", "n_embd": 30, "n_inner": 63, "n_layer": 3, "n_head": 5,
        "n_positions": 320, "n_ctx": 320, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1,
        "summary_type": "cls_index", "summary_use_proj": True, "summary_activation": None,
        "summary_proj_to_labels": True, "summary_first_dropout": 0.1,
    },
}  # fmt: skip
"""One entry a case; a name with `window` keeps its rows free of jumps in position."""
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
VOCAB_SIZE = 37
Shapes = dict[str, tuple[int, ...]]


def config_of(case: str) -> dict[str, Any]:
    """Give the config of a case in the style of transformers 4."""
    held = CASES[case]
    common: dict[str, Any] = {
        "architectures": [CLASSES[held["model_type"]]],
        "vocab_size": VOCAB_SIZE,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    if held["model_type"] != "gpt2":
        common |= {"max_position_embeddings": 512, "hidden_act": "silu"}
    return common | held


def is_tied(config: dict[str, Any]) -> bool:
    """Say whether the head is the embedding, as the family has it where the config is silent."""
    ties = config["model_type"] in ("gemma2", "gemma3_text", "smollm3", "gpt2")
    return config.get("tie_word_embeddings", ties)


def shapes_of(config: dict[str, Any]) -> Shapes:
    """Spell out the tensors of a checkpoint: on purpose without the tables under test."""
    if config["model_type"] == "gpt2":
        return gpt2_shapes(config)
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], config["hidden_size"])}
    for layer in range(config["num_hidden_layers"]):
        for part in (attention_shapes, ffw_shapes, norm_shapes):
            found = part(config, layer)
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in found.items()}
    shapes["model.norm.weight"] = (config["hidden_size"],)
    if not is_tied(config):
        shapes["lm_head.weight"] = (config["vocab_size"], config["hidden_size"])
    return shapes


def attention_shapes(config: dict[str, Any], layer: int) -> Shapes:
    """Spell out the attention of one layer."""
    del layer
    family, d, heads = config["model_type"], config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim", d // heads)
    queries, keys = heads * width, config.get("num_key_value_heads", heads) * width
    biased = config.get("attention_bias", False)
    qkv = family == "qwen2" or biased
    out = biased and family not in ("qwen2", "glm4")
    shapes: Shapes = {}
    if family == "phi3":
        shapes |= linear("self_attn.qkv_proj", queries + 2 * keys, d)
    else:
        shapes |= linear("self_attn.q_proj", queries, d, biased=qkv)
        shapes |= linear("self_attn.k_proj", keys, d, biased=qkv)
        shapes |= linear("self_attn.v_proj", keys, d, biased=qkv)
    shapes |= linear("self_attn.o_proj", d, queries, biased=out)
    if family in ("qwen3", "gemma3_text"):
        queries, keys = width, width
    if family in ("qwen3", "gemma3_text", "olmo2"):
        shapes |= {"self_attn.q_norm.weight": (queries,), "self_attn.k_norm.weight": (keys,)}
    return shapes


def ffw_shapes(config: dict[str, Any], layer: int) -> Shapes:
    """Spell out the feed-forward of one layer."""
    del layer
    d, f, biased = config["hidden_size"], config["intermediate_size"], config.get("mlp_bias", False)
    down = linear("mlp.down_proj", d, f, biased=biased)
    if config["model_type"] in ("phi3", "glm4"):
        return linear("mlp.gate_up_proj", 2 * f, d) | down
    gate, up = (linear(f"mlp.{name}_proj", f, d, biased=biased) for name in ("gate", "up"))
    return gate | up | down


NORMS = {
    "gemma2": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    "glm4": (
        "input_layernorm",
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
    ),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
NORMS["gemma3_text"] = NORMS["gemma2"]


def norm_shapes(config: dict[str, Any], layer: int) -> Shapes:
    """Spell out the norms of one layer."""
    del layer
    names = NORMS.get(config["model_type"], ("input_layernorm", "post_attention_layernorm"))
    return {f"{name}.weight": (config["hidden_size"],) for name in names}


def linear(name: str, num_out: int, num_in: int, *, biased: bool = False) -> Shapes:
    """Spell out one torch layer."""
    bias = {f"{name}.bias": (num_out,)} if biased else {}
    return {f"{name}.weight": (num_out, num_in), **bias}


def gpt2_shapes(config: dict[str, Any]) -> Shapes:
    """Spell out GPT-2, whose kernels lie as (in, out)."""
    d, f = config["n_embd"], config["n_inner"]
    shapes: Shapes = {
        "transformer.wte.weight": (config["vocab_size"], d),
        "transformer.wpe.weight": (config["n_positions"], d),
    }
    kernels = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d)}
    kernels |= {"mlp.c_fc": (d, f), "mlp.c_proj": (f, d)}
    for layer in range(config["n_layer"]):
        place = f"transformer.h.{layer}."
        for name, (num_in, num_out) in kernels.items():
            shapes |= {f"{place}{name}.weight": (num_in, num_out)}
            shapes |= {f"{place}{name}.bias": (num_out,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{place}{name}.weight": (d,), f"{place}{name}.bias": (d,)}
    return shapes | {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}


def random_weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Draw every tensor, each from a stream of its own name."""
    gemma = config["model_type"].startswith("gemma")
    scaled = gemma or "embedding_multiplier" in config  # the model enlarges what it looks up
    drawn = {}
    for name, shape in shapes_of(config).items():
        value = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith(".weight") and ("norm" in name or ".ln_" in name):
            value = 0.2 * value + (not gemma)  # Gemma adds 1 where it is used
        elif any(table in name for table in ("embed", "wte", "wpe")):
            value = (0.12 if scaled else 0.5) * value
        elif len(shape) == 2:
            value = value / shape[0 if ".c_" in name else 1] ** 0.5
        else:
            value = 0.2 * value
        drawn[name] = value.astype(np.float32)
    return drawn


def write_checkpoint(folder: Path, case: str) -> Path:
    """Write a case as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(case)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
