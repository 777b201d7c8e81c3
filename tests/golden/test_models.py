"""The named architectures are the published ones, and can be said in their family's config."""

from __future__ import annotations

import jax
import pytest

from configs import models
from research.core.layout import Layout
from research.huggingface.families.known import family_for, family_named
from research.huggingface.family import read_architecture
from research.models.compute import Compute
from research.models.transformer import Transformer, parameter_count

# As the model pages count their safetensors; a tied head counts once (the file of Qwen3 0.6B stores
# it twice). GPT-2, Gemma and Phi-3 mini: also in KerasHub's presets. Gemma 3 from 4B on: the whole
# checkpoint less its vision tower and projector (4,300,079,472 - 419,816,304 for 4B).
PUBLISHED = {
    models.llama2_7b: ("llama", 6_738_415_616),
    models.llama2_13b: ("llama", 13_015_864_320),
    models.llama2_70b: ("llama", 68_976_648_192),
    models.llama3p2_1b: ("llama", 1_235_814_400),
    models.llama3p2_3b: ("llama", 3_212_749_824),
    models.llama3p1_8b: ("llama", 8_030_261_248),
    models.llama3p1_70b: ("llama", 70_553_706_496),
    models.qwen2p5_0p5b: ("qwen2", 494_032_768),
    models.qwen2p5_1p5b: ("qwen2", 1_543_714_304),
    models.qwen2p5_3b: ("qwen2", 3_085_938_688),
    models.qwen2p5_7b: ("qwen2", 7_615_616_512),
    models.qwen3_0p6b: ("qwen3", 596_049_920),
    models.qwen3_1p7b: ("qwen3", 1_720_574_976),
    models.qwen3_4b: ("qwen3", 4_022_468_096),
    models.qwen3_8b: ("qwen3", 8_190_735_360),
    models.mistral_7b: ("mistral", 7_241_732_096),
    models.mistral_7b_v0p3: ("llama", 7_248_023_552),  # without a window the two are one
    models.gemma2_2b: ("gemma2", 2_614_341_888),
    models.gemma2_9b: ("gemma2", 9_241_705_984),
    models.gemma2_27b: ("gemma2", 27_227_128_320),
    models.gemma3_270m: ("gemma3_text", 268_098_176),
    models.gemma3_1b: ("gemma3_text", 999_885_952),
    models.gemma3_4b: ("gemma3_text", 3_880_263_168),
    models.gemma3_12b: ("gemma3_text", 11_766_034_176),
    models.gemma3_27b: ("gemma3_text", 27_009_346_304),
    models.phi3_mini: ("mistral", 3_821_079_552),  # a mistral whose tensors are stored fused
    models.phi3_medium: ("mistral", 13_960_238_080),
    models.phi4: ("llama", 14_659_507_200),
    models.phi4_mini: ("phi3", 3_836_021_760),
    models.smollm3_3b: ("smollm3", 3_075_098_624),
    models.granite3_2b: ("granite", 2_533_539_840),
    models.granite3_8b: ("granite", 8_170_864_640),
    models.olmo2_1b: ("olmo2", 1_484_916_736),
    models.olmo2_7b: ("olmo2", 7_298_617_344),
    models.olmo2_13b: ("olmo2", 13_716_198_400),
    models.glm4_9b: ("glm4", 9_400_279_040),
    models.gpt2: ("gpt2", 124_439_808),
    models.gpt2_medium: ("gpt2", 354_823_168),
    models.gpt2_large: ("gpt2", 774_030_080),
    models.gpt2_xl: ("gpt2", 1_557_611_200),
}


@pytest.mark.parametrize("preset", PUBLISHED, ids=lambda preset: preset.__name__)
def test_a_preset_has_the_published_number_of_parameters(preset):
    family, count = PUBLISHED[preset]
    model = Transformer(preset(), Layout().on(jax.devices()[:1]), Compute())
    assert parameter_count(model.abstract()) == count
    assert family_for(preset()).model_type == family


TINY = {
    models.tiny_llama: "llama",
    models.tiny_qwen2: "qwen2",
    models.tiny_qwen3: "qwen3",
    models.tiny_mistral: "mistral",
    models.tiny_gemma2: "gemma2",
    models.tiny_gemma3: "gemma3_text",
    models.tiny_phi3: "phi3",
    models.tiny_smollm3: "smollm3",
    models.tiny_granite: "granite",
    models.tiny_olmo2: "olmo2",
    models.tiny_glm4: "glm4",
    models.tiny_gpt2: "gpt2",
}


@pytest.mark.parametrize("preset", TINY, ids=lambda preset: preset.__name__)
def test_a_tiny_preset_is_of_its_family_and_no_two_sizes_agree(preset):
    arch = preset()
    assert family_for(arch).model_type == TINY[preset]
    sizes = [arch.vocab_size, arch.model_dim, arch.ffw_dim, arch.head_dim, arch.max_positions]
    assert len(set(sizes)) == len(sizes)


# The config.json of the model pages, as published.
CONFIGS = {
    models.llama3p2_1b: {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
    },
    models.qwen2p5_0p5b: {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896,
        "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True,
        "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    models.qwen3_0p6b: {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    models.mistral_7b: {
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
    },
    models.llama2_7b: {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
    },
    models.gemma2_2b: {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid",
        "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304, "initializer_range": 0.02, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
        "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
        "sliding_window": 4096, "torch_dtype": "float32", "transformers_version": "4.42.4",
        "use_cache": True, "vocab_size": 256000,
    },
    models.gemma3_1b: {
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid",
        "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
        "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144,
    },
    models.phi3_mini: {
        "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        },
        "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu",
        "hidden_size": 3072, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.40.2",
        "use_cache": True, "vocab_size": 32064,
    },
    models.phi4_mini: {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            "AutoTokenizer": "Xenova/gpt-4o",
        },
        "bos_token_id": 199999, "embd_pdrop": 0.0, "eos_token_id": 199999, "full_attn_mod": 1,
        "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
        "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "phi3",
        "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096, "pad_token_id": 199999,
        "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": {
            "long_factor": [1, *models.phi4_mini().rope.scaling.long_factors[1:]],
            "short_factor": [1.0] * 48, "type": "longrope",
        },
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.45.0", "use_cache": True,
        "vocab_size": 200064,
    },
    models.smollm3_3b: {
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 11008,
        "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False,
        "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
        "pad_token_id": 128004, "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 5000000.0, "sliding_window": None, "torch_dtype": "bfloat16",
        "use_cache": False, "use_sliding_window": False, "vocab_size": 128256,
    },
    models.granite3_2b: {
        "architectures": ["GraniteForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attention_multiplier": 0.015625, "bos_token_id": 0, "embedding_multiplier": 12.0,
        "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 8192, "logits_scaling": 8.0, "max_position_embeddings": 131072,
        "mlp_bias": False, "model_type": "granite", "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "pad_token_id": 0,
        "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 10000000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.49.0", "use_cache": True, "vocab_size": 49159,
    },
    models.olmo2_7b: {
        "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "model_type": "olmo2", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "pad_token_id": 100277, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False,
        "torch_dtype": "float32", "transformers_version": "4.47.0.dev0", "use_cache": True,
        "vocab_size": 100352,
    },
    models.glm4_9b: {
        "architectures": ["Glm4ForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
        "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 13696,
        "max_position_embeddings": 32768, "model_type": "glm4", "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 2, "pad_token_id": 151329,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0", "use_cache": True, "vocab_size": 151552,
    },
    models.gpt2: {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
        "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    },
}  # fmt: skip


@pytest.mark.parametrize("preset", CONFIGS, ids=lambda preset: preset.__name__)
def test_a_published_config_reads_as_the_preset(preset):
    config = CONFIGS[preset]
    family = family_named(config["model_type"], "here")
    assert read_architecture(family, config, "here") == preset()
