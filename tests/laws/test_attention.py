"""Every attention back-end obeys the same laws: causality, padding, packing, windows, sinks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.layout import Layout
from research.models.attention.automatic import Automatic
from research.models.attention.blockwise import Blockwise
from research.models.attention.cudnn import Cudnn
from research.models.attention.reference import Reference
from research.models.attention.sharded import Sharded
from research.models.attention.splash import Splash
from research.models.attention.visibility import Visibility
from research.models.compute import Compute

FLOAT32 = 3e-5  # float32 sums of up to 128 terms of size 1, forward and backward
BFLOAT16 = 4e-2  # 8 bits of mantissa on weights and values of size 1
SCALE = 0.4
B, T, K, G, H = 2, 26, 3, 5, 8

PORTABLE = {
    "reference": Reference(),
    "blockwise": Blockwise(query_block=8, key_block=6),
    "cudnn_call": Cudnn(implementation="xla"),
}
SPLASH = Splash(interpret=True)
PLAIN = {"window": None, "soft_cap": None, "sinks": False}
FEATURES = {
    "plain": PLAIN,
    "window": PLAIN | {"window": 5},
    "all": {"window": 7, "soft_cap": 1.5, "sinks": True},
}


def admitted(name: str, features: str) -> bool:
    """cuDNN has neither soft-cap nor sinks."""
    return name != "cudnn_call" or features != "all"


CASES = [(n, f) for n in PORTABLE for f in FEATURES if admitted(n, f)]


def packed(*rows: tuple[int, ...], length: int = T) -> tuple[np.ndarray, np.ndarray]:
    """Give (positions_BT, segments_BT) from the lengths of each row's examples.

    A negative length is padding.
    """
    positions, segments = np.zeros((2, len(rows), length), np.int32)
    for row, lengths in enumerate(rows):
        at, number = 0, 0
        for size in lengths:
            if size > 0:
                number += 1
                segments[row, at : at + size] = number
                positions[row, at : at + size] = np.arange(size)
            at += abs(size)
    return positions, segments


TWO_DOCUMENTS = packed((11, 9, -6), (-4, 7, 15))


def draw(seed: int, length: int = T, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Draw operands and the cotangent of the output."""
    r = np.random.RandomState(seed)
    shapes = {
        "query": (B, length, K, G, H),
        "key": (B, length, K, H),
        "value": (B, length, K, H),
        "out_bar": (B, length, K, G, H),
    }
    drawn = {name: r.randn(*shape).astype(np.float32) for name, shape in shapes.items()}
    drawn = {name: np.array(jnp.asarray(x, dtype)) for name, x in drawn.items()}
    return drawn | {"sinks": r.randn(K, G).astype(np.float32)}


def redrawn(x: dict, other: dict, where, operands=("query", "key", "value", "out_bar")) -> dict:
    """Copy `x`, with some operands taken from `other` at some positions."""
    x = {name: array.copy() for name, array in x.items()}
    for name in operands:
        x[name][where] = other[name][where]
    return x


@functools.cache
def compiled(backend, window, soft_cap, sinks, ordered=True):
    """Give a jitted (operands, positions, segments) -> output and gradients."""

    @jax.jit
    def run(x, query_positions, query_segments, key_positions, key_segments):
        seen = Visibility(
            query_positions_BT=query_positions,
            query_segments_BT=query_segments,
            key_positions_BS=key_positions,
            key_segments_BS=key_segments,
            window=window,
            ordered=ordered,
        )

        def attend(query, key, value, sink_KG):
            sinks_KG = sink_KG if sinks else None
            return backend(
                query, key, value, seen, scale=SCALE, soft_cap=soft_cap, sinks_KG=sinks_KG
            )

        out, pull = jax.vjp(attend, x["query"], x["key"], x["value"], x["sinks"])
        names = ("query", "key", "value", "sinks")
        return {"out": out} | dict(zip(names, pull(x["out_bar"]), strict=True))

    return run


def run(backend, features, x, layout=TWO_DOCUMENTS):
    """Attend with training rows; give NumPy arrays."""
    seen = compiled(backend, **features)(x, *layout, *layout)
    return jax.tree.map(np.asarray, seen)


def oracle(x, positions, segments, key_positions, key_segments, window, soft_cap, sinks):
    """The formula and its derivative in float64, all scores at once."""
    q, k, v, bar, sink = (
        x[name].astype(np.float64) for name in ("query", "key", "value", "out_bar", "sinks")
    )
    distance = positions[:, :, None] - key_positions[:, None, :]
    mask = (segments[:, :, None] == key_segments[:, None, :]) & (segments[:, :, None] > 0)
    mask &= (distance >= 0) & (distance < (window or 10**9))
    mask = mask[:, None, None]
    raw = np.einsum("btkgh,bskh->bkgts", q, k) * SCALE
    bent = np.tanh(raw / soft_cap) if soft_cap else raw
    scores = np.exp(np.where(mask, soft_cap * bent if soft_cap else raw, -np.inf))
    sink_e = np.exp(sink)[None, :, :, None] if sinks else np.zeros((1, 1, 1, 1))
    total = scores.sum(-1) + sink_e
    total = np.where(total > 0, total, 1.0)
    p = scores / total[..., None]
    p_bar = np.einsum("btkgh,bskh->bkgts", bar, v)
    delta = (p * p_bar).sum(-1, keepdims=True)
    raw_bar = p * (p_bar - delta) * (1 - bent**2 if soft_cap else 1.0) * SCALE
    sink_bar = -(sink_e / total * delta[..., 0]).sum((0, 3)) if sinks else np.zeros((K, G))
    return {
        "out": np.einsum("bkgts,bskh->btkgh", p, v),
        "query": np.einsum("bkgts,bskh->btkgh", raw_bar, k),
        "key": np.einsum("bkgts,btkgh->bskh", raw_bar, q),
        "value": np.einsum("bkgts,btkgh->bskh", p, bar),
        "sinks": sink_bar,
    }


def assert_close(got, want, tolerance=FLOAT32):
    for name in want:
        np.testing.assert_allclose(
            got[name].astype(np.float64), want[name], atol=tolerance, rtol=tolerance, err_msg=name
        )


def assert_same(got, want, where=...):
    """Equal bit for bit, in the output and in every gradient that has positions."""
    for name in ("out", "query", "key", "value"):
        np.testing.assert_array_equal(got[name][where], want[name][where], err_msg=name)


@pytest.mark.parametrize(("name", "features"), CASES)
def test_equals_the_formula_in_float64_with_its_gradients(name, features):
    x = draw(0)
    got = run(PORTABLE[name], FEATURES[features], x)
    assert_close(got, oracle(x, *TWO_DOCUMENTS, *TWO_DOCUMENTS, **FEATURES[features]))


@pytest.mark.parametrize("name", PORTABLE)
def test_bfloat16_operands_keep_a_float32_softmax(name):
    x = draw(1, dtype="bfloat16")
    got = run(PORTABLE[name], FEATURES["plain"], x)
    assert got["out"].dtype == got["key"].dtype == jnp.bfloat16
    want = oracle(x, *TWO_DOCUMENTS, *TWO_DOCUMENTS, **FEATURES["plain"])
    assert_close(got, want, BFLOAT16)


@pytest.mark.parametrize(("name", "features"), CASES)
def test_the_future_changes_nothing(name, features):
    document = packed((T,), (T,))
    x, later = draw(2), np.s_[:, 14:]
    x["out_bar"][later] = 0
    changed = redrawn(x, draw(3), later, ("query", "key", "value"))
    before = run(PORTABLE[name], FEATURES[features], x, document)
    after = run(PORTABLE[name], FEATURES[features], changed, document)
    assert_same(after, before, np.s_[:, :14])
    assert np.all(before["key"][later] == 0)
    assert np.all(before["value"][later] == 0)


@pytest.mark.parametrize(("name", "features"), CASES)
def test_a_document_never_changes_its_neighbour(name, features):
    x = draw(4)
    changed = redrawn(x, draw(5), np.s_[0, :11])
    before, after = (run(PORTABLE[name], FEATURES[features], y) for y in (x, changed))
    assert np.abs(after["out"][0, 1:11] - before["out"][0, 1:11]).min() > 0
    assert_same(after, before, np.s_[0, 11:])


@pytest.mark.parametrize("name", PORTABLE)
def test_batch_mates_change_nothing(name):
    x = draw(6)
    changed = redrawn(x, draw(7), np.s_[0])
    before, after = (run(PORTABLE[name], FEATURES["plain"], y) for y in (x, changed))
    assert_same(after, before, np.s_[1])


@pytest.mark.parametrize(("name", "features"), CASES)
def test_padding_sees_nothing_and_is_seen_by_nothing(name, features):
    x = draw(8)
    changed = redrawn(redrawn(x, draw(9), np.s_[0, 20:]), draw(9), np.s_[1, :4])
    before, after = (run(PORTABLE[name], FEATURES[features], y) for y in (x, changed))
    assert_same(after, before)
    np.testing.assert_array_equal(after["sinks"], before["sinks"])
    for array in (before[key] for key in ("out", "query", "key", "value")):
        assert np.all(array[0, 20:] == 0)
        assert np.all(array[1, :4] == 0)


@pytest.mark.parametrize("name", PORTABLE)
def test_a_row_of_padding_alone_gives_zeros_and_no_nan(name):
    got = run(PORTABLE[name], FEATURES["plain"], draw(10), packed((-T,), (-T,)))
    for array in got.values():
        assert np.all(array == 0)


@pytest.mark.parametrize("name", PORTABLE)
def test_where_a_document_lies_in_its_row_changes_nothing(name):
    x, moved = draw(11), draw(12)
    for operand in ("query", "key", "value", "out_bar"):
        moved[operand][0, 9:22] = x[operand][0, 3:16]
    here = run(PORTABLE[name], FEATURES["window"], x, packed((3, 13, -10), (T,)))
    there = run(PORTABLE[name], FEATURES["window"], moved, packed((-9, 13, 4), (T,)))
    for operand in ("out", "query", "key", "value"):
        np.testing.assert_allclose(
            there[operand][0, 9:22], here[operand][0, 3:16], atol=FLOAT32, rtol=FLOAT32
        )


@pytest.mark.parametrize("name", PORTABLE)
def test_a_window_of_five_sees_five_tokens(name):
    x, document = draw(13), packed((T,), (T,))
    before = run(PORTABLE[name], FEATURES["window"], x, document)
    x["value"][:, 10] += 1.0
    after = run(PORTABLE[name], FEATURES["window"], x, document)
    touched = np.abs(after["out"] - before["out"]).max((0, 2, 3, 4)) > 0
    np.testing.assert_array_equal(np.flatnonzero(touched), np.arange(10, 15))


@given(st.data())
def test_any_packing_equals_the_formula(data):
    rows = []
    for _ in range(B):
        cuts = sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=4)))
        sizes = np.diff([0, *cuts, T])
        signs = [data.draw(st.sampled_from((1, 1, -1))) for _ in sizes]
        rows.append(tuple(int(s * n) for s, n in zip(signs, sizes, strict=True)))
    layout, x = packed(*rows), draw(14)
    for features in FEATURES.values():
        got = run(PORTABLE["blockwise"], features, x, layout)
        assert_close(got, oracle(x, *layout, *layout, **features))


@pytest.mark.parametrize("name", PORTABLE)
def test_slots_in_any_order_are_seen_by_position(name):
    """Cached decoding: the slots of rows with different prompts are not in order."""
    x, window = draw(15), FEATURES["window"]
    order = np.random.RandomState(0).permutation(T)
    shuffled = x | {n: x[n][:, order] for n in ("key", "value")}
    slots = [a[:, order] for a in TWO_DOCUMENTS]
    backend = compiled(PORTABLE[name], **window, ordered=False)
    got = jax.tree.map(np.asarray, backend(shuffled, *TWO_DOCUMENTS, *slots))
    assert_close(got, oracle(shuffled, *TWO_DOCUMENTS, *slots, **window))


SPLASH_LAYOUT = packed((50, 60, -18), (-5, 23, 100), length=128)


def splash_operands(seed: int) -> dict[str, np.ndarray]:
    """Draw fewer heads and more positions: the kernel takes multiples of 128."""
    x = draw(seed, length=128)
    heads = {name: x[name][:, :, :1] for name in ("query", "key", "value", "out_bar")}
    grouped = {name: heads[name][..., :2, :] for name in ("query", "out_bar")}
    return heads | grouped | {"sinks": x["sinks"][:1, :2]}


def test_splash_equals_the_reference_and_never_leaks():
    x = splash_operands(16)
    changed = redrawn(x, splash_operands(17), np.s_[0, :50])
    got, after = (run(SPLASH, FEATURES["all"], y, SPLASH_LAYOUT) for y in (x, changed))
    assert_close(got, run(Reference(), FEATURES["all"], x, SPLASH_LAYOUT))
    assert_same(after, got, np.s_[0, 50:])


@pytest.mark.slow
@pytest.mark.parametrize("features", ["plain", "window"])
def test_splash_equals_the_reference_with_each_mask(features):
    x = splash_operands(18)
    got = run(SPLASH, FEATURES[features], x, SPLASH_LAYOUT)
    assert_close(got, run(Reference(), FEATURES[features], x, SPLASH_LAYOUT))


def temporary_bytes(backend, length: int) -> int:
    """Memory that two rematerialised layers need beside their operands and gradients."""

    def loss(scale_L, query, key, value, positions, segments):
        seen = Visibility(
            query_positions_BT=positions,
            query_segments_BT=segments,
            key_positions_BS=positions,
            key_segments_BS=segments,
        )

        def layer(query, scale):
            return backend(query * scale, key * scale, value, seen, scale=SCALE), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), query, scale_L)[0])

    operands = [draw(0, length)[name] for name in ("query", "key", "value")]
    lowered = jax.jit(jax.grad(loss)).lower(
        np.ones(2, np.float32), *operands, *packed((length,), (length,), length=length)
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_blockwise_memory_grows_with_length_and_the_reference_with_its_square():
    blockwise = [temporary_bytes(Blockwise(query_block=32, key_block=32), n) for n in (256, 512)]
    reference = [temporary_bytes(Reference(), n) for n in (256, 512)]
    assert blockwise[1] < 2.1 * blockwise[0]
    assert reference[1] > 3.5 * reference[0]


def test_sharded_attention_equals_attention_on_one_device_and_exchanges_nothing():
    layout = Layout(
        axes=(("data", 2), ("tensor", 3)),
        activations=(("B", ("data",)), ("K", ("tensor",))),
    )
    sharded = Sharded(PORTABLE["blockwise"], layout.on(jax.devices()))
    x = draw(19)
    got = run(sharded, FEATURES["all"], x)
    assert_close(got, run(PORTABLE["blockwise"], FEATURES["all"], x))

    def attend(query, key, value, positions, segments):
        seen = Visibility(
            query_positions_BT=positions,
            query_segments_BT=segments,
            key_positions_BS=positions,
            key_segments_BS=segments,
        )
        return sharded(query, key, value, seen, scale=SCALE)

    place = sharded.place
    operands = [
        jax.device_put(x[n], jax.NamedSharding(place.mesh, jax.P("data", None, "tensor")))
        for n in ("query", "key", "value")
    ] + [jax.device_put(a, jax.NamedSharding(place.mesh, jax.P("data"))) for a in TWO_DOCUMENTS]
    program = jax.jit(attend).lower(*operands).compile().as_text()
    assert not any(word in program for word in ("all-gather", "all-reduce", "all-to-all"))


def choice(platform, dtype="bfloat16", queries=1024, keys=1024, ordered=True, **features):
    query = jax.ShapeDtypeStruct((B, queries, K, G, 128), dtype)
    key = jax.ShapeDtypeStruct((B, keys, K, 128), dtype)
    at = [jax.ShapeDtypeStruct((B, n), jnp.int32) for n in (queries, queries, keys, keys)]
    names = ("query_positions_BT", "query_segments_BT", "key_positions_BS", "key_segments_BS")
    seen = Visibility(**dict(zip(names, at, strict=True)), ordered=ordered)
    return type(Automatic(platform=platform).choose(query, key, seen, **features))


def test_the_platform_of_the_mesh_chooses_the_back_end():
    assert choice("tpu") is Splash
    assert choice("tpu", queries=1000, keys=1000) is Blockwise
    assert choice("gpu") is Cudnn
    assert choice("gpu", dtype="float32") is Blockwise
    assert choice("gpu", soft_cap=30.0) is Blockwise
    assert choice("cpu") is Blockwise
    assert choice("cpu", queries=64, keys=64) is Reference
    for platform in ("cpu", "gpu", "tpu"):
        assert choice(platform, queries=1, ordered=False) is Reference
        assert choice(platform, queries=1000, ordered=False) is Blockwise


def test_a_chosen_back_end_is_taken_and_a_mesh_wraps_it():
    one, two = (Layout(axes=(("data", n),)).on(jax.devices()) for n in (1, 2))
    mine = Blockwise(query_block=16)
    assert Compute(attention=mine).attention_on(one) == mine
    assert Compute(attention=mine).attention_on(two) == Sharded(mine, two)
    assert Compute().attention_on(one) == Automatic(platform="cpu")


@pytest.mark.parametrize(
    ("backend", "change", "message"),
    [
        (Cudnn(), {"dtype": "float32"}, "float32"),
        (Cudnn(), {"soft_cap": 30.0}, "soft_cap=30.0"),
        (Cudnn(), {"sinks": True}, "sinks"),
        (Cudnn(), {"length": 25}, "25"),
        (Splash(), {"length": 200}, "T=200"),
        (Splash(), {"length": 128, "ordered": False}, "cached"),
    ],
)
def test_what_a_kernel_cannot_do_is_an_error_that_says_so(backend, change, message):
    features = PLAIN | {k: v for k, v in change.items() if k in ("soft_cap", "sinks", "ordered")}
    length = change.get("length", T)
    x = draw(0, length, change.get("dtype", "bfloat16"))
    place = np.zeros((B, length), np.int32)
    with pytest.raises(ValueError, match=message):
        compiled(backend, **features)(x, place, place, place, place)


def test_blocks_must_fit_the_lanes():
    with pytest.raises(ValueError, match="multiples of 128"):
        Splash(query_block=100)
    with pytest.raises(ValueError, match="positive"):
        Blockwise(query_block=0)
