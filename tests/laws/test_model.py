"""The decoder's laws: causality, padding, packing, decoding; how it is computed changes nothing."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import layouts
from research.core.layout import Layout
from research.core.records import Batch
from research.models.architecture import Architecture
from research.models.attention.blockwise import Blockwise
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.objectives.cross_entropy import CrossEntropy

FLOAT32 = 2e-5  # four layers of float32 products, summed in another order
GRADIENT = 2e-4  # sums over a batch's tokens of terms larger than the sum
BFLOAT16 = 0.02  # 8 bits of mantissa through four layers, as a share of the logits' size
V, D, F, T = 40, 24, 28, 13
ARCH = Architecture(
    vocab_size=V,
    model_dim=D,
    num_layers=4,
    num_heads=6,
    num_kv_heads=2,
    head_dim=10,
    ffw_dim=F,
    query_key_norm=True,
    qkv_bias=True,
    windows=(5, None, 5, None),
)


# Gradients of few kinds of parameters compile faster.
ONE_SCAN = dataclasses.replace(
    ARCH, num_layers=2, windows=(5, 5), query_key_norm=False, qkv_bias=False
)
PLAIN, SINGLE = Compute(), layouts.single()


def model_with(
    compute: Compute = PLAIN, layout: Layout = SINGLE, arch: Architecture = ARCH
) -> Transformer:
    return Transformer(arch, layout.on(jax.devices()), compute)


@functools.cache
def params(arch: Architecture = ARCH):
    """Draw weights, norms and biases, all of them away from 0 and 1."""
    r = np.random.RandomState(0)

    def draw(path, leaf):
        fan_in = D if "_D_" in path[-1].key else F
        centre, width = (1.0, 0.2) if "norm" in path[-1].key else (0.0, fan_in**-0.5)
        return jnp.asarray(centre + width * r.randn(*leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, model_with(arch=arch).abstract())


@functools.cache
def forward(model: Transformer):
    return jax.jit(lambda params, batch: model.apply(params, batch).logits())


@functools.cache
def learner(compute: Compute = PLAIN, layout: Layout = SINGLE):
    """Compile what gives the summed loss of TRAINED in nats and its gradient; with operands."""
    model = model_with(compute, layout, ONE_SCAN)
    weights, batch = params(ONE_SCAN), TRAINED
    if layout != SINGLE:
        weights = jax.device_put(weights, model.place.weights(weights))
        batch = jax.device_put(batch, model.place.batch(batch))

    def loss(params, batch):
        return CrossEntropy()(model, params, batch)[0].sum

    return jax.jit(jax.value_and_grad(loss)).lower(weights, batch).compile(), weights, batch


def learn(*policies):
    program, weights, batch = learner(*policies)
    return program(weights, batch)


def rows(*examples: list[tuple[int, list[int]]], length: int = T) -> Batch:
    """Make a batch from each row's (start, tokens); every token but an example's last is fed."""
    shape = (len(examples), length)
    tokens, targets, positions, segments = np.zeros((4, *shape), np.int32)
    weights = np.zeros(shape, np.float32)
    for row, packed in enumerate(examples):
        for number, (start, ids) in enumerate(packed, 1):
            at = np.s_[row, start : start + len(ids) - 1]
            tokens[at], targets[at], weights[at] = ids[:-1], ids[1:], 1.0
            positions[at], segments[at] = np.arange(len(ids) - 1), number
    ids_BZ = np.tile(np.arange(2, dtype=np.int32), (len(examples), 1))
    return Batch(
        tokens_BT=tokens,
        targets_BT=targets,
        weights_BT=weights,
        positions_BT=positions,
        segments_BT=segments,
        ids_BZ=ids_BZ,
    )


def text(seed: int, length: int) -> list[int]:
    return np.random.RandomState(seed).randint(1, V, length).tolist()


def logits(batch: Batch, compute: Compute = PLAIN) -> np.ndarray:
    return np.asarray(forward(model_with(compute))(params(), batch))


def assert_close(got, want, tolerance=FLOAT32):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance), got, want
    )


def test_the_future_changes_nothing():
    before, after = text(0, T + 1), text(0, T + 1)
    after[8:] = text(1, T - 7)
    got, want = (logits(rows([(0, ids)], [(0, text(2, 9))])) for ids in (after, before))
    np.testing.assert_array_equal(got[0, :8], want[0, :8])
    assert np.abs(got[0, 8:] - want[0, 8:]).min() > 0


def test_padding_changes_nothing_on_either_side():
    got = logits(rows([(0, text(3, 9))], [(5, text(3, 9))]))
    assert_close(got[1, 5:], got[0, :8])


def test_packed_rows_equal_rows_alone():
    first, second = text(4, 7), text(5, 6)
    got = logits(rows([(1, first), (7, second)], [(0, text(6, 4))]))
    alone = logits(rows([(0, first)], [(0, second)]))
    assert_close(got[0, 1:7], alone[0, :6])
    assert_close(got[0, 7:12], alone[1, :5])


def test_a_document_never_changes_its_neighbour():
    want, got = (logits(rows([(0, text(n, 7)), (6, text(9, 8))], [])) for n in (7, 8))
    np.testing.assert_array_equal(got[0, 6:], want[0, 6:])
    assert np.abs(got[0, :6] - want[0, :6]).min() > 0


def test_batch_mates_change_nothing():
    want, got = (logits(rows([(0, text(10, 14))], [(0, text(n, 12))])) for n in (11, 12))
    np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.parametrize("starts", [(0, 0), (0, 4)], ids=["right_padded", "left_padded"])
def test_cached_decoding_equals_the_full_forward(starts):
    """Past every window, from prompts of different lengths, one token at a time."""
    model, texts = model_with(), (text(13, 14), text(14, 10))
    full = logits(rows(*([(0, ids)] for ids in texts)))
    lengths = [6, 2]
    prompts = rows(
        *([(start, ids[: n + 1])] for start, ids, n in zip(starts, texts, lengths, strict=True)),
        length=6,
    )
    output, cache = jax.jit(model.prefill, static_argnums=2)(params(), prompts, T)
    hidden = np.asarray(output.logits())
    for row, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        assert_close(hidden[row, start : start + n], full[row, :n])
    extend = jax.jit(model.extend)
    for step in range(7):
        at = np.array([[n + step] for n in lengths], np.int32)
        fed = np.array([[ids[p]] for ids, p in zip(texts, at[:, 0], strict=True)], np.int32)
        output, cache = extend(params(), cache, fed, at, np.ones_like(at))
        for row, position in enumerate(at[:, 0]):
            assert_close(np.asarray(output.logits())[row, 0], full[row, position])


CHUNKED = Compute(vocabulary_chunk=5)
TRAINED = rows(*([(n % 3, text(20 + n, 5)), (7, text(40 + n, 3 + n % 4))] for n in range(8)))


@pytest.mark.parametrize(
    "compute",
    [
        Compute(remat="full"),
        Compute(unroll=True, remat="dots_without_batch"),
        Compute(
            remat="dots",
            attention=Blockwise(query_block=4, key_block=3),
            vocabulary_chunk=5,
        ),
    ],
    ids=lambda c: f"remat_{c.remat}" + "_unrolled" * c.unroll + "_blockwise" * bool(c.attention),
)
def test_how_it_is_computed_changes_neither_loss_nor_gradient(compute):
    assert_close(learn(compute), learn(), GRADIENT)


def equations(jaxpr):
    """Walk every equation, also those inside scans, calls and rules."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr"),
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_bfloat16_keeps_norms_softmax_and_loss_in_float32():
    model = model_with(Compute(dtype="bfloat16"))
    traced = jax.make_jaxpr(lambda p, b: CrossEntropy()(model, p, b)[0].sum)(params(), TRAINED)
    seen = list(equations(traced.jaxpr))
    for name in ("exp", "log", "rsqrt", "reduce_sum", "reduce_max", "cos"):
        dtypes = {str(e.invars[0].aval.dtype) for e in seen if e.primitive.name == name}
        assert "float32" in dtypes, name
        assert "bfloat16" not in dtypes, name
    products = [e for e in seen if e.primitive.name == "dot_general"]
    assert {str(v.aval.dtype) for e in products for v in e.invars} == {"bfloat16"}
    assert str(traced.out_avals[0].dtype) == "float32"


def test_bfloat16_stays_near_float32():
    exact, rough = logits(TRAINED), logits(TRAINED, Compute(dtype="bfloat16"))
    assert rough.dtype == np.float32
    trained = TRAINED.weights_BT > 0
    error = np.linalg.norm((rough - exact)[trained]) / np.linalg.norm(exact[trained])
    assert FLOAT32 < error < BFLOAT16


@pytest.mark.parametrize(
    "layout",
    [
        layouts.data(),
        layouts.fsdp(),
        pytest.param(layouts.fsdp(n=4, data=2), marks=pytest.mark.slow),
    ],
    ids=["data", "fsdp", "data_fsdp"],
)
def test_eight_devices_learn_what_one_learns(layout):
    assert_close(learn(CHUNKED, layout), learn(), GRADIENT)


@pytest.mark.slow
def test_initial_weights_are_the_same_on_every_layout():
    one = model_with(arch=ONE_SCAN).init(jax.random.key(0))
    eight = model_with(layout=layouts.fsdp(), arch=ONE_SCAN).init(jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), one, eight)


def test_a_tied_head_has_no_matrix_of_its_own():
    arch = dataclasses.replace(ARCH, tied_head=True)
    tied = dataclasses.replace(model_with(), arch=arch)
    assert model_with().abstract().keys() - tied.abstract().keys() == {"head_D_V"}
    made = {name: leaf for name, leaf in params().items() if name != "head_D_V"}
    output = tied.apply(made, rows([(0, text(30, 5))]))
    want = jnp.einsum("BTD,VD->BTV", output.hidden_BTD, made["embed_V_D"])
    assert_close(output.logits(), want)


def test_fsdp_moves_weights_once_and_never_the_activations_of_all_rows():
    program = learner(CHUNKED, layouts.fsdp())[0].as_text()
    moves = [
        (line.split("op_name=")[-1], set(re.findall(r"f32\[([\d,]+)\]", line.split("(%")[0])))
        for line in program.splitlines()
        if re.search(r"(all-gather|all-reduce|all-to-all)(-start)?\(", line)
    ]
    shapes = set().union(*(seen for _, seen in moves))
    assert f"{V},{D}" in shapes
    assert not any(shape.startswith(f"{len(TRAINED.tokens_BT)},{T}") for shape in shapes)
    inside_loops = set().union(*(seen for name, seen in moves if "/while/" in name))
    assert f"{D},{F}" in inside_loops  # a layer's weights
    assert not inside_loops & {f"{V},{D}", f"{D},{V}"}  # neither embedding nor head
