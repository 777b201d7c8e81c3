"""Laws of foreign folders: strict reading, no lost tensor or field, files whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import load_file, save_file

from configs import layouts, models
from research.core.layout import Layout
from research.huggingface import export, pretrained
from research.huggingface.export import save
from research.huggingface.folder import load, open_folder
from research.huggingface.open import open_model
from research.huggingface.peft import write_adapter
from research.huggingface.pretrained import Pretrained, fingerprint, locate
from research.models.compute import Compute
from research.models.rope import Rope
from research.models.transformer import Transformer, parameter_count
from research.tuning.lora import Lora

PLAIN = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 19,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def model_of(arch: Any, layout: Layout | None = None, **compute: Any) -> Transformer:
    """A model on one device, or on a layout over all."""
    place = layout.on(jax.devices()) if layout else Layout().on(jax.devices()[:1])
    return Transformer(arch, place, Compute(**compute))


def write_folder(folder: Path, arch: Any = None, **options: Any) -> tuple[Transformer, Any]:
    """Save a random model; give it with its parameters."""
    model, random = model_of(arch or models.tiny_llama()), np.random.RandomState(3)
    params = jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), model.abstract()
    )
    save(folder, model, params, **options)
    return model, params


def edit_weights(folder: Path, change: Any) -> None:
    """Rewrite a single-file checkpoint after `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of a folder's config."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """Write a folder whose weights are empty: for tests that end at its config."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({}, folder / "model.safetensors")
    return folder


# Configs


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "gpt9"}, "model_type='gpt9'.*llama, mistral"),
        ({"architectures": ["LlamaForTokenClassification"]}, "LlamaForTokenClassification"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', expected 'silu'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"atention_bias": True}, "atention_bias=True.*did you mean 'attention_bias'"),
        ({"residual_multiplier": 0.2}, "residual_multiplier=0.2: unknown field"),
        ({"use_qk_norm": False}, "use_qk_norm"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"auto_map": {"AutoModel": "x.py"}}, "never executed"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "'ntk' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' needs"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "facto": 3}}, "unknown settings.*facto"),
        (
            {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 6.0}},
            "keep one",
        ),
        ({"hidden_size": None}, "no 'hidden_size'"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types"),
        ({"model_type": "mistral"}, "expected \\['MistralForCausalLM'\\]"),
    ],
)
def test_a_config_that_asks_for_other_arithmetic_is_refused_by_name(fields, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        open_folder(write_config(tmp_path, PLAIN | fields))


def test_harmless_and_null_fields_change_nothing(tmp_path):
    plain = open_folder(write_config(tmp_path, PLAIN)).architecture
    more = {"use_cache": False, "eos_token_id": [3, 4], "id2label": {"0": "x"}, "new_thing": None}
    assert open_folder(write_config(tmp_path, PLAIN | more)).architecture == plain


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, ()),
        ({"sliding_window": 7}, ()),
        ({"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, (None, 7)),
        ({"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 9}, ()),
        ({"use_sliding_window": True, "max_window_layers": 0}, (4096, 4096)),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 7,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (7, None),
        ),
    ],
)
def test_qwen_windows_follow_their_switches(fields, windows, tmp_path):
    qwen = PLAIN | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    assert open_folder(write_config(tmp_path, qwen | fields)).architecture.windows == windows


def test_a_sliding_layer_without_a_window_is_refused(tmp_path):
    qwen = PLAIN | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    sliding = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7}
    with pytest.raises(ValueError, match="use_sliding_window"):
        open_folder(write_config(tmp_path, qwen | sliding))
    with pytest.raises(ValueError, match="chunked_attention"):
        open_folder(write_config(tmp_path, qwen | {"layer_types": ["chunked_attention"] * 2}))


@pytest.mark.parametrize(("fields", "window"), [({}, 4096), ({"sliding_window": None}, None)])
def test_an_absent_mistral_window_is_4096_and_a_null_one_is_none(fields, window, tmp_path):
    mistral = PLAIN | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert open_folder(write_config(tmp_path, mistral | fields)).architecture.window(0) == window


def test_an_architecture_that_no_config_can_say_is_refused(tmp_path):
    arch = dataclasses.replace(models.tiny_qwen3(), qkv_bias=True)  # qwen3 biases all four or none
    with pytest.raises(ValueError, match="out_bias: False -> True"):
        write_folder(tmp_path / "out", arch)
    assert list(tmp_path.iterdir()) == []


# Strict tensors


def drop(name: str) -> Any:
    """Remove a tensor."""
    return lambda tensors: tensors.pop(name)


def rename(old: str, new: str) -> Any:
    """Rename a tensor."""
    return lambda tensors: tensors.update({new: tensors.pop(old)})


QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop(QUERY), f"missing {QUERY}"),
        (rename(QUERY, QUERY + "s"), f"missing {QUERY}.*nearest there: {QUERY}s.*unexpected"),
        (lambda t: t.update({"extra.weight": t[QUERY]}), "unexpected extra.weight.*silence"),
        (
            lambda t: t.update({QUERY: t[QUERY].T.copy()}),
            r"q_proj.weight is \(24, 96\).*\(96, 24\)",
        ),
        (lambda t: t.update({QUERY: t[QUERY].astype(np.int8)}), "dtype I8.*unquantised"),
    ],
)
def test_tensors_that_do_not_fit_are_named_before_a_device_is_touched(
    change, said, tmp_path, monkeypatch
):
    model, _ = write_folder(tmp_path / "m")
    edit_weights(tmp_path / "m", change)
    monkeypatch.setattr(jax, "device_put", None)
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "m", model)


def test_an_untied_head_that_is_missing_names_the_switch(tmp_path):
    write_folder(tmp_path / "m")
    edit_config(tmp_path / "m", tie_word_embeddings=False)
    arch = open_folder(tmp_path / "m").architecture
    with pytest.raises(ValueError, match=r"missing lm_head.weight.*tie_word_embeddings to true"):
        load(tmp_path / "m", model_of(arch))


def test_a_tied_head_stored_twice_is_read_where_equal_and_refused_where_not(tmp_path):
    model, params = write_folder(tmp_path / "m")
    table = "model.embed_tokens.weight"
    edit_weights(tmp_path / "m", lambda t: t.update({"lm_head.weight": t[table].copy()}))
    np.testing.assert_array_equal(load(tmp_path / "m", model)["embed_V_D"], params["embed_V_D"])
    edit_weights(tmp_path / "m", lambda t: t.update({"lm_head.weight": t[table] + 1}))
    with pytest.raises(ValueError, match="differs from model"):
        load(tmp_path / "m", model)


def test_tensors_that_follow_from_the_config_are_passed_over(tmp_path):
    model, _ = write_folder(tmp_path / "m")
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    edit_weights(tmp_path / "m", lambda t: t.update(inverse))
    load(tmp_path / "m", model)


# Files


def test_a_truncated_file_says_how_many_bytes_it_should_have(tmp_path):
    write_folder(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 10)
    with pytest.raises(ValueError, match=f"model.safetensors.*{size - 10} bytes.*describes {size}"):
        open_folder(tmp_path / "m")
    os.truncate(file, 100)
    with pytest.raises(ValueError, match="header does not fit"):
        open_folder(tmp_path / "m")
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="0 bytes"):
        open_folder(tmp_path / "m")


def test_pickles_are_never_opened(tmp_path):
    write_folder(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"can run code.*convert"):
        open_folder(tmp_path / "m")


def test_a_missing_shard_config_or_folder_is_named(tmp_path):
    write_folder(tmp_path / "m", max_shard_bytes=20_000)
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=shards[1].name):
        open_folder(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        open_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder, nor a hub id"):
        locate(tmp_path / "absent")
    with pytest.raises(ValueError, match="revision='main'"):
        Pretrained(folder=str(tmp_path / "m"), revision="main").resolve()


def test_a_hub_id_fetches_no_pickle_and_no_code(tmp_path, monkeypatch):
    write_folder(tmp_path / "m")
    asked = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path / "m")

    monkeypatch.setattr(pretrained, "snapshot_download", fetch)
    resolved = Pretrained(folder="someone/something", revision="abc").resolve()
    assert resolved.fingerprint == fingerprint(tmp_path / "m")
    assert (asked["name"], asked["revision"]) == ("someone/something", "abc")
    files = ["model-00001-of-00002.safetensors", "config.json", "merges.txt", "tokenizer.model"]
    unwanted = ["pytorch_model.bin", "modeling.py", "consolidated.safetensors", "original/a.json"]
    allowed = [name for name in files + unwanted if is_asked_for(name, asked)]
    assert allowed == files


def is_asked_for(name: str, asked: dict[str, Any]) -> bool:
    """Whether the hub's client would fetch a file."""
    patterns = (asked["allow_patterns"], asked["ignore_patterns"])
    return bool(
        list(filter_repo_objects([name], allow_patterns=patterns[0], ignore_patterns=patterns[1]))
    )


def test_a_hub_id_that_cannot_be_fetched_names_both_remedies(monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(pretrained, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=r"runs/typo is not a folder here.*offline"):
        locate("runs/typo")


def test_an_opened_adapter_is_low_rank_leaves_over_the_folder(tmp_path):
    model, params = write_folder(tmp_path / "m")
    tuning = Lora(rank=3, alpha=5.0, targets=("query_D_KGH", "down_F_D"))
    factors, _ = tuning.split(params, jax.random.key(0))
    factors = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.25, factors)
    write_adapter(tmp_path / "adapter", model, tuning, factors)
    expected = tuning.join(factors, params)
    opened, read, tokenizer = open_model(
        tmp_path / "m", adapter=tmp_path / "adapter", compute=model.compute, place=model.place
    )
    assert (opened, tokenizer) == (model, None)
    assert jax.tree.all(jax.tree.map(np.array_equal, read, expected))
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    assert open_model(tmp_path / "m", compute=model.compute, place=model.place)[2] == tmp_path / "m"


def test_shards_keep_their_limit_and_hold_every_tensor_once(tmp_path):
    model, params = write_folder(tmp_path / "m", models.tiny_qwen3(), max_shard_bytes=20_000)
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    held = [load_file(file) for file in files]
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    names = [name for tensors in held for name in tensors]
    assert len(files) > 2
    assert sorted(names) == sorted(index["weight_map"])
    for file, tensors in zip(files, held, strict=True):
        assert all(index["weight_map"][name] == file.name for name in tensors)
        assert len(tensors) == 1 or sum(value.nbytes for value in tensors.values()) <= 20_000
    count = parameter_count(params)
    assert index["metadata"] == {"total_parameters": count, "total_size": 4 * count}
    again = load(tmp_path / "m", model)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_read_exactly(dtype, tmp_path):
    model, _ = write_folder(tmp_path / "m", dtype=dtype)
    edit_weights(tmp_path / "m", lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}))
    stored = load_file(tmp_path / "m" / "model.safetensors")[QUERY]
    read = load(tmp_path / "m", model)["layers"]["0"]["attention"]["query_D_KGH"][1]
    assert str(stored.dtype) == dtype
    assert read.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(read).reshape(stored.shape[::-1]).T, stored)
    half = load(tmp_path / "m", model_of(model.arch, param_dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(export, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out")
    with pytest.raises(FileExistsError, match="not empty"):
        write_folder(tmp_path / "out")


def test_a_saved_model_keeps_the_family_ids_and_tokenizer_of_its_source(tmp_path):
    arch = dataclasses.replace(models.tiny_mistral(), windows=())  # as such it could be a llama
    write_folder(tmp_path / "llama", arch)
    assert open_folder(tmp_path / "llama").family.model_type == "llama"
    source = shutil.copytree(tmp_path / "llama", tmp_path / "source")
    edit_config(source, model_type="mistral", architectures=["MistralForCausalLM"], eos_token_id=9)
    config = json.loads((source / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.endswith("_bias")}
    (source / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    (source / "generation_config.json").write_text('{"temperature": 0.6}')
    (source / "tokenizer.json").write_text("{}")
    model, params = model_of(arch), load(source, model_of(arch))
    saved = save(tmp_path / "saved", model, params, source=source, dtype="bfloat16")
    opened = open_folder(saved)
    assert opened.family.model_type == "mistral"
    assert (opened.config["eos_token_id"], opened.config["torch_dtype"]) == (9, "bfloat16")
    assert {held.dtype for held in opened.tensors.values()} == {"BF16"}
    assert (saved / "generation_config.json").read_text() == '{"temperature": 0.6}'
    assert (saved / "tokenizer.json").read_text() == "{}"


def test_leaves_that_are_not_arrays_are_not_written(tmp_path):
    model, params = write_folder(tmp_path / "m")
    adapted = params | {"embed_V_D": object()}
    with pytest.raises(ValueError, match=r"embed_V_D.*merge adapters"):
        save(tmp_path / "out", model, adapted)


def test_a_fingerprint_follows_the_weights_and_nothing_else(tmp_path):
    write_folder(tmp_path / "a")
    copy = shutil.copytree(tmp_path / "a", tmp_path / "b")
    edit_config(copy, eos_token_id=5)
    assert fingerprint(copy) == fingerprint(tmp_path / "a")
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert fingerprint(copy) != fingerprint(tmp_path / "a")


# Meshes


SPLIT_HEADS = Layout(
    axes=(("data", 2), ("fsdp", 2), ("tensor", 2)),
    weights=(("D", ("fsdp",)), ("K", ("tensor",)), ("H", ("data",)), ("F", ("tensor", "data"))),
)


@pytest.mark.parametrize("layout", [layouts.fsdp(), layouts.data(), SPLIT_HEADS])
def test_a_mesh_of_eight_reads_what_one_device_reads(layout, tmp_path):
    arch = dataclasses.replace(models.tiny_qwen2(), vocab_size=48)
    one, params = write_folder(tmp_path / "m", arch, max_shard_bytes=20_000)
    many = load(tmp_path / "m", model_of(arch, layout))
    alone = load(tmp_path / "m", one)
    assert jax.tree.all(jax.tree.map(np.array_equal, many, params))
    assert jax.tree.all(jax.tree.map(np.array_equal, alone, params))
    shardings = layout.on(jax.devices()).weights(many)
    assert jax.tree.all(jax.tree.map(lambda leaf, s: leaf.sharding == s, many, shardings))
    save(tmp_path / "again", model_of(arch, layout), many)
    assert jax.tree.all(jax.tree.map(np.array_equal, load(tmp_path / "again", one), params))


def test_loaded_shards_may_be_donated(tmp_path):
    arch = dataclasses.replace(models.tiny_qwen2(), vocab_size=48)
    write_folder(tmp_path / "m", arch)
    params = load(tmp_path / "m", model_of(arch, layouts.data()))
    first = np.asarray(params["final_norm_D"]) + 1
    bumped = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(params)
    for shard in bumped["final_norm_D"].addressable_shards:
        np.testing.assert_array_equal(shard.data, first)


def test_rope_theta_written_as_an_integer_is_the_same_model(tmp_path):
    whole = open_folder(write_config(tmp_path, PLAIN | {"rope_theta": 500000})).architecture
    assert whole.rope == Rope(theta=500000.0)
    assert isinstance(whole.rope.theta, float)
