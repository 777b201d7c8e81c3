"""Laws of optimisers: a kernel is the matrix its name declares, whatever it is stacked in."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.axes import shape_of
from research.core.layout import Layout
from research.optimizers.adafactor import Adafactor
from research.optimizers.adamw import AdamW
from research.optimizers.clipping import clip, global_norm
from research.optimizers.lion import Lion
from research.optimizers.moments import Bfloat16, Float32
from research.optimizers.muon import Muon
from research.optimizers.sgd import Sgd

SIZES = {"V": 17, "D": 10, "K": 2, "G": 3, "H": 4, "F": 14, "E": 5, "R": 6}
LAYERS = 3
RATE = 0.05
SAME_ARITHMETIC = 1e-6  # the same sums in another order, float32
NEWTON_SCHULZ = 2e-5  # five products of matrices amplify the order of float32 sums

OPTIMIZERS = [
    AdamW(b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.1),
    Sgd(weight_decay=0.1),
    Sgd(momentum=0.7, nesterov=True),
    Adafactor(min_factored=4, weight_decay=0.1),
    Adafactor(min_factored=4, clip_rms=0.3, min_scale=None),
    Lion(weight_decay=0.1),
    Muon(weight_decay=0.1, iterations=2, rest=AdamW(b1=0.8, weight_decay=0.2)),
]
LAYER = ("query_D_KGH", "out_KGH_D", "query_bias_KGH", "up_E_D_F", "norm_D")


def draw(seed: int, stack: tuple[int, ...] = (LAYERS,)) -> dict:
    """Make a small tree with every kind of name; `stack` are the leading axes of its layers."""
    numbers = np.random.default_rng(seed)

    def leaf(name: str, lead: tuple[int, ...] = ()) -> jax.Array:
        return jnp.asarray(numbers.normal(size=(*lead, *shape_of(name, SIZES))), jnp.float32)

    layer = {name: leaf(name, stack) for name in LAYER}
    return {"embed_V_D": leaf("embed_V_D"), "layers": {"0": layer}}


@jax.jit
def start(optimizer, params):
    return optimizer.init(params)


@jax.jit
def step(optimizer, params, state, gradient):
    updates, state = optimizer.update(gradient, state, params, RATE)
    return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates), state


def walk(optimizer, params, gradients):
    """Run some updates and give the parameters and the state after them."""
    state = start(optimizer, params)
    for gradient in gradients:
        params, state = step(optimizer, params, state, gradient)
    return params, state


def tolerance(optimizer) -> float:
    return NEWTON_SCHULZ if isinstance(optimizer, Muon) else SAME_ARITHMETIC


def close(left, right, bound: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=bound, atol=bound), left, right)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_stack_of_layers_moves_as_each_layer_alone(optimizer):
    params, gradients = draw(0), [draw(1), draw(2)]

    def layer(tree, index):
        return tree | {"layers": jax.tree.map(lambda leaf: leaf[index], tree["layers"])}

    together, _ = walk(optimizer, params, gradients)
    for index in range(LAYERS):
        alone, _ = walk(optimizer, layer(params, index), [layer(g, index) for g in gradients])
        close(alone, layer(together, index), tolerance(optimizer))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_kernel_moves_as_the_matrix_that_its_name_declares(optimizer):
    views = {"query_D_KGH": ("x_D_F", 10, 24), "out_KGH_D": ("x_F_D", 24, 10)}
    trees = [draw(seed)["layers"]["0"] for seed in range(3)]
    for name, (flat_name, *flat_shape) in views.items():
        shaped = [{"layers": {name: tree[name][0]}} for tree in trees]
        flat = [{"layers": {flat_name: tree[name][0].reshape(flat_shape)}} for tree in trees]
        moved, _ = walk(optimizer, shaped[0], shaped[1:])
        moved_flat, _ = walk(optimizer, flat[0], flat[1:])
        flattened = moved["layers"][name].reshape(flat_shape)
        close(flattened, moved_flat["layers"][flat_name], tolerance(optimizer))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_experts_move_each_as_its_own_matrix(optimizer):
    trees = [draw(seed)["layers"]["0"]["up_E_D_F"][0] for seed in range(3)]
    banked = [{"layers": {"up_E_D_F": tree}} for tree in trees]
    moved, _ = walk(optimizer, banked[0], banked[1:])
    for expert in range(SIZES["E"]):
        alone = [{"layers": {"up_D_F": tree[expert]}} for tree in trees]
        moved_alone, _ = walk(optimizer, alone[0], alone[1:])
        close(
            moved["layers"]["up_E_D_F"][expert],
            moved_alone["layers"]["up_D_F"],
            tolerance(optimizer),
        )


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_state_and_updates_are_float32_even_for_bfloat16_parameters(optimizer):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), draw(0))
    state = jax.eval_shape(optimizer.init, half)
    updates, after = jax.eval_shape(optimizer.update, half, state, half, jnp.float32(RATE))
    for leaf in jax.tree.leaves((state, updates)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    assert after == state
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, half)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_zero_gradient_moves_parameters_by_decay_only(optimizer):
    params, still = draw(0), jax.tree.map(jnp.zeros_like, draw(0))
    moved, state = walk(optimizer, params, [still, still])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((moved, state)))
    decays = {
        "query_D_KGH": optimizer.weight_decay,
        "embed_V_D": (optimizer.rest if isinstance(optimizer, Muon) else optimizer).weight_decay,
        "query_bias_KGH": 0.0,
    }
    leaves = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(moved)}
    starts = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name, decay in decays.items():
        close(leaves[name], starts[name] * (1 - RATE * decay) ** 2, SAME_ARITHMETIC)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_every_moment_has_the_axes_of_the_last_name_on_its_path(optimizer):
    state = jax.eval_shape(optimizer.init, draw(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if leaf.ndim and not jax.tree_util.keystr(path).endswith(".ns_coeffs"):
            expected = shape_of(names[-1], SIZES)
            assert leaf.shape[leaf.ndim - len(expected) :] == expected, path


@pytest.mark.parametrize("optimizer", [OPTIMIZERS[3], OPTIMIZERS[-1]], ids=str)
def test_two_devices_move_parameters_as_one_and_keep_moments_split(optimizer):
    split = (("D", ("fsdp",)),)
    place = Layout(axes=(("fsdp", 2),), weights=split, activations=()).on(jax.devices()[:2])
    params, gradient = (jax.device_put(draw(n), place.weights(draw(n))) for n in (0, 1))
    shardings = place.weights(jax.eval_shape(optimizer.init, params))
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    assert any("fsdp" in leaf.sharding.spec for leaf in jax.tree.leaves(state))
    moved, _ = step(optimizer, params, state, gradient)
    alone, _ = walk(optimizer, draw(0), [draw(1)])
    close(moved, alone, tolerance(optimizer))


VARIED = [
    (AdamW(weight_decay=0.1), ("b1", "b2", "eps", "weight_decay", "moments")),
    (Sgd(momentum=0.5, weight_decay=0.1), ("momentum", "nesterov", "weight_decay")),
    (
        Adafactor(min_factored=4, weight_decay=0.1, clip_rms=0.1, min_scale=2.0, eps=1e-4),
        ("decay", "eps", "clip_rms", "min_scale", "min_factored", "weight_decay"),
    ),
    (Lion(weight_decay=0.1), ("b1", "b2", "weight_decay", "moments")),
    (
        Muon(weight_decay=0.1, iterations=1),
        ("beta", "nesterov", "iterations", "rms", "weight_decay", "moments", "rest"),
    ),
]
OTHER = {bool: lambda v: not v, int: lambda v: v * 3, float: lambda v: v * 0.7}
OTHER[Float32] = lambda v: Bfloat16()
OTHER[AdamW] = lambda v: dataclasses.replace(v, weight_decay=0.3)


@pytest.mark.parametrize(("optimizer", "fields"), VARIED, ids=lambda v: type(v).__name__)
def test_no_field_is_dead(optimizer, fields):
    assert set(fields) == {field.name for field in dataclasses.fields(optimizer)}
    gradients = [draw(seed) for seed in (1, 2)]
    reference, _ = walk(optimizer, draw(0), gradients)
    for name in fields:
        value = getattr(optimizer, name)
        other = dataclasses.replace(optimizer, **{name: OTHER[type(value)](value)})
        moved, _ = walk(other, draw(0), gradients)
        differ = jax.tree.map(lambda a, b: bool((a != b).any()), reference, moved)
        assert any(jax.tree.leaves(differ)), name


def test_optimisers_that_differ_in_numbers_share_one_compilation():
    params = draw(0)
    walk(OPTIMIZERS[-1], params, [params])
    compiled = step._cache_size()
    walk(Muon(weight_decay=0.4, iterations=2, rms=0.3, rest=AdamW(b1=0.7)), params, [params])
    assert step._cache_size() == compiled


def test_a_field_out_of_range_is_an_error_that_says_its_value():
    with pytest.raises(ValueError, match=r"b1=1\.5"):
        AdamW(b1=1.5)
    with pytest.raises(ValueError, match="set momentum"):
        Sgd(nesterov=True)
    with pytest.raises(ValueError, match="clip_rms=0"):
        Adafactor(clip_rms=0.0)


def test_clipping_bounds_the_global_norm_and_keeps_the_direction():
    gradients = draw(0)
    norm = float(global_norm(gradients))
    squares = sum(
        float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(gradients)
    )
    assert norm == pytest.approx(squares**0.5, rel=SAME_ARITHMETIC)
    clipped, before = clip(gradients, norm / 3)
    assert float(before) == norm
    close(clipped, jax.tree.map(lambda leaf: leaf / 3, gradients), SAME_ARITHMETIC)


def test_gradients_within_the_bound_are_not_touched():
    gradients = draw(0)
    for bound in (None, 1e6):
        clipped, _ = clip(gradients, bound)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), clipped, gradients)
        assert all(jax.tree.leaves(same))
