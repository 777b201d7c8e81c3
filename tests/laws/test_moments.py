"""Laws of moments kept in fewer bits: right on average, near to float32, sharded as they were."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import layouts
from research.core.axes import shape_of
from research.optimizers.adamw import AdamW
from research.optimizers.lion import Lion
from research.optimizers.moments import Bfloat16, EightBit, Float32, seed_of
from research.optimizers.muon import Muon

SIZES = {"V": 48, "D": 32, "K": 4, "G": 2, "H": 6, "F": 40, "E": 8}
EIGHT = EightBit(min_side=8)
ROUNDED = {"bfloat16": Bfloat16(), "eight bits": EIGHT}
DRAWS = 400
MEAN = 5 / math.sqrt(DRAWS)  # of a rounding step: five standard errors of its mean, at the most
STEP = {"bfloat16": 2.0**-7, "eight bits": 0.5}  # of a value: the widest step of those tested
STORED = {"bfloat16": 0.5, "eight bits": 0.32}  # of float32: 1/4, and rows, columns and vectors
OPTIMIZERS = {"adamw": AdamW, "lion": Lion, "muon": Muon}


def draw(seed: int) -> dict:
    """Make a tree of two layers whose rows span six orders of magnitude."""
    numbers = np.random.default_rng(seed)

    def leaf(name: str, *stack: int) -> jax.Array:
        x = numbers.normal(size=(*stack, *shape_of(name, SIZES)))
        x *= 10.0 ** -numbers.uniform(0, 6, (*x.shape[:-1], 1))
        return jnp.asarray(x, jnp.float32)

    names = ("query_D_KGH", "down_F_D", "up_E_D_F", "ffw_norm_D")
    layer = {name: leaf(name, 2) for name in names}
    return {"embed_V_D": leaf("embed_V_D"), "layers": {"0": layer}}


def squared(tree: dict) -> dict:
    return jax.tree.map(jnp.square, tree)


@functools.partial(jax.jit, static_argnums=(0, 2))
def round_trip(moments, tree, signed, count):
    return moments.read(moments.keep(tree, seed_of(jnp.asarray(count), 1), signed), signed)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "squares"])
@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_kept_is_right_on_average(name, signed):
    tree = draw(0)["layers"]["0"] if signed else squared(draw(0)["layers"]["0"])
    one = {"down_F_D": tree["down_F_D"]}
    counts = jnp.arange(DRAWS)
    again = jax.vmap(lambda count: round_trip(ROUNDED[name], one, signed, count))(counts)
    mean, x = np.asarray(again["down_F_D"]).mean(0), np.asarray(one["down_F_D"])
    step = STEP[name] * np.abs(x)
    seen = np.abs(x) > 1e-9 * np.abs(x).max(axis=-1, keepdims=True)  # codes above the first
    assert seen.mean() > 0.95
    assert (np.abs(mean - x) <= MEAN * step)[seen].all()


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "squares"])
def test_an_eight_bit_moment_lies_between_its_two_codes(signed):
    tree = draw(0) if signed else squared(draw(0))
    tree = tree["layers"]["0"]
    tree = {name: tree[name] for name in ("query_D_KGH", "ffw_norm_D")}
    kept = EIGHT.keep(tree, seed_of(jnp.int32(5), 1), signed)
    again = EIGHT.read(kept, signed)
    most, power = (127, 4) if signed else (255, 8)
    for name, codes in kept["codes"].items():
        x, y = (np.asarray(t[name], np.float64) for t in (tree, again))
        if codes.dtype == jnp.float32:
            assert name == "ffw_norm_D"
            np.testing.assert_array_equal(x, y)
            continue
        code = np.abs(np.asarray(codes, np.float64))
        scale = np.abs(y) / np.where(code > 0, (code / most) ** power, 1)
        below, above = (((code + d).clip(0) / most) ** power * scale for d in (-1, 1))
        held = code > 0
        assert (np.abs(x) >= below * (1 - 1e-5))[held].all()
        assert (np.abs(x) <= above * (1 + 1e-5))[held].all()
        assert (np.sign(x) == np.sign(y))[held].all()


@pytest.mark.parametrize("name", ROUNDED)
def test_zero_stays_zero_and_the_largest_stays_the_largest(name):
    tree = {"down_F_D": jnp.zeros((40, 32)).at[3, 5].set(-7.0)}
    again = round_trip(ROUNDED[name], tree, True, 2)
    np.testing.assert_array_equal(again["down_F_D"], tree["down_F_D"])


def test_bfloat16_rounded_at_random_follows_a_mean_that_the_nearest_one_cannot():
    """A second moment that should fall by 0.1 % a step: after 693 steps it has halved."""
    start = jnp.full((64, 32), 1.0)

    def decay(keep):
        def body(index, x):
            return keep(0.999 * x.astype(jnp.float32), index)

        return float(jnp.mean(jax.lax.fori_loop(0, 693, body, start).astype(jnp.float32)))

    def at_random(x, index):
        tree = Bfloat16().keep({"down_F_D": x}, seed_of(index, 2), signed=False)
        return Bfloat16().read(tree, signed=False)["down_F_D"]

    assert decay(lambda x, _: x.astype(jnp.bfloat16).astype(jnp.float32)) == 1.0
    assert decay(at_random) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ROUNDED)
def test_a_state_of_fewer_bits_takes_fewer_bytes_and_keeps_its_structure(kind, name):
    optimizer = OPTIMIZERS[kind](moments=ROUNDED[name])
    params = draw(0)
    before, whole = (jax.eval_shape(o.init, params) for o in (optimizer, OPTIMIZERS[kind]()))
    _, after = jax.eval_shape(optimizer.update, params, before, params, jnp.float32(1e-3))
    assert after == before

    def stored(state):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return sum(x.size * x.dtype.itemsize for path, x in leaves if "rest" not in str(path))

    assert stored(before) < STORED[name] * stored(whole) * (1.03 if name == "bfloat16" else 1)


@pytest.mark.parametrize("name", ROUNDED)
def test_updates_differ_from_float32_by_noise_alone(name):
    """The first update is float32's to the bit: rounding begins with what is kept."""
    params, *gradients = ({"down_F_D": draw(n)["layers"]["0"]["down_F_D"]} for n in range(9))
    moved = {}
    for moments in (Float32(), ROUNDED[name]):
        optimizer = AdamW(b1=0.8, b2=0.99, moments=moments)
        update, state = jax.jit(optimizer.update), optimizer.init(params)
        moved[type(moments)] = []
        for gradient in gradients:
            changes, state = update(gradient, state, params, jnp.float32(1.0))
            moved[type(moments)].append(changes["down_F_D"])
    exact, rounded = (np.stack(x) for x in moved.values())
    np.testing.assert_array_equal(rounded[0], exact[0])
    difference = rounded[1:] - exact[1:]
    assert np.abs(difference).mean() < 0.05 * np.abs(exact[1:]).mean()
    assert abs(difference.mean()) < 0.01 * np.abs(exact[1:]).mean()


@pytest.mark.parametrize("layout", ["fsdp_tensor", pytest.param("expert", marks=pytest.mark.slow)])
def test_what_is_stored_does_not_depend_on_the_mesh_and_lies_where_the_kernel_lies(layout):
    place = {"fsdp_tensor": layouts.fsdp_tensor(2), "expert": layouts.expert(4)}[layout].on(
        jax.devices()
    )
    optimizer, layer = AdamW(moments=EIGHT), draw(0)["layers"]["0"]
    tree = {name: layer[name] for name in ("up_E_D_F", "ffw_norm_D")}
    one = jax.jit(optimizer.update)(tree, optimizer.init(tree), tree, 0.1)[1]
    placed = jax.device_put(tree, place.weights(tree))
    shardings = place.optimizer(jax.eval_shape(optimizer.init, placed))
    state = jax.jit(optimizer.init, out_shardings=shardings)(placed)
    update = jax.jit(optimizer.update, out_shardings=(place.weights(tree), shardings))
    program = update.lower(placed, state, placed, 0.1).compile()
    state = program(placed, state, placed, 0.1)[1]
    jax.tree.map(np.testing.assert_array_equal, state, one)
    for codes in (state.mu["codes"], state.nu["codes"]):
        same = jax.tree.map(lambda a, b: a.sharding == b.sharding, codes, placed)
        assert all(jax.tree.leaves(same))
    assert largest_gathered(program.as_text()) <= max(SIZES["V"], 2 * SIZES["E"] * SIZES["F"])


def largest_gathered(program: str) -> int:
    """Give the elements of the largest array that a program gathers; rows and columns may be."""
    sizes = [0]
    for line in program.splitlines():
        if " all-gather(" in line or " all-to-all(" in line:
            shape = line.split("[", 1)[1].split("]")[0]
            sizes.append(math.prod(int(n) for n in shape.split(",") if n))
    return max(sizes)


def test_the_same_count_rounds_alike_and_another_one_otherwise():
    tree = {"down_F_D": draw(0)["layers"]["0"]["down_F_D"]}
    first, again, later = (
        EIGHT.keep(tree, seed_of(jnp.int32(n), 1), True)["codes"] for n in (3, 3, 4)
    )
    np.testing.assert_array_equal(first["down_F_D"], again["down_F_D"])
    assert (first["down_F_D"] != later["down_F_D"]).any()


def test_a_side_that_is_no_size_is_refused():
    with pytest.raises(ValueError, match="min_side=0 must be positive"):
        EightBit(min_side=0)
