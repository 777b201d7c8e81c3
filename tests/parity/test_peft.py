"""Adapters travel to PEFT and back: same logits, same files, nothing missing or ignored."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from research.core.layout import Layout
from research.core.records import Batch
from research.huggingface.folder import load, open_folder
from research.huggingface.peft import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    read_adapter,
    separates_head,
    untie,
    write_adapter,
)
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.tuning.lora import Lora, Override

ORACLES = Path(__file__).parent / "peft_oracles"
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 9))
SAME_LOGITS = 1e-5  # float32 noise of two layers is about 3e-6
READ_BACK = {
    "query_value_rslora": Lora(
        rank=5, alpha=10.0, rslora=True, targets=("query_D_KGH", "value_D_KH")
    ),
    "all_linear_patterns": Lora(
        rank=4,
        alpha=6.0,
        dropout=0.1,
        overrides=(
            Override(target="query_D_KGH", rank=3),
            Override(target="key_D_KH", rank=4, alpha=2.5),
            Override(target="up_D_F", rank=4, alpha=7.0),
        ),
    ),
    "embedding_and_head": Lora(rank=3, alpha=6.0, targets=("down_F_D", "embed_V_D", "head_D_V")),
    "second_layer_only": Lora(rank=3, alpha=3.0, targets=("up_D_F",)),
    "tied_together": Lora(rank=3, alpha=6.0, targets=("embed_V_D", "out_KGH_D")),
}


@functools.cache
def base(tied: bool):
    folder = open_folder(ORACLES / f"base_{'tied' if tied else 'untied'}")
    model = Transformer(folder.architecture, Layout().on(jax.devices()[:1]), Compute())
    return model, load(folder, model)


def logits(model, params) -> np.ndarray:
    tokens = jnp.asarray(TOKENS, jnp.int32)
    batch = Batch(
        tokens_BT=tokens,
        targets_BT=tokens,
        weights_BT=jnp.ones((2, 9)),
        positions_BT=jnp.tile(jnp.arange(9), (2, 1)),
        segments_BT=jnp.ones_like(tokens),
        ids_BZ=jnp.zeros((2, 1), jnp.int32),
    )
    return np.asarray(model.apply(params, batch).logits())


def expected(name: str) -> np.ndarray:
    with np.load(ORACLES / "logits.npz") as held:
        return held[name]


def copy(name: str, folder: Path, **fields) -> Path:
    """Copy an oracle with other config fields; a field of None is left out."""
    shutil.copytree(ORACLES / name, folder)
    config = json.loads((folder / CONFIG_NAME).read_text()) | fields
    config = {key: value for key, value in config.items() if value is not None or key not in fields}
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", READ_BACK)
def test_an_adapter_that_peft_wrote_gives_pefts_logits(name):
    model, params = base(name.startswith("tied"))
    tuning, trainable = read_adapter(ORACLES / name, model, params)
    assert tuning == READ_BACK[name]
    np.testing.assert_allclose(
        logits(model, tuning.join(trainable, params)), expected(name), rtol=0, atol=SAME_LOGITS
    )
    split = jax.eval_shape(tuning.split, params, jax.random.key(0))[0]
    assert jax.tree.map(jnp.shape, trainable) == jax.tree.map(jnp.shape, split)


@pytest.mark.parametrize("name", READ_BACK)
def test_an_adapter_that_we_write_holds_what_peft_wrote(name, tmp_path):
    model, params = base(name.startswith("tied"))
    tuning, trainable = read_adapter(ORACLES / name, model, params)
    write_adapter(tmp_path / "adapter", model, tuning, trainable)
    back, again = read_adapter(tmp_path / "adapter", model)
    assert back == tuning
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, trainable, again)))
    if name in ("all_linear_patterns", "second_layer_only"):
        return  # layers that differ are padded: the same function in other tensors
    theirs = load_file(ORACLES / name / WEIGHTS_NAME)
    ours = load_file(tmp_path / "adapter" / WEIGHTS_NAME)
    assert ours.keys() == {key for key in theirs if "base_layer" not in key}
    assert all(np.array_equal(value, theirs[key]) for key, value in ours.items())
    config = json.loads((tmp_path / "adapter" / CONFIG_NAME).read_text())
    their_config = json.loads((ORACLES / name / CONFIG_NAME).read_text())
    config["target_modules"] = their_config["target_modules"] = None
    assert config == {key: their_config[key] for key in config}


def test_an_adapter_that_parts_a_tied_head_is_refused_and_reads_into_an_untied_model():
    model, params = base(True)
    with pytest.raises(ValueError, match=r"one weight; give it a head of its own"):
        read_adapter(ORACLES / "tied_apart", model, params)
    assert separates_head(ORACLES / "tied_apart", model)
    assert not separates_head(ORACLES / "tied_together", model)
    model, params = untie(model, params)
    tuning, trainable = read_adapter(ORACLES / "tied_apart", model, params)
    assert tuning == Lora(rank=3, alpha=6.0, targets=("embed_V_D", "head_D_V"))
    np.testing.assert_allclose(
        logits(model, tuning.join(trainable, params)),
        expected("tied_apart"),
        rtol=0,
        atol=SAME_LOGITS,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base"),
        ({"a_field_of_tomorrow": 3}, "a_field_of_tomorrow=3"),
        ({"r": 4}, r"q_proj.lora_A.weight is \(5, 12\), expected \(4, 12\)"),
        ({"target_modules": ["q_proj"]}, "unexpected .*v_proj.lora_A.weight"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "missing .*k_proj.lora_A.weight"),
        ({"target_modules": ["qkv"]}, "unexpected"),
    ],
    ids=str,
)
def test_what_would_be_silently_wrong_is_an_error(fields, message, tmp_path):
    folder = copy("query_value_rslora", tmp_path / "adapter", **fields)
    with pytest.raises(ValueError, match=message):
        read_adapter(folder, base(False)[0])


def test_keys_without_peft_prefix_are_named_with_the_nearest_expected_ones(tmp_path):
    folder = copy("query_value_rslora", tmp_path / "adapter")
    tensors = load_file(folder / WEIGHTS_NAME)
    bare = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
    save_file(bare, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"missing base_model\.model\.(\S+) \(nearest: model\.layers"
    ):
        read_adapter(folder, base(False)[0])


def test_a_folder_without_weights_says_what_is_missing(tmp_path):
    folder = copy("query_value_rslora", tmp_path / "adapter")
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS_NAME):
        read_adapter(folder, base(False)[0])


def test_an_adapter_over_another_embedding_is_refused():
    model, params = base(False)
    other = params | {"embed_V_D": params["embed_V_D"] + 1e-3}
    with pytest.raises(ValueError, match=r"embed_tokens.*trained over other weights"):
        read_adapter(ORACLES / "embedding_and_head", model, other)


def test_an_adapter_is_never_written_over_something_else(tmp_path):
    model, params = base(False)
    tuning, trainable = read_adapter(ORACLES / "query_value_rslora", model, params)
    (tmp_path / "kept").write_text("")
    with pytest.raises(FileExistsError, match="not empty"):
        write_adapter(tmp_path, model, tuning, trainable)


def test_an_adapter_of_some_layers_names_its_modules_one_by_one(tmp_path):
    arch = Architecture(
        vocab_size=29, model_dim=12, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6,
        ffw_dim=20, query_key_norm=True, windows=(None, 8, 8),
    )  # fmt: skip
    model = Transformer(arch, Layout().on(jax.devices()[:1]), Compute())
    tuning = Lora(
        rank=3,
        targets=("key_D_KH", "layers.1.ffw.up_D_F"),
        overrides=(Override(target="layers.1.attention.key_D_KH", rank=2),),
    )
    shapes = jax.eval_shape(tuning.split, model.abstract(), jax.random.key(0))[0]
    factors = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    write_adapter(tmp_path / "adapter", model, tuning, factors)
    assert read_adapter(tmp_path / "adapter", model)[0] == tuning
    config = json.loads((tmp_path / "adapter" / CONFIG_NAME).read_text())
    rest = ["layers.1.mlp.up_proj", "layers.2.mlp.up_proj"]
    assert config["target_modules"] == ["k_proj", *rest]
    names = ["layers.1.self_attn.k_proj", "layers.2.self_attn.k_proj"]
    assert config["rank_pattern"] == dict.fromkeys(names, 2)


LIVE = [
    (
        False,
        Lora(
            rank=4,
            alpha=7.5,
            rslora=True,
            dropout=0.2,
            targets=("all_linear", "embed_V_D", "head_D_V"),
            overrides=(
                Override(target="query_D_KGH", rank=2, alpha=3.0),
                Override(target="head_D_V", rank=5),
            ),
        ),
    ),
    (
        True,
        Lora(
            rank=3,
            alpha=6.0,
            targets=("embed_V_D", "gate_D_F"),
            overrides=(Override(target="embed_V_D", rank=2),),
        ),
    ),
]


@pytest.mark.parametrize(("tied", "tuning"), LIVE, ids=str)
def test_peft_reads_what_we_write_with_the_same_logits(tied, tuning, tmp_path):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, params = base(tied)
    numbers = np.random.default_rng(3)
    factors = jax.tree.map(
        lambda leaf: jnp.asarray(0.15 * numbers.normal(size=leaf.shape), jnp.float32),
        jax.eval_shape(tuning.split, params, jax.random.key(0))[0],
    )
    write_adapter(tmp_path / "adapter", model, tuning, factors, base_name="a/base")
    folder = ORACLES / f"base_{'tied' if tied else 'untied'}"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        reference = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    ours = logits(model, tuning.join(factors, params))
    assert np.abs(ours - logits(model, params)).max() > 0.1
    np.testing.assert_allclose(ours, reference, rtol=0, atol=SAME_LOGITS)
    again, back = read_adapter(tmp_path / "adapter", model)
    assert dataclasses.replace(again, overrides=()) == dataclasses.replace(tuning, overrides=())
    assert set(again.overrides) == set(tuning.overrides)
    assert flatten_dict(back).keys() == flatten_dict(factors).keys()
