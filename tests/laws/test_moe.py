"""Laws of dispatch: every way of computing the chosen experts gives what the dense one gives."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.grouped import grouped_product
from research.core.grouped_gpu import by_tiles
from research.core.layout import Layout
from research.models.activations import ClampedSwiglu, Gelu, Silu
from research.models.moe.automatic import dispatch_for
from research.models.moe.bank import Experts
from research.models.moe.capacity import Capacity
from research.models.moe.dense import Dense
from research.models.moe.dispatch import Moves, collect, sort_by_expert, spread
from research.models.moe.dropless import Dropless
from research.models.moe.expert_parallel import ExpertParallel
from research.models.moe.routing import Routing
from research.tuning.lora import Lora

B, T, D, F, E, A, RANK = 8, 4, 7, 6, 8, 2, 3
M = B * T
ONE = Layout().on(jax.devices()[:1])
EXPERT_LAYOUT = Layout(
    axes=(("data", 2), ("expert", 4)),
    weights=(("E", ("expert",)),),
    activations=(("B", ("data", "expert")),),
)
EIGHT = EXPERT_LAYOUT.on(jax.devices())
THREE_WAYS = Layout(  # experts, their width, and the tokens of a row
    axes=(("expert", 2), ("context", 2), ("tensor", 2)),
    weights=(("E", ("expert",)), ("F", ("tensor",))),
    activations=(("B", ("expert",)), ("T", ("context",))),
).on(jax.devices())
FLOAT32 = 1e-5  # sums of a few dozen products of order 1, in another order


@functools.cache
def weights(biases: bool = False) -> dict[str, jax.Array]:
    numbers = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "gate_E_D_F": (E, D, F),
        "up_E_D_F": (E, D, F),
        "down_E_F_D": (E, F, D),
    }
    if biases:
        shapes |= {"gate_bias_EF": (E, F), "up_bias_EF": (E, F), "down_bias_ED": (E, D)}
    return {n: jnp.asarray(0.4 * numbers.normal(size=s), jnp.float32) for n, s in shapes.items()}


def x_of(seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(M, D)), jnp.float32)


def routing_of(load: str) -> Routing:
    """Make a routing by hand: which experts, and how much is padding."""
    numbers = np.random.default_rng(2)
    token = np.arange(M)
    experts = {
        "uniform": np.stack([token % E, (token + 3) % E], 1),
        "skewed": np.stack([np.full(M, 5), 6 + token % 2], 1),
        "an expert without tokens": np.stack([token % (E - 1), (token + 2) % (E - 1)], 1),
        "padded": np.stack([token % E, (3 * token + 1) % E], 1),
        "all padding": np.stack([token % E, (token + 3) % E], 1),
    }[load]
    kept = {"padded": (token % 5 != 2), "all padding": token < 0}.get(load, token >= 0)
    kept_MA = np.broadcast_to(kept[:, None], experts.shape)
    drawn = numbers.uniform(0.2, 1.0, size=(M, A))
    return Routing(
        experts_MA=jnp.asarray(experts, jnp.int32),
        weights_MA=jnp.asarray(np.where(kept_MA, drawn, 0.0), jnp.float32),
        kept_MA=jnp.asarray(kept_MA),
        probability_ME=jnp.full((M, E), 1 / E, jnp.float32),
        rows=B,
    )


LOADS = ("uniform", "skewed", "an expert without tokens", "padded", "all padding")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(place, capacity, activation, dispatch, leaves, x_MD, routing):
    """Give (output, dropped, gradients of leaves, x and routing weights)."""
    dispatch = dispatch if capacity is None else Capacity(factor=capacity)

    def loss(leaves: Any, x_MD: jax.Array, weights_MA: jax.Array):
        experts = Experts(weights=leaves, activation=activation, platform="cpu")
        chosen = Routing(
            experts_MA=routing.experts_MA,
            weights_MA=jnp.where(routing.kept_MA, weights_MA, 0.0),
            kept_MA=routing.kept_MA,
            probability_ME=routing.probability_ME,
            rows=B,
        )
        out_MD, dropped_MA = dispatch(x_MD, chosen, experts, place)
        return jnp.sum(jnp.sin(out_MD)), (out_MD, dropped_MA)

    differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)
    (_, (out_MD, dropped_MA)), bars = differentiate(leaves, x_MD, routing.weights_MA)
    return out_MD, dropped_MA, bars


def of(dispatch, load, *, leaves=None, place=ONE, capacity=None, activation=None):
    leaves, x_MD, routing = leaves or weights(), x_of(), routing_of(load)
    return jax.device_get(
        run(place, capacity, activation or Silu(), dispatch, leaves, x_MD, routing)
    )


def assert_close(left, right, tolerance=FLOAT32):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


def low_rank(biases: bool = False) -> tuple[dict, dict, Lora]:
    """Give factors of every expert kernel, as a trained adapter has them."""
    tuning = Lora(rank=RANK, alpha=6.0, targets=("gate_E_D_F", "up_E_D_F", "down_E_F_D"))
    fresh, _ = jax.eval_shape(tuning.split, weights(), jax.random.key(0))
    numbers = np.random.default_rng(4)
    drawn = jax.tree.map(lambda a: jnp.asarray(0.3 * numbers.normal(size=a.shape), a.dtype), fresh)
    return drawn, weights(biases), tuning


@pytest.mark.parametrize("load", LOADS)
def test_dropless_equals_the_dense_reference(load):
    assert_close(of(Dropless(), load), of(Dense(), load))


@pytest.mark.parametrize("load", LOADS)
def test_capacity_equals_the_dense_reference_when_nothing_drops(load):
    ours, reference = of(None, load, capacity=float(E)), of(Dense(), load)
    assert not ours[1].any()
    assert_close(ours, reference)


def test_capacity_equals_the_dense_reference_with_the_dropped_assignments_masked():
    out, dropped, bars = of(None, "skewed", capacity=1.0)
    places = M * A // E
    experts, kept = np.asarray(routing_of("skewed").experts_MA), ~dropped
    assert dropped.sum() == M * A - 3 * places  # experts 5, 6 and 7 are full, the others empty
    for e in (5, 6, 7):  # the first tokens have the places
        order = kept[experts == e]
        assert order[:places].all()
        assert not order[places:].any()
    full = routing_of("skewed")
    masked = Routing(
        experts_MA=full.experts_MA,
        weights_MA=full.weights_MA,
        kept_MA=jnp.asarray(kept),
        probability_ME=full.probability_ME,
        rows=B,
    )
    reference = jax.device_get(run(ONE, None, Silu(), Dense(), weights(), x_of(), masked))
    assert_close((out, bars), (reference[0], reference[2]))


def test_padding_is_dropped_by_no_one_and_takes_no_place():
    _, dropped, _ = of(None, "padded", capacity=0.5)
    kept = np.asarray(routing_of("padded").kept_MA)
    assert dropped[kept].any()
    assert not dropped[~kept].any()


def test_biases_agree_with_the_dense_reference():
    leaves, activation = weights(biases=True), ClampedSwiglu(limit=0.5)
    ours = of(Dropless(), "padded", leaves=leaves, activation=activation)
    banked = of(None, "padded", leaves=leaves, activation=activation, capacity=float(E))
    reference = of(Dense(), "padded", leaves=leaves, activation=activation)
    assert_close(ours, reference)
    assert_close(banked, reference)


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(dispatch, activation, leaves, routing):
    experts = Experts(weights=leaves, activation=activation, platform="cpu")
    return dispatch(x_of(), routing, experts, ONE)[0]


def test_experts_without_a_gate_agree_with_the_dense_reference():
    leaves = {name: leaf for name, leaf in weights().items() if not name.startswith("gate")}
    ours, reference = (
        forward(dispatch, Gelu(), leaves, routing_of("padded"))
        for dispatch in (Dropless(), Dense())
    )
    assert_close(ours, reference)


def test_the_choice_of_dispatch_follows_the_layout():
    assert dispatch_for(ONE) == Dropless()
    assert dispatch_for(EIGHT) == ExpertParallel()


# Adapters.


def test_low_rank_experts_start_as_the_base_bit_for_bit():
    _, frozen, tuning = low_rank()
    trainable, _ = jax.jit(tuning.split)(frozen, jax.random.key(3))
    joined, routing = tuning.join(trainable, frozen), routing_of("padded")
    for dispatch in (Dropless(), Dense()):
        started, base = (forward(dispatch, Silu(), held, routing) for held in (joined, frozen))
        assert np.array_equal(started, base)


@pytest.mark.parametrize("dispatch", [Dropless(), Dense()], ids=["dropless", "dense"])
def test_low_rank_experts_equal_merged_ones(dispatch):
    trained, frozen, tuning = low_rank()
    joined = of(dispatch, "skewed", leaves=tuning.join(trained, frozen))
    merged = of(dispatch, "skewed", leaves=tuning.merge(trained, frozen))
    assert_close((joined[0], joined[2][1:]), (merged[0], merged[2][1:]))
    assert np.abs(joined[0] - of(dispatch, "skewed")[0]).max() > 0.1


def test_gradients_of_factors_equal_those_through_merged_weights():
    trained, frozen, tuning = low_rank()
    x_MD, routing = x_of(), routing_of("padded")

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(assemble, trained):
        def loss(trained):
            experts = Experts(weights=assemble(trained, frozen), activation=Silu(), platform="cpu")
            return jnp.sum(jnp.sin(Dropless()(x_MD, routing, experts, ONE)[0]))

        return jax.grad(loss)(trained)

    assert_close(gradient(tuning.join, trained), gradient(tuning.merge, trained))


def test_dropout_touches_the_adapter_alone_and_only_with_a_key():
    trained, frozen, _ = low_rank()
    tuning = Lora(rank=RANK, alpha=6.0, dropout=0.5, targets=("up_E_D_F",))
    trained = {"up_E_D_F": trained["up_E_D_F"]}
    routing, zero = routing_of("padded"), jax.tree.map(jnp.zeros_like, trained)

    @jax.jit
    def out(trained, key):
        leaves = tuning.join(trained, frozen, key)
        experts = Experts(weights=leaves, activation=Silu(), platform="cpu")
        return Dropless()(x_of(), routing, experts, ONE)[0]

    key = jax.random.key(1)
    wet = out(trained, key)
    assert np.array_equal(wet, out(trained, key))
    assert np.abs(out(trained, None) - wet).max() > 0.01
    assert np.array_equal(out(zero, key), out(zero, None))


# Several devices.


@pytest.mark.parametrize(
    ("dispatch", "place", "adapted"),
    [
        (ExpertParallel(), EIGHT, False),
        (Dropless(), EIGHT, False),
        (ExpertParallel(), THREE_WAYS, True),
    ],
    ids=["exchanged", "gathered", "exchanged_in_parts"],
)
def test_eight_devices_equal_one(dispatch, place, adapted):
    """In parts: low-rank leaves, and biases, of which one device in two may add its own."""
    trained, frozen, tuning = low_rank(biases=adapted)

    def leaves(*trees):
        return tuning.join(*trees) if adapted else trees[1]

    placed = [jax.device_put(tree, place.weights(tree)) for tree in (trained, frozen)]
    for load in ("skewed", "padded"):
        many = of(dispatch, load, leaves=leaves(*placed), place=place)
        assert_close(many, of(Dropless(), load, leaves=leaves(trained, frozen)))


def test_expert_parallelism_exchanges_tokens_and_gathers_no_expert():
    frozen = weights()
    placed = jax.device_put(frozen, EIGHT.weights(frozen))
    text = (
        run.lower(EIGHT, None, Silu(), ExpertParallel(), placed, x_of(), routing_of("padded"))
        .compile()
        .as_text()
    )
    assert "all-to-all" in text
    whole = f"f32[{E},{D},{F}]"
    assert not any("all-gather" in line and whole in line for line in text.splitlines())


# Moving rows, and the grouped product itself.


def test_collect_is_the_transpose_of_spread():
    routing = routing_of("padded")
    order = sort_by_expert(routing.experts_MA, routing.kept_MA, E)
    moves = Moves(source_N=order.slot_N // A, place_MA=order.place_MA, rows=M)
    numbers = np.random.default_rng(7)
    x, y = (jnp.asarray(numbers.normal(size=(n, D)), jnp.float32) for n in (M, M * A))
    there, back = jnp.vdot(spread(x, moves), y), jnp.vdot(x, collect(y, moves))
    np.testing.assert_allclose(there, back, rtol=FLOAT32)
    by_hand = jax.linear_transpose(lambda x: x[moves.source_N], x)(y)[0]
    assert_close(jax.vjp(lambda x: spread(x, moves), x)[1](y)[0], by_hand)


def test_sorting_keeps_tokens_in_order_and_puts_the_rest_last():
    routing = routing_of("padded")
    order = jax.device_get(sort_by_expert(routing.experts_MA, routing.kept_MA, E))
    experts = np.where(routing.kept_MA, routing.experts_MA, E).reshape(-1)
    assert np.array_equal(order.slot_N, np.argsort(experts, kind="stable"))
    assert np.array_equal(order.slot_N[order.place_MA.reshape(-1)], np.arange(M * A))
    assert np.array_equal(order.sizes_E, np.bincount(experts, minlength=E + 1)[:E])


@pytest.mark.parametrize(
    "sizes",
    [(40, 41, 39), (120, 0, 0), (0, 1, 99), (33, 32, 31), (0, 0, 0)],
    ids=["even", "one", "short", "odd", "none"],
)
def test_a_grouped_product_is_each_rows_product_with_its_experts_matrix(sizes):
    rows, inputs, outputs = 120, 6, 9
    numbers = np.random.default_rng(3)
    x = jnp.asarray(numbers.normal(size=(rows, inputs)), jnp.float32)
    w = jnp.asarray(numbers.normal(size=(3, inputs, outputs)), jnp.float32)
    bar = jnp.asarray(numbers.normal(size=(rows, outputs)), jnp.float32)
    owner = np.repeat([0, 1, 2, 3], [*sizes, rows - sum(sizes)])
    member = jnp.asarray(owner[:, None] == np.arange(3), jnp.float32)

    @jax.jit
    def ours(x, w, sizes):
        y, back = jax.vjp(lambda x, w: grouped_product(x, w, sizes, "cpu"), x, w)
        return y, back(bar)

    def by_hand(x, w):
        return jnp.einsum("me,mi,eio->mo", member, x, w)

    expected, back = jax.vjp(by_hand, x, w)
    assert_close(ours(x, w, jnp.asarray(sizes, jnp.int32)), (expected, back(bar)))
    assert not np.asarray(ours(x, w, jnp.asarray(sizes, jnp.int32))[0])[sum(sizes) :].any()


def test_the_tiles_of_a_gpu_are_the_blocks_of_a_cpu():
    """The Triton kernels, step by step: tiles that end inside, experts without rows, a rest."""
    rows, inputs, outputs, sizes = 300, 20, 37, (7, 0, 160, 1, 20)
    numbers = np.random.default_rng(6)
    x, w, bar = (
        jnp.asarray(numbers.normal(size=shape), jnp.float32)
        for shape in ((rows, inputs), (len(sizes), inputs, outputs), (rows, outputs))
    )

    def both_ways(product):
        y, back = jax.vjp(lambda x, w: product(x, w, jnp.asarray(sizes, jnp.int32)), x, w)
        return y, back(bar)

    tiles = jax.jit(lambda: both_ways(functools.partial(by_tiles, interpret=True)))()
    blocks = jax.jit(lambda: both_ways(functools.partial(grouped_product, platform="cpu")))()
    assert_close(tiles, blocks)


def test_a_grouped_product_never_multiplies_a_row_with_another_experts_matrix():
    """What it costs does not grow with the experts: no product over all of them is compiled."""
    x, w = jnp.ones((64, 6)), jnp.ones((16, 6, 9))
    lowered = jax.jit(functools.partial(grouped_product, platform="cpu")).lower(
        x, w, jnp.full(16, 4, jnp.int32)
    )
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert products
    assert not any("16x6x9" in line for line in products)


# Refusals.


class Elsewhere:
    """A placement on a platform that is not here."""

    platform = "metal"
    layout, mesh = EXPERT_LAYOUT, EIGHT.mesh


@pytest.mark.parametrize(
    ("dispatch", "place", "experts", "words"),
    [
        (Dropless(), Elsewhere(), 8, ("metal", "Capacity")),
        (ExpertParallel(), Elsewhere(), 8, ("metal", "Capacity")),
        (ExpertParallel(), EIGHT, 6, ("num_experts=6", "expert", "size 4")),
        (ExpertParallel(), ONE, 8, ("do not split E", "Dropless")),
        (
            ExpertParallel(),
            Layout(
                axes=(("data", 2), ("expert", 4)),
                weights=(("E", ("expert",)),),
                activations=(("B", ("data",)),),
            ).on(jax.devices()),
            8,
            ("B over ('data',)", "expert"),
        ),
    ],
)
def test_a_dispatch_refuses_a_placement_before_anything_is_compiled(
    dispatch, place, experts, words
):
    with pytest.raises(ValueError, match=type(dispatch).__name__) as error:
        dispatch.require(experts, place)
    assert all(word in str(error.value) for word in words)
