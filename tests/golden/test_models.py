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

# As the model pages state them; a tied head counts once (the file of Qwen3 0.6B stores it twice).
PUBLISHED = {
    models.llama3p2_1b: ("llama", 1_235_814_400),
    models.llama3p2_3b: ("llama", 3_212_749_824),
    models.llama3p1_8b: ("llama", 8_030_261_248),
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
}


@pytest.mark.parametrize("preset", PUBLISHED, ids=lambda preset: preset.__name__)
def test_a_preset_has_the_published_number_of_parameters(preset):
    family, count = PUBLISHED[preset]
    model = Transformer(preset(), Layout().on(jax.devices()[:1]), Compute())
    assert parameter_count(model.abstract()) == count
    assert family_for(preset()).model_type == family


def test_a_tiny_preset_of_each_family_is_of_that_family():
    tiny = (models.tiny_llama, models.tiny_qwen2, models.tiny_qwen3, models.tiny_mistral)
    assert [family_for(preset()).model_type for preset in tiny] == [
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
    ]


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
}  # fmt: skip


@pytest.mark.parametrize("preset", CONFIGS, ids=lambda preset: preset.__name__)
def test_a_published_config_reads_as_the_preset(preset):
    config = CONFIGS[preset]
    family = family_named(config["model_type"], "here")
    assert read_architecture(family, config, "here") == preset()
