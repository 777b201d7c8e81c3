"""The named mixture-of-experts architectures are the published ones, parameter by parameter."""

from __future__ import annotations

import jax
import pytest

from configs import models
from research.core.layout import Layout
from research.huggingface.families.known import family_for, family_named
from research.huggingface.family import read_architecture
from research.models.compute import Compute
from research.models.flops import active_parameters
from research.models.transformer import Transformer, parameter_count

# family, parameters, of which active; the embedding and the head count whole in both.
COUNTS = {
    models.mixtral_8x7b: ("mixtral", 46_702_792_704, 12_879_925_248),
    models.qwen3_30b_a3b: ("qwen3_moe", 30_532_122_624, 3_353_032_704),
    models.qwen3_235b_a22b: ("qwen3_moe", 235_093_634_560, 22_190_763_520),
    models.olmoe_1b_7b: ("olmoe", 6_919_161_856, 1_282_017_280),
    models.gpt_oss_20b: ("gpt_oss", 20_914_757_184, 4_187_440_704),
    models.gpt_oss_120b: ("gpt_oss", 116_829_156_672, 5_711_982_912),
    models.deepseek_v3: ("deepseek_v3", 671_026_419_200, 37_552_297_472),
    models.glm4p5_air: ("glm4_moe", 106_852_251_264, 13_424_129_664),
    models.glm4p5: ("glm4_moe", 352_797_829_024, 33_632_266_144),
}
# What the authors state, in billions, and how many tables of V x D (embedding, head) are not in
# it, of the total and of the active. Sources: Mixtral 8x7B, arXiv 2401.04088 and its model page;
# the model cards of Qwen3; OLMoE, arXiv 2409.02060; gpt-oss model card, arXiv 2508.10925, table 1,
# whose active parameters leave the embedding out; DeepSeek-V3, arXiv 2412.19437; GLM-4.5, arXiv
# 2508.06471, whose numbers agree where embedding and head are left out, and 355B only with the
# layer for multi-token prediction (4.0B), which is not read here.
STATED = {
    models.mixtral_8x7b: (46.7, 0, 12.9, 0),
    models.qwen3_30b_a3b: (30.5, 0, 3.3, 0),
    models.qwen3_235b_a22b: (235, 0, 22, 0),
    models.olmoe_1b_7b: (6.9, 0, 1.3, 0),
    models.gpt_oss_20b: (20.91, 0, 3.61, 1),
    models.gpt_oss_120b: (116.83, 0, 5.13, 1),
    models.deepseek_v3: (671, 0, 37, 0),
    models.glm4p5_air: (106, 2, 12, 2),
    models.glm4p5: (355, 2, 32, 2),
}
PREDICTION_LAYER = {models.glm4p5: 160 * 3 * 5120 * 1536 + 2 * 5120 * 5120 + 5120 * (26112 + 4608)}
"""Experts, the projection of two residuals, attention and shared expert; vectors left out."""


def counts(arch) -> tuple[int, int]:
    """All parameters, and the active ones."""
    abstract = Transformer(arch, Layout().on(jax.devices()[:1]), Compute()).abstract()
    return parameter_count(abstract), active_parameters(arch, abstract)


@pytest.mark.parametrize("preset", COUNTS, ids=lambda preset: preset.__name__)
def test_a_preset_has_the_published_number_of_parameters(preset):
    arch = preset()
    family, total, active = COUNTS[preset]
    assert counts(arch) == (total, active)
    assert family_for(arch).model_type == family
    stated_total, left_out, stated_active, inactive = STATED[preset]
    table = arch.vocab_size * arch.model_dim
    digits = len(str(stated_total).partition(".")[2])
    full = total - left_out * table + PREDICTION_LAYER.get(preset, 0)
    assert abs(full / 1e9 - stated_total) <= 0.6 * 10**-digits
    assert abs((active - inactive * table) / 1e9 - stated_active) <= 0.6 * 10**-digits


def test_a_dense_model_has_all_of_its_parameters_active():
    total, active = counts(models.tiny_llama())
    assert total == active
    total, active = counts(models.tiny_gpt_oss())
    moe = models.tiny_gpt_oss().moe
    own = 3 * 36 * 22 + 2 * 22 + 36  # kernels and biases of one expert
    assert total - active == 4 * (moe.num_experts - moe.experts_per_token) * own


def test_a_tiny_preset_of_each_family_is_of_that_family():
    families = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "glm4_moe")
    for family in families:
        assert family_for(getattr(models, f"tiny_{family}")()).model_type == family


# The config.json of the model pages, as published; of DeepSeek-V3 without its quantisation.
CONFIGS = {
    models.mixtral_8x7b: {
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral",
        "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0.dev0", "use_cache": True, "vocab_size": 32000,
    },
    models.qwen3_30b_a3b: {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": 151643, "decoder_sparse_step": 1,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960,
        "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32,
        "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    models.olmoe_1b_7b: {
        "architectures": ["OlmoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "clip_qkv": None, "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 1024, "max_position_embeddings": 4096,
        "model_type": "olmoe", "norm_topk_prob": False, "num_attention_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16,
        "num_key_value_heads": 16, "output_router_logits": False, "pad_token_id": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
        "router_aux_loss_coef": 0.01, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 50304,
    },
    models.gpt_oss_20b: {
        "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
        "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2880, "initial_context_length": 4096, "initializer_range": 0.02,
        "intermediate_size": 2880, "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "num_local_experts": 32, "output_router_logits": False, "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05, "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": False,
        },
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
        "swiglu_limit": 7.0, "tie_word_embeddings": False, "transformers_version": "4.55.0.dev0",
        "use_cache": True, "vocab_size": 201088,
    },
    models.deepseek_v3: {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "auto_map": {
            "AutoConfig": "configuration_deepseek.DeepseekV3Config",
            "AutoModel": "modeling_deepseek.DeepseekV3Model",
            "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
        },
        "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
        "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
        "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "model_type": "deepseek_v3",
        "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1, "pretraining_tp": 1, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn",
        },
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "seq_aux": True, "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": True,
        "v_head_dim": 128, "vocab_size": 129280,
    },
    models.glm4p5_air: {
        "architectures": ["Glm4MoeForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
        "eos_token_id": [151329, 151336, 151338], "first_k_dense_replace": 1, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 10944, "max_position_embeddings": 131072, "model_type": "glm4_moe",
        "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 128,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 96,
        "num_experts_per_tok": 8, "num_hidden_layers": 46, "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1, "pad_token_id": 151329, "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 1000000,
        "routed_scaling_factor": 1.0, "tie_word_embeddings": False, "topk_group": 1,
        "torch_dtype": "bfloat16", "transformers_version": "4.54.0", "use_cache": True,
        "use_qk_norm": False, "vocab_size": 151552,
    },
}  # fmt: skip


@pytest.mark.parametrize("preset", CONFIGS, ids=lambda preset: preset.__name__)
def test_a_published_config_reads_as_the_preset(preset):
    config = CONFIGS[preset]
    family = family_named(config["model_type"], "here")
    assert read_architecture(family, config, "here") == preset()
