"""Laws of foreign layouts: every number has one place, fused, stacked or one an expert."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from research.core.axes import shape_of
from research.core.layout import Layout
from research.huggingface import folder as folder_module
from research.huggingface.family import (
    Foreign,
    Tensor,
    by_name,
    foreign_value,
    from_foreign,
    tensors_of,
)
from research.huggingface.folder import load
from tests.laws.bare_model import BareModel, bare_family, bare_folder

SIZES = {"V": 11, "S": 9, "D": 6, "K": 4, "G": 3, "H": 2, "E": 5, "F": 7}
QKV, QUERY_KEY_VALUE = ("KGH", "KH", "KH"), ("query_D_KGH", "key_D_KH", "value_D_KH")
HALVES, GATE_UP = ("F", "F"), ("gate_E_D_F", "up_E_D_F")
PLAIN = ("query_D_KGH", "out_KGH_D", "embed_V_D", "positions_S_D", "query_bias_KGH", "norm_D")


def parts_of(name: str, of: tuple[str, ...], ours: tuple[str, ...], **how: bool) -> dict:
    """Say which parameters lie side by side in one foreign tensor."""
    return {our: Foreign(name, of=of, index=index, **how) for index, our in enumerate(ours)}


LAYOUTS = {name: {name: Foreign("t")} for name in PLAIN} | {
    "conv": {"out_KGH_D": Foreign("c_proj", conv=True)},
    "fused rows": parts_of("qkv", QKV, QUERY_KEY_VALUE),
    "fused columns": parts_of("c_attn", QKV, QUERY_KEY_VALUE, conv=True),
    "fused biases": parts_of("b", QKV, ("query_bias_KGH", "key_bias_KH", "value_bias_KH")),
    "one an expert": {
        "up_E_D_F": Foreign("{expert}.up"),
        "down_E_F_D": Foreign("{expert}.down"),
        "up_bias_EF": Foreign("{expert}.bias"),
    },
    "fused in each expert": parts_of("{expert}.w13", HALVES, GATE_UP),
    "stacked (out, in)": parts_of("gate_up", HALVES, GATE_UP, stacked=True)
    | {"down_E_F_D": Foreign("down", stacked=True)},
    "stacked (in, out), alternating": {
        **parts_of("gate_up", HALVES, GATE_UP, stacked=True, conv=True, interleaved=True),
        **parts_of("bias", HALVES, ("gate_bias_EF", "up_bias_EF"), stacked=True, interleaved=True),
        "down_E_F_D": Foreign("down", stacked=True, conv=True),
        "down_bias_ED": Foreign("down_bias", stacked=True),
    },
}


def spell(layout: str, num_layers: int = 2) -> tuple[dict[str, np.ndarray], list[Tensor]]:
    """Draw the parameters of a layout, stacked over layers, and list where they lie."""
    names, random = LAYOUTS[layout], np.random.RandomState(0)
    params = {our: random.standard_normal((num_layers, *shape_of(our, SIZES))) for our in names}
    tensors = []
    for (our, foreign), layer in itertools.product(names.items(), range(num_layers)):
        each = dataclasses.replace(foreign, name="{layer}." + foreign.name)
        tensors += each.tensors((our,), (layer,), layer, SIZES)
    return params, tensors


def write(params: dict[str, Any], tensors: list[Tensor]) -> dict[str, np.ndarray]:
    """Write every foreign tensor from its parts."""
    return {name: foreign_value(params, *parts) for name, parts in by_name(tensors).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@hypothesis.given(data=st.data())
def test_any_slice_of_a_parameter_survives_the_trip_through_a_checkpoint(layout, data):
    params, tensors = spell(layout)
    foreign = write(params, tensors)
    tensor = data.draw(st.sampled_from(tensors))
    value = params[tensor.path[0]][tensor.entry]
    index = tuple(
        slice(*sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2))))
        for size in value.shape
    )
    back = from_foreign(tensor, value.shape, index, lambda name, region: foreign[name][region])
    np.testing.assert_array_equal(back, value[index])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_number_of_a_foreign_tensor_is_filled_once(layout):
    params, tensors = spell(layout)
    first, numbered = 0, {}
    for name, value in params.items():
        numbered[name] = np.arange(first, first + value.size).reshape(value.shape)
        first += value.size
    filled = np.concatenate([value.ravel() for value in write(numbered, tensors).values()])
    np.testing.assert_array_equal(np.sort(filled), np.arange(first))


def test_query_heads_lie_in_the_file_by_key_head_and_then_by_group():
    params, tensors = spell("query_D_KGH")
    head = write(params, tensors)["1.t"].reshape(12, 2, 6)[2 * 3 + 1]  # key head 2, its query 1
    np.testing.assert_array_equal(head, params["query_D_KGH"][1, :, 2, 1].T)


def test_fused_projections_lie_side_by_side_along_the_output():
    params, tensors = spell("fused rows")
    turned = [params[name][1].reshape(6, -1).T for name in QUERY_KEY_VALUE]
    np.testing.assert_array_equal(write(params, tensors)["1.qkv"], np.concatenate(turned))
    params, tensors = spell("fused columns")
    straight = [params[name][1].reshape(6, -1) for name in QUERY_KEY_VALUE]
    np.testing.assert_array_equal(write(params, tensors)["1.c_attn"], np.hstack(straight))


def test_experts_lie_as_transformers_5_stacks_them():
    params, tensors = spell("stacked (out, in)")
    gate, up = (params[name][0].swapaxes(1, 2) for name in GATE_UP)
    np.testing.assert_array_equal(
        write(params, tensors)["0.gate_up"], np.concatenate([gate, up], axis=1)
    )
    np.testing.assert_array_equal(
        write(params, tensors)["0.down"], params["down_E_F_D"][0].swapaxes(1, 2)
    )


def test_gate_and_up_of_gpt_oss_alternate():
    params, tensors = spell("stacked (in, out), alternating")
    foreign = write(params, tensors)
    for kind, names in (("gate_up", GATE_UP), ("bias", ("gate_bias_EF", "up_bias_EF"))):
        for first, name in enumerate(names):
            np.testing.assert_array_equal(foreign[f"1.{kind}"][..., first::2], params[name][1])
    np.testing.assert_array_equal(foreign["0.down"], params["down_E_F_D"][0])
    np.testing.assert_array_equal(foreign["0.down_bias"], params["down_bias_ED"][0])


def test_a_table_that_says_other_letters_is_refused():
    with pytest.raises(ValueError, match=r"key_D_KH.*outputs are 'KH'"):
        list(Foreign("qkv", of=QKV, index=0).tensors(("key_D_KH",), (), None, SIZES))


# Folders


SHAPES = {
    "embed_V_D": (11, 6),
    "layers/ffw/router_D_E": (6, 5),
    "layers/ffw/gate_E_D_F": (5, 6, 7),
    "layers/ffw/up_E_D_F": (5, 6, 7),
    "layers/ffw/down_E_F_D": (5, 7, 6),
    "layers/ffw/shared/up_D_F": (6, 4),
}
PLACE = "layers.{layer}.experts."
NAMES = {
    "embed_V_D": "embed.weight",
    "layers/ffw/router_D_E": "layers.{layer}.router.weight",
    "layers/ffw/gate_E_D_F": PLACE + "{expert}.gate.weight",
    "layers/ffw/up_E_D_F": PLACE + "{expert}.up.weight",
    "layers/ffw/down_E_F_D": PLACE + "{expert}.down.weight",
    "layers/ffw/shared/up_D_F": "layers.{layer}.shared.up.weight",
}
STACKED = {
    "layers/ffw/gate_E_D_F": Foreign(PLACE + "gate_up", of=HALVES, index=0, stacked=True),
    "layers/ffw/up_E_D_F": Foreign(PLACE + "gate_up", of=HALVES, index=1, stacked=True),
    "layers/ffw/down_E_F_D": Foreign(PLACE + "down", stacked=True),
}
FAMILY = bare_family(
    NAMES,
    parameters=STACKED,
    alternatives=({"embed_V_D": "wte"},),
    ignored=("*.mask", "layers.{num_layers}.*"),
)


def store(folder: Path, change: Any = None) -> tuple[Any, dict[str, Any]]:
    """Write random parameters under a family's names; give the model and the parameters."""
    model: Any = BareModel(2, SHAPES, Layout().on(jax.devices()[:1]))
    params = model.random()
    tensors = write(params, list(tensors_of(FAMILY, model.arch, params, change or NAMES)))
    save_file(tensors, folder / "model.safetensors")
    return model, params


def edit(folder: Path, change: Any) -> None:
    """Rewrite the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "names",
    [NAMES, NAMES | STACKED, NAMES | {"embed_V_D": "wte"}],
    ids=["as saved", "as in memory", "an older name"],
)
@pytest.mark.parametrize("num_experts", [1, 5])
def test_every_spelling_of_a_family_is_read(names, num_experts, tmp_path):
    model, params = store(tmp_path, names)
    if num_experts > 1:
        layout = Layout(
            axes=(("expert", num_experts), ("fsdp", 1)),
            weights=(("E", ("expert",)),),
            activations=(),
        )
        model = dataclasses.replace(model, place=layout.on(jax.devices()[:num_experts]))
    read = load(bare_folder(tmp_path, model, FAMILY), model)
    assert jax.tree.all(jax.tree.map(np.array_equal, read, params))


def test_what_a_family_ignores_is_passed_over(tmp_path):
    model, params = store(tmp_path)
    more = {"h.0.mask": np.zeros(3, np.float32), "layers.2.next.weight": np.ones(2, np.float32)}
    edit(tmp_path, lambda tensors: tensors.update(more))
    read = load(bare_folder(tmp_path, model, FAMILY), model)
    assert jax.tree.all(jax.tree.map(np.array_equal, read, params))


def rename(tensors: dict[str, Any], old: str, new: str) -> None:
    """Rename tensors by a part of their names."""
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: rename(t, "layers.1.experts.", "layers.1.mlp.experts."),
            r"missing layers\.1\.experts\.\{0\.\.4\}\.down\.weight \(6, 7\) "
            r"\(nearest there: layers\.1\.mlp\.experts\.\{0\.\.4\}\.down\.weight",
        ),
        (
            lambda t: [t.pop(f"layers.0.experts.{e}.up.weight") for e in (1, 4)],
            r"missing layers\.0\.experts\.\{2 of 1\.\.4\}\.up\.weight",
        ),
        (
            lambda t: t.update({f"layers.0.experts.{e}.up.bias": np.zeros(7) for e in range(5)}),
            r"unexpected layers\.0\.experts\.\{0\.\.4\}\.up\.bias",
        ),
        (
            lambda t: t.update({"layers.0.experts.3.up.weight": np.zeros((6, 7), np.float32)}),
            r"layers\.0\.experts\.3\.up\.weight is \(6, 7\) in .*asks for \(7, 6\)",
        ),
    ],
)
def test_tensors_of_experts_are_named_once(change, said, tmp_path, monkeypatch):
    model, _ = store(tmp_path)
    edit(tmp_path, change)
    monkeypatch.setattr(jax, "device_put", None)
    with pytest.raises(ValueError, match=said) as caught:
        load(bare_folder(tmp_path, model, FAMILY), model)
    assert len(str(caught.value)) < 1500


def test_a_shard_is_the_same_in_pieces(tmp_path, monkeypatch):
    model, params = store(tmp_path)
    folder = bare_folder(tmp_path, model, FAMILY)
    monkeypatch.setattr(folder_module, "HOST_BYTES", 400)
    pieces = []
    fill = folder_module._fill
    monkeypatch.setattr(folder_module, "_fill", lambda *a: pieces.append(a[2].nbytes) or fill(*a))
    read = load(folder, model)
    assert jax.tree.all(jax.tree.map(np.array_equal, read, params))
    assert len(pieces) > 4
