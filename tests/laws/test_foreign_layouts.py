"""Laws of foreign layouts: every number has one place, fused, stacked or one an expert."""

from __future__ import annotations

import dataclasses
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from research.core.axes import shape_of
from research.huggingface.family import (
    Foreign,
    Tensor,
    by_name,
    foreign_value,
    from_foreign,
)

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


def write(params: dict[str, np.ndarray], tensors: list[Tensor]) -> dict[str, np.ndarray]:
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
