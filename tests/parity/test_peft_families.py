"""Adapters of experts, routers and fused layers travel to PEFT and back: same merged weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import models
from research.core.layout import Layout
from research.core.tree import flatten
from research.huggingface.families.known import FAMILIES
from research.huggingface.family import write_architecture
from research.huggingface.folder import load, open_folder
from research.huggingface.peft import CONFIG_NAME, WEIGHTS_NAME, read_adapter, write_adapter
from research.huggingface.peft_modules import LowRankPair, Module, Part
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.tuning.lora import Lora, Override

SAME = 1e-5  # of weights of order one: sums of a few float32 products in another order
EXPERTS = ("gate_E_D_F", "up_E_D_F", "down_E_F_D")
ALL = Lora(rank=4, alpha=7.0)
ROUTED = dataclasses.replace(ALL, targets=("all_linear", "router_D_E"))


def random_factors(tuning: Lora, params: Any) -> Any:
    """Draw factors, none of them zero."""
    random = np.random.RandomState(3)
    shapes = jax.eval_shape(tuning.split, params, jax.random.key(0))[0]
    return jax.tree.map(
        lambda leaf: 0.2 * random.standard_normal(leaf.shape).astype(np.float32), shapes
    )


def assert_same(ours: Any, theirs: Any) -> None:
    """Compare two trees of weights."""
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_allclose(value, theirs[path], rtol=0, atol=SAME, err_msg=".".join(path))


def named(value: Any) -> str | None:
    """Name a case by its family."""
    return value if isinstance(value, str) else None


# How factors lie


HALVES = (slice(0, 5, 1), slice(5, 10, 1))
ALTERNATING = (slice(0, 10, 2), slice(1, 10, 2))


def fused(experts: int, rows: tuple[slice, slice]) -> tuple[Module, dict[str, Any]]:
    """Gate and up in one module, and their weights over two layers, all zero."""
    names = ("gate_E_D_F", "up_E_D_F") if experts else ("gate_D_F", "up_D_F")
    parts = tuple(Part(path=(n,), entry=(1,), rows=r) for n, r in zip(names, rows, strict=True))
    bank = (experts,) if experts else ()
    zeros = {name: np.zeros((2, *bank, 6, 5), np.float32) for name in names}
    return Module(name="m", parts=parts, inputs=6, outputs=10, experts=experts), zeros


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rows", [HALVES, ALTERNATING], ids=["halves", "alternating"])
@pytest.mark.parametrize("experts", [0, 3])
def test_each_part_of_a_fused_adapter_adds_to_its_own_rows_alone(experts, rows, rslora):
    module, zeros = fused(experts, rows)
    gate, up = (part.path[0] for part in module.parts)
    other = Override(target=up, rank=3, alpha=4.0)
    tuning = Lora(rank=2, alpha=5.0, rslora=rslora, targets=(gate, up), overrides=(other,))
    factors = random_factors(tuning, zeros)
    merged = tuning.merge(factors, zeros)
    pair = module.gather(flatten(factors), tuning)
    a, b = module.pack(pair)
    count = max(experts, 1)
    assert (a.shape, b.shape) == module.shapes(5) == ((5 * count, 6), (10, 5 * count))
    # A's rows lie expert by expert, B's columns rank by rank: PEFT's own formula
    delta_EOI = np.einsum("ore,eri->eoi", b.reshape(10, 5, count), a.reshape(count, 5, 6))
    for part in module.parts:
        expected = np.reshape(merged[part.path[0]][1], (count, 6, 5)).swapaxes(1, 2)
        found = tuning.scale(pair.rank, pair.alpha) * delta_EOI[:, part.rows]
        np.testing.assert_allclose(found, expected, rtol=0, atol=SAME)
    back = module.unpack([a, b], pair.rank, pair.alpha)
    assert np.array_equal(back.a_ERI, pair.a_ERI)
    assert np.array_equal(back.b_EOR, pair.b_EOR)


@pytest.mark.parametrize("rows", [HALVES, ALTERNATING], ids=["halves", "alternating"])
def test_parts_that_were_put_together_come_apart_as_they_were(rows):
    module, zeros = fused(3, rows)
    tuning = Lora(rank=2, alpha=5.0, targets=tuple(zeros))
    factors = flatten(random_factors(tuning, zeros))
    pairs = module.scatter(module.gather(factors, tuning), rslora=False)
    for part, pair in pairs:
        a, b = (factors[path][1] for path in part.factors)
        assert (pair.rank, pair.alpha) == (2, 5.0)
        assert np.array_equal(pair.a_ERI.swapaxes(1, 2), a)
        assert np.array_equal(pair.b_EOR.swapaxes(1, 2), b)
    alone = {path: leaf for path, leaf in factors.items() if path[0] == "up_E_D_F"}
    ((part, _),) = module.scatter(module.gather(alone, tuning), rslora=False)
    assert part.path == ("up_E_D_F",)


def test_parts_of_an_adapter_trained_as_one_share_a():
    module, _ = fused(0, HALVES)
    random = np.random.RandomState(1)
    a, b = random.standard_normal((1, 4, 6)), random.standard_normal((1, 10, 4))
    pairs = module.scatter(LowRankPair(rank=4, alpha=3.0, a_ERI=a, b_EOR=b), rslora=False)
    for (part, pair), rows in zip(pairs, HALVES, strict=True):
        assert (pair.rank, pair.alpha, part.rows) == (4, 3.0, rows)
        assert np.array_equal(pair.a_ERI, a)
        assert np.array_equal(pair.b_EOR, b[:, rows])


# Folders


def described(folder: Path, name: str) -> Transformer:
    """A tiny model of a family, and a folder that says so in its config."""
    arch = getattr(models, f"tiny_{name}")()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(write_architecture(FAMILIES[name], arch)))
    return Transformer(arch, Layout().on(jax.devices()[:1]), Compute())


ROUND_TRIPS = [
    ("mixtral", ROUTED, False),
    ("mixtral", ROUTED, True),
    ("olmoe", dataclasses.replace(ALL, targets=("down_E_F_D", "query_D_KGH")), False),
    ("gpt_oss", ROUTED, False),
    ("deepseek_v3", ALL, False),
    ("deepseek_v3", ROUTED, True),
    ("phi3", ALL, False),
    ("phi3", dataclasses.replace(ALL, rslora=True, targets=("gate_D_F", "value_D_KH")), False),
    ("gpt2", dataclasses.replace(ALL, targets=("all_linear", "positions_S_D")), False),
]


@pytest.mark.parametrize(("name", "tuning", "stacked"), ROUND_TRIPS, ids=named)
def test_an_adapter_comes_back_as_it_was_written(name, tuning, stacked, tmp_path):
    model = described(tmp_path / "base", name)
    factors = random_factors(tuning, model.abstract())
    source = tmp_path / "base"
    write_adapter(
        tmp_path / "adapter", model, tuning, factors, source=source, stacked_experts=stacked
    )
    back, again = read_adapter(tmp_path / "adapter", model, source=source)
    assert back == tuning
    assert flatten(again).keys() == flatten(factors).keys()
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again, factors)))


PLACE = "base_model.model.model.layers.1."


def test_experts_have_keys_of_their_own_or_lie_nested_in_one_another(tmp_path):
    model = described(tmp_path / "base", "mixtral")
    moe = model.arch.moe
    assert moe is not None
    factors = random_factors(ROUTED, model.abstract())
    held = {}
    for stacked in (False, True):
        folder = tmp_path / str(stacked)
        write_adapter(
            folder, model, ROUTED, factors, source=tmp_path / "base", stacked_experts=stacked
        )
        config = json.loads((folder / CONFIG_NAME).read_text())
        tensors = {key: value.shape for key, value in load_file(folder / WEIGHTS_NAME).items()}
        held[stacked] = config, tensors
    dim, width, experts = model.arch.model_dim, moe.expert_dim, moe.num_experts
    config, tensors = held[False]
    place = f"{PLACE}block_sparse_moe.experts.{experts - 1}."
    assert tensors[f"{place}w1.lora_A.weight"] == (4, dim)
    assert tensors[f"{place}w2.lora_B.weight"] == (dim, 4)
    attention = ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert config["target_modules"] == ["gate", *attention, "w1", "w2", "w3"]
    config, tensors = held[True]
    place = f"{PLACE}mlp.experts."
    assert tensors[f"{place}base_layer.lora_A.weight"] == (8 * experts, dim)
    assert tensors[f"{place}base_layer.lora_B.weight"] == (2 * width, 8 * experts)
    assert tensors[f"{place}lora_A.weight"] == (4 * experts, width)
    assert tensors[f"{PLACE}mlp.gate.lora_A.weight"] == (4, dim)
    assert config["target_modules"] == attention
    parameters = ["experts.down_proj", "experts.gate_up_proj", "mlp.gate.weight"]
    assert config["target_parameters"] == parameters
    assert config["rank_pattern"] == {"experts.gate_up_proj": 8}


@pytest.mark.parametrize(
    "tuning",
    [
        dataclasses.replace(ALL, targets=("gate_E_D_F",)),
        dataclasses.replace(ALL, overrides=(Override(target="gate_E_D_F", rank=2),)),
        dataclasses.replace(
            ALL, overrides=tuple(Override(target=n, rank=4, alpha=3.0) for n in EXPERTS[:2])
        ),
    ],
    ids=["gate alone", "another rank", "another alpha"],
)
def test_what_peft_would_convert_wrongly_is_refused_one_by_one_and_written_stacked(
    tuning, tmp_path
):
    model, source = described(tmp_path / "base", "mixtral"), tmp_path / "base"
    factors = random_factors(tuning, model.abstract())
    with pytest.raises(ValueError, match=r"only where all have.*stacked_experts=True"):
        write_adapter(tmp_path / "one", model, tuning, factors, source=source)
    assert not (tmp_path / "one").exists()
    write_adapter(tmp_path / "all", model, tuning, factors, source=source, stacked_experts=True)


def test_parameters_that_are_trained_whole_are_refused(tmp_path):
    model = described(tmp_path / "base", "mixtral")
    tuning = dataclasses.replace(ALL, trained=("router_D_E",))
    trainable = random_factors(tuning, model.abstract())
    with pytest.raises(ValueError, match=r"router_D_E.*trained whole.*merge"):
        write_adapter(tmp_path / "adapter", model, tuning, trainable, source=tmp_path / "base")


def test_experts_that_are_adapted_twice_are_refused(tmp_path):
    model, source = described(tmp_path / "base", "mixtral"), tmp_path / "base"
    tuning = dataclasses.replace(ALL, targets=EXPERTS)
    factors = random_factors(tuning, model.abstract())
    write_adapter(tmp_path / "adapter", model, tuning, factors, source=source)
    file = tmp_path / "adapter" / CONFIG_NAME
    config = json.loads(file.read_text()) | {"target_parameters": ["experts.down_proj"]}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"down_E_F_D.*both by target_modules"):
        read_adapter(tmp_path / "adapter", model, source=source)


# PEFT


SIZES = {
    "vocab_size": 29,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}
LATENT = {
    "num_key_value_heads": 6, "moe_intermediate_size": 8, "first_k_dense_replace": 1,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "q_lora_rank": 6, "kv_lora_rank": 5, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
    "v_head_dim": 7,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", SIZES | {"num_local_experts": 3}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        SIZES | {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt_oss": ("GptOssConfig", SIZES | {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "deepseek_v3": ("DeepseekV3Config", SIZES | LATENT),
    "phi3": ("Phi3Config", SIZES | {"pad_token_id": 0, "original_max_position_embeddings": 64}),
    "gpt2": ("GPT2Config", {"vocab_size": 29, "n_embd": 12, "n_layer": 2, "n_head": 3}),
}


def their_base(name: str, folder: Path) -> Transformer:
    """Save a random model of transformers; give ours of the same folder."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    kind, fields = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**fields)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    arch = open_folder(folder).architecture
    return Transformer(arch, Layout().on(jax.devices()[:1]), Compute())


def merged_by_peft(adapted: Any, folder: Path, model: Transformer) -> Any:
    """Let PEFT merge, transformers save, and read that."""
    adapted.merge_and_unload().save_pretrained(folder)
    return load(folder, model)


KEY_APART = Override(target="key_D_KH", rank=2)
UP_APART = Override(target="up_E_D_F", rank=5, alpha=4.0)
WRITTEN = [
    ("mixtral", dataclasses.replace(ROUTED, rslora=True, dropout=0.1), False),
    ("deepseek_v3", ALL, False),
    ("gpt_oss", ROUTED, False),
    ("phi3", dataclasses.replace(ALL, overrides=(KEY_APART,)), False),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("mixtral", dataclasses.replace(ROUTED, rslora=True), True),
            ("qwen3_moe", ROUTED, False),
            ("qwen3_moe", Lora(rank=3, targets=EXPERTS, overrides=(UP_APART,)), True),
            ("deepseek_v3", ROUTED, True),
            ("gpt2", dataclasses.replace(ALL, targets=("all_linear", "positions_S_D")), False),
        )
    ),
]


@pytest.mark.parametrize(("name", "tuning", "stacked"), WRITTEN, ids=named)
def test_peft_merges_what_we_write_to_the_weights_that_we_merge(name, tuning, stacked, tmp_path):
    model = their_base(name, tmp_path / "base")
    import peft
    from transformers import AutoModelForCausalLM

    params, source = load(tmp_path / "base", model), tmp_path / "base"
    factors = random_factors(tuning, params)
    write_adapter(
        tmp_path / "adapter", model, tuning, factors, source=source, stacked_experts=stacked
    )
    theirs = AutoModelForCausalLM.from_pretrained(source)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    found = merged_by_peft(theirs, tmp_path / "merged", model)
    assert_same(tuning.merge(factors, params), found)
    back, again = read_adapter(tmp_path / "adapter", model, params, source=source)
    assert_same(back.merge(again, params), found)


ALL_OF_A_LAYER = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]
SHARED_AND_EXPERTS = ["shared_experts.up_proj.weight", "gate_up_proj"]
READ = [
    (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ALL_OF_A_LAYER,
            "alpha_pattern": {"experts.down_proj": 5},
        },
    ),
    ("phi3", {"target_modules": "all-linear", "rank_pattern": {"qkv_proj": 6}}),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("mixtral", {"target_modules": "all-linear", "use_rslora": True}),
            ("qwen3_moe", {"target_modules": [], "target_parameters": ["down_proj"]}),
            ("gpt_oss", {"target_modules": ["o_proj"], "target_parameters": ["gate_up_proj"]}),
            (
                "deepseek_v3",
                {"target_modules": ["kv_b_proj"], "target_parameters": SHARED_AND_EXPERTS},
            ),
            ("gpt2", {"target_modules": ["c_attn", "c_proj", "wpe"], "fan_in_fan_out": True}),
        )
    ),
]


@pytest.mark.parametrize(("name", "fields"), READ, ids=named)
def test_what_peft_trains_merges_to_the_same_weights_here(name, fields, tmp_path):
    model = their_base(name, tmp_path / "base")
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, **fields)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    params = load(tmp_path / "base", model)
    tuning, trainable = read_adapter(tmp_path / "adapter", model, params, source=tmp_path / "base")
    ours = tuning.merge(trainable, params)
    assert any(np.abs(ours_leaf - leaf).max() > 0.1 for ours_leaf, leaf in pairs(ours, params))
    assert_same(ours, merged_by_peft(theirs, tmp_path / "merged", model))


def pairs(one: Any, other: Any) -> list[tuple[Any, Any]]:
    """Give the leaves of two trees side by side."""
    return list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
