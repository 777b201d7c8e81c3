"""A mixture-of-experts config.json is read whole, written so that it reads back, or refused."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import models
from research.core.layout import Layout
from research.core.parts import vary
from research.huggingface.families.known import family_for, family_named
from research.huggingface.family import (
    by_name,
    read_architecture,
    tensors_of,
    write_architecture,
)
from research.huggingface.folder import load, open_folder
from research.models.compute import Compute
from research.models.moe.expert_choice import ExpertChoice
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.models.transformer import Transformer, parameter_count
from tests.parity.moe_checkpoints import CASES, config_of, write_checkpoint

TINY = {
    family: getattr(models, f"tiny_{family}")
    for family in ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "glm4_moe")
}
CHANGES = [
    ("mixtral", {"windows": (5,) * 3}),
    ("mixtral", {"moe.experts_per_token": 3, "tied_head": True}),
    ("qwen3_moe", {"moe.dense_layers": (1, 2), "moe.router": SoftmaxTopK(normalise=False)}),
    ("qwen3_moe", {"windows": (7,) * 3, "qkv_bias": True, "out_bias": True}),
    ("olmoe", {"qkv_clip": None, "moe.router": SoftmaxTopK()}),
    ("gpt_oss", {"windows": (), "activation.limit": 3.0, "activation.alpha": 1.5}),
    ("gpt_oss", {"windows": (None, None, 9, None), "qkv_bias": False, "out_bias": False}),
    ("deepseek_v3", {"latent.query_rank": None, "rope.interleaved": False, "qkv_bias": True}),
    ("deepseek_v3", {"moe.shared_dim": 0, "moe.dense_layers": (), "moe.router.normalise": False}),
    ("glm4_moe", {"query_key_norm": False, "qkv_bias": False, "rope.fraction": 1.0}),
    ("glm4_moe", {"moe.router.groups": 3, "moe.router.groups_kept": 2, "moe.shared_dim": 48}),
]


def read(config: dict):
    return read_architecture(family_named(config["model_type"], "here"), config, "here")


@pytest.mark.parametrize(("family", "changes"), [(name, {}) for name in TINY] + CHANGES)
def test_what_a_family_can_say_reads_back(family, changes):
    arch = vary(TINY[family](), changes)
    if changes.get("qkv_bias") and arch.latent is not None:
        arch = dataclasses.replace(arch, out_bias=True)
    assert read(write_architecture(family_named(family, "here"), arch)) == arch


@pytest.mark.parametrize(
    ("family", "changes", "lost"),
    [
        ("mixtral", {"moe.router": SoftmaxTopK(normalise=False)}, "moe.router.normalise"),
        ("mixtral", {"moe.router": ExpertChoice()}, "moe.router.type"),
        ("mixtral", {"moe.shared_dim": 8}, "moe.shared_dim"),
        ("qwen3_moe", {"moe.router_bias": True}, "moe.router_bias"),
        ("olmoe", {"sinks": True}, "sinks"),
        ("gpt_oss", {"moe.expert_bias": False}, "moe.expert_bias"),
        ("deepseek_v3", {"moe.dense_layers": (1,)}, "moe.dense_layers"),
        ("deepseek_v3", {"attention_scale": 0.3}, "attention_scale"),
        ("deepseek_v3", {"moe.router.corrected": False}, "moe.router.corrected"),
        ("glm4_moe", {"moe.shared_dim": 17}, "moe.shared_dim"),
        ("glm4_moe", {"moe": None}, "moe: None"),
        ("deepseek_v3", {"moe": None}, "moe: None"),
    ],
)
def test_what_a_family_cannot_say_is_refused_by_name(family, changes, lost):
    arch = vary(TINY[family](), changes)
    with pytest.raises(ValueError, match=lost):
        write_architecture(family_named(family, "here"), arch)


@pytest.mark.parametrize(
    ("case", "changes", "named"),
    [
        ("mixtral", {"num_experts_per_tok": 6}, r"experts_per_token=6 must lie in 1\.\.5"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
        ("mixtral", {"num_local_expert": 5}, "did you mean 'num_local_experts'"),
        ("qwen3_moe_window", {"num_experts": None}, "num_local_experts"),
        ("qwen3_moe_window", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate"),
        ("olmoe", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("gpt_oss_window", {"layer_types": ["sliding_attention"] * 3}, "expected 4 of"),
        ("gpt_oss_window", {"experts_per_token": 2}, "experts_per_token=2, expected 3"),
        ("gpt_oss_window", {"quantization_config": {"quant_method": "awq"}}, "awq"),
        ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, "unquantised checkpoint"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func='softmax', expected 'sigmoid'"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method='greedy', expected 'noaux_tc'"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq=2, expected 1"),
        ("deepseek_v3", {"head_dim": 16}, "head_dim=16, expected 6"),
        ("deepseek_v3", {"num_key_value_heads": 1}, "as many key/value heads"),
        ("deepseek_v3", {"n_group": 3}, "groups=3 does not divide num_experts=8"),
        ("glm4_moe", {"partial_rotary_factor": 0.25}, "expected an even number"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused_by_name(case, changes, named):
    with pytest.raises(ValueError, match=named):
        read(config_of(case) | changes)


def test_an_absent_field_means_what_it_means_in_transformers():
    config = config_of("gpt_oss_window")
    for name in ("layer_types", "swiglu_limit", "rope_scaling", "rope_theta", "sliding_window"):
        del config[name]
    arch = read(config)
    assert arch.windows == (128, None) * 2
    assert arch.activation == models.gpt_oss_20b().activation
    assert arch.rope == models.gpt_oss_20b().rope
    config = config_of("mixtral")
    del config["rope_theta"], config["sliding_window"]
    assert read(config).rope == models.mixtral_8x7b().rope
    config = config_of("glm4_moe")
    del config["partial_rotary_factor"]
    assert read(config).rope.fraction == 0.5


@pytest.mark.parametrize("preset", TINY.values(), ids=TINY)
@pytest.mark.parametrize("stored", [True, False], ids=["as stored", "as in memory"])
def test_the_parameters_of_a_family_fill_its_tensors_exactly(preset, stored):
    arch = preset()
    family, model = family_for(arch), Transformer(arch, Layout().on(jax.devices()[:1]), Compute())
    names = family.names if stored else {**family.names, **family.parameters}
    groups = by_name(tensors_of(family, arch, model.abstract(), names))
    for name, parts in groups.items():
        held = np.zeros(parts[0].shape, int)
        for part in parts:
            held[part.region] += 1
        assert (held == 1).all(), name
    total = sum(math.prod(parts[0].shape) for parts in groups.values())
    assert total == parameter_count(model.abstract())


def test_the_layer_for_further_tokens_is_passed_over_and_nothing_else(tmp_path):
    folder = write_checkpoint(tmp_path, "glm4_moe")
    weights = load_file(folder / "model.safetensors")
    last = config_of("glm4_moe")["num_hidden_layers"]
    extra = {f"model.layers.{last}.{name}": np.ones(3, np.float32) for name in ("enorm", "eh_proj")}
    save_file(weights | extra, folder / "model.safetensors")
    opened = open_folder(folder)
    model = Transformer(opened.architecture, Layout().on(jax.devices()[:1]), Compute())
    load(opened, model)
    save_file(
        weights | {"model.layers.9.enorm": np.ones(3, np.float32)}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"unexpected model\.layers\.9\.enorm"):
        load(folder, model)


def test_a_checkpoint_with_other_experts_than_its_config_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path, "olmoe")
    config = config_of("olmoe") | {"num_experts": 10}
    (folder / "config.json").write_text(json.dumps(config))
    opened = open_folder(folder)
    model = Transformer(opened.architecture, Layout().on(jax.devices()[:1]), Compute())
    with pytest.raises(ValueError, match=r"missing model\.layers\.0\.mlp\.experts\.9\."):
        load(opened, model)


def test_the_cases_cover_every_family():
    assert {held["model_type"] for held in CASES.values()} == set(TINY)
