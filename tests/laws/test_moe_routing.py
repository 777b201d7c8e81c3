"""Laws of routers: who is chosen, what is counted, what padding and neighbours may change."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.core.layout import Layout
from research.models.architecture import Architecture, Moe
from research.models.moe.balancing import LossFree, QuantileBalance
from research.models.moe.capacity import Capacity
from research.models.moe.dense import Dense
from research.models.moe.dropless import Dropless
from research.models.moe.expert_choice import ExpertChoice
from research.models.moe.experts import MixtureOfExperts, statistics
from research.models.moe.hashed import Hashed
from research.models.moe.noisy_top_k import NoisyTopK
from research.models.moe.quantile_balanced import QuantileBalanced
from research.models.moe.routing import Tokens
from research.models.moe.sigmoid_top_k import SigmoidTopK
from research.models.moe.softmax_top_k import SoftmaxTopK

B, T, D, F, E, A, V = 3, 10, 6, 4, 8, 2, 13
PLACE = Layout().on(jax.devices()[:1])
FLOAT32 = 1e-5  # sums of a few dozen products of order 1, in another order

ROUTERS = [
    SoftmaxTopK(),
    SoftmaxTopK(normalise=False, groups=4, groups_kept=2),
    SigmoidTopK(scale=2.5, groups=4, groups_kept=2),
    NoisyTopK(),
    QuantileBalanced(),
    Hashed(),
    ExpertChoice(),
]
PAIRS = [(router, Dense()) for router in ROUTERS] + [
    (SoftmaxTopK(), Dropless()),
    (ExpertChoice(), Dropless()),
    (SoftmaxTopK(), Capacity(factor=0.6)),
]


def name(value) -> str:
    return f"{type(value).__name__}{'-grouped' if getattr(value, 'groups', 1) > 1 else ''}"


@functools.cache
def arch(router) -> Architecture:
    return Architecture(
        vocab_size=V,
        model_dim=D,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        ffw_dim=9,
        moe=Moe(num_experts=E, experts_per_token=A, expert_dim=F, router=router, shared_dim=3),
    )


@functools.cache
def layer(router):
    module = nnx.eval_shape(lambda: MixtureOfExperts(jax.random.key(0), arch(router), PLACE))
    graphdef, state = nnx.split(module)
    numbers = np.random.default_rng(0)
    return graphdef, jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * numbers.normal(size=leaf.shape), jnp.float32),
        nnx.to_pure_dict(state),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(router, dispatch, params, x_BTD, ids_BT, real_BT, key=None):
    tokens = Tokens(
        ids_M=ids_BT.reshape(-1), real_M=real_BT.reshape(-1), rows=x_BTD.shape[0], key=key
    )
    return nnx.merge(layer(router)[0], params)(x_BTD, tokens, dispatch)


def inputs(seed: int = 1):
    numbers = np.random.default_rng(seed)
    x_BTD = jnp.asarray(numbers.normal(size=(B, T, D)), jnp.float32)
    ids_BT = jnp.asarray(numbers.integers(0, V, (B, T)), jnp.int32)
    return x_BTD, ids_BT, jnp.ones((B, T), bool)


def seen(router, dispatch=None, given=None, key=None):
    out, statistics = forward(
        router, dispatch or Dense(), layer(router)[1], *(given or inputs()), key
    )
    return np.asarray(out), jax.device_get(statistics)


@pytest.mark.parametrize("router", ROUTERS, ids=name)
def test_loads_sum_to_tokens_times_active_experts(router):
    lengths = np.array([10, 4, 0])
    real_BT = jnp.arange(T) < lengths[:, None]
    for given in (inputs(), (*inputs()[:2], real_BT)):
        _, found = seen(router, given=given)
        tokens = np.asarray(given[2]).sum(1)
        assert np.array_equal(found.tokens_B, tokens)
        if isinstance(router, ExpertChoice):  # equal loads, rounded up
            assert np.ptp(found.load_BE.sum(0)) == 0
            assert found.load_BE.sum() == E * -(-tokens.sum() * A // E)
        else:
            assert np.array_equal(found.load_BE.sum(1), A * tokens)
            counted = [(found.chosen_BTA == e).sum((1, 2)) for e in range(E)]
            assert np.array_equal(found.load_BE, np.stack(counted, 1))
        assert not found.dropped_B.any()
        np.testing.assert_allclose(found.probability_BE.sum(1), tokens, rtol=FLOAT32)
        assert (found.chosen_BTA[~np.asarray(given[2])] == -1).all()
        assert (found.entropy_B <= tokens * np.log(E) + FLOAT32).all()


@pytest.mark.parametrize(
    ("router", "dispatch"), [pair for pair in PAIRS if not isinstance(pair[1], Capacity)], ids=name
)
def test_padding_changes_nothing(router, dispatch):
    """Rows are padded on the right, and with a row of padding alone; its contents never matter."""
    x_BTD, ids_BT, _ = inputs()
    real_BT = jnp.broadcast_to(jnp.arange(T) < 6, (B, T)).at[2].set(False)
    noise = 100.0 * jax.random.normal(jax.random.key(9), x_BTD.shape)
    soiled = jnp.where(real_BT[:, :, None], x_BTD, noise), jnp.where(real_BT, ids_BT, 5), real_BT
    out, found = seen(router, dispatch, soiled)
    bare_given = x_BTD[:2, :6], ids_BT[:2, :6], real_BT[:2, :6]
    alone, found_alone = seen(router, dispatch, bare_given)
    np.testing.assert_allclose(out[:2, :6], alone, rtol=FLOAT32, atol=FLOAT32)
    for field in ("load_BE", "probability_BE", "z_B", "entropy_B", "tokens_B", "balanced_BE"):
        padded, bare = getattr(found, field), getattr(found_alone, field)
        if bare is not None:
            np.testing.assert_allclose(padded[:2], bare, rtol=FLOAT32, atol=FLOAT32)
            assert not padded[2].any()


def test_the_experts_own_choice_needs_no_dense_product():
    out, found = seen(ExpertChoice(), Dropless())
    dense, found_dense = seen(ExpertChoice(), Dense())
    np.testing.assert_allclose(out, dense, rtol=FLOAT32, atol=FLOAT32)
    assert np.array_equal(found.load_BE, found_dense.load_BE)


def later_changed(router, dispatch) -> float:
    """How much the first tokens of each row change with those after them."""
    x_BTD, ids_BT, real_BT = inputs()
    other_x, other_ids, _ = inputs(seed=2)
    late = jnp.arange(T) >= 6
    mixed = jnp.where(late[:, None], 3.0 * other_x, x_BTD), jnp.where(late, other_ids, ids_BT)
    whole, _ = seen(router, dispatch, (x_BTD, ids_BT, real_BT))
    changed, _ = seen(router, dispatch, (*mixed, real_BT))
    # Row 0 alone: rows before a row are batch-mates, whose later tokens are another law's matter.
    return float(np.abs(whole - changed)[0, :6].max())


def mates_changed(router, dispatch) -> float:
    """How much a row changes with the others of its batch."""
    x_BTD, ids_BT, real_BT = inputs()
    other_x, other_ids, _ = inputs(seed=2)
    mate = jnp.arange(B)[:, None] < 2
    mixed = jnp.where(mate[:, :, None], 3.0 * other_x, x_BTD), jnp.where(mate, other_ids, ids_BT)
    whole, _ = seen(router, dispatch, (x_BTD, ids_BT, real_BT))
    changed, _ = seen(router, dispatch, (*mixed, real_BT))
    return float(np.abs(whole - changed)[2].max())


LAWS = {"causality": later_changed, "batch_invariance": mates_changed}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("router", "dispatch"), PAIRS, ids=name)
def test_what_is_declared_broken_breaks_and_nothing_else_does(law, router, dispatch):
    change = LAWS[law](router, dispatch)
    if law in (*router.breaks, *dispatch.breaks):
        assert change > 0.01
    else:
        assert change <= FLOAT32


@pytest.mark.parametrize("router", [r for r in ROUTERS if r.needs_logits], ids=name)
def test_the_gradient_reaches_the_router_through_output_and_statistics(router):
    params = layer(router)[1]

    @jax.jit
    def gradients(params):
        def by(pick):
            return jax.grad(lambda p: pick(*forward(router, Dense(), p, *inputs())))(params)

        return by(lambda out, _: jnp.sum(jnp.sin(out))), by(
            lambda _, found: jnp.sum(found.z_B) + jnp.sum(found.probability_BE * jnp.arange(E))
        )

    by_output, by_statistics = gradients(params)
    assert np.abs(by_output["router_D_E"]).max() > 1e-3
    assert np.abs(by_statistics["router_D_E"]).max() > 1e-3
    if router.needs_correction:
        assert not np.asarray(by_output["router_correction_E"]).any()


def test_noise_needs_a_key_and_another_key_is_other_noise():
    router, quiet = NoisyTopK(std=1.0), SoftmaxTopK()
    params = layer(router)[1]
    plain = np.asarray(forward(quiet, Dense(), params, *inputs())[0])
    assert np.array_equal(seen(router)[0], plain)
    first, second = (seen(router, key=jax.random.key(n))[0] for n in (1, 2))
    assert np.abs(first - plain).max() > 0.01
    assert np.abs(first - second).max() > 0.01


def test_hashing_looks_at_token_ids_alone():
    x_BTD, ids_BT, real_BT = inputs()
    found = seen(Hashed())[1]
    other = seen(Hashed(), given=(3.0 * x_BTD, ids_BT, real_BT))[1]
    assert np.array_equal(found.chosen_BTA, other.chosen_BTA)
    reseeded = Hashed(seed=1).route(jnp.zeros((V, E)), A, of_ids(jnp.arange(V)))
    unseeded = Hashed().route(jnp.zeros((V, E)), A, of_ids(jnp.arange(V)))
    assert not np.array_equal(reseeded.experts_MA, unseeded.experts_MA)
    many = Hashed().route(jnp.zeros((4096, E)), A, of_ids(jnp.arange(4096)))
    load_E = np.bincount(np.asarray(many.experts_MA).reshape(-1), minlength=E)
    assert np.abs(load_E / load_E.mean() - 1).max() < 0.1  # 3 standard deviations of 1024 draws
    assert (np.asarray(many.experts_MA[:, 0]) != np.asarray(many.experts_MA[:, 1])).all()


def of_ids(ids_M: jax.Array) -> Tokens:
    return Tokens(ids_M=ids_M, real_M=jnp.ones_like(ids_M, bool), rows=1)


@pytest.mark.parametrize("kind", [SoftmaxTopK, SigmoidTopK], ids=["softmax", "sigmoid"])
def test_only_experts_of_the_best_groups_are_chosen(kind):
    router = kind(groups=4, groups_kept=2)
    logits = jnp.asarray(np.random.default_rng(4).normal(size=(50, E)), jnp.float32)
    routing = router.route(logits, 3, of_ids(jnp.arange(50)))
    groups = np.asarray(routing.experts_MA) // (E // 4)
    assert max(len(set(row)) for row in groups) == 2
    free = kind().route(logits, 3, of_ids(jnp.arange(50)))
    assert not np.array_equal(routing.experts_MA, free.experts_MA)


def test_the_correction_chooses_and_never_weighs():
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(40, E)), jnp.float32)
    pushed = jnp.zeros(E).at[3].set(2.0)
    routing = SigmoidTopK(normalise=False).route(logits, A, of_ids(jnp.arange(40)), pushed)
    assert (np.asarray(routing.experts_MA) == 3).any(axis=1).all()
    expected = np.take_along_axis(
        np.asarray(jax.nn.sigmoid(logits)), np.asarray(routing.experts_MA), axis=1
    )
    np.testing.assert_allclose(routing.weights_MA, expected, rtol=FLOAT32)


# Balancing outside the gradient.


def unbalance(router, balancing, steps: int) -> list[float]:
    """Give max load / mean load of every step of routing new tokens and balancing by them."""
    params = layer(router)[1]
    skew = jnp.linspace(0.0, 2.0, E)

    @jax.jit
    def step(correction_E, key):
        x_MD = jax.random.normal(key, (2000, D))
        logits_ME = x_MD @ params["router_D_E"] + skew
        tokens = Tokens(ids_M=jnp.zeros(2000, int), real_M=jnp.ones(2000, bool), rows=4)
        routing = router.route(logits_ME, A, tokens, correction_E)
        found = statistics(logits_ME, routing, routing.kept_MA & False, tokens, A / E)
        load_E = jnp.sum(found.load_BE, axis=0)
        return balancing(correction_E, found.summed()), jnp.max(load_E) / jnp.mean(load_E)

    correction_E, ratios = jnp.zeros(E), []
    for key in jax.random.split(jax.random.key(0), steps):
        correction_E, ratio = step(correction_E, key)
        ratios.append(float(ratio))
    return ratios


def test_the_loss_free_correction_moves_the_load_towards_uniform():
    ratios = unbalance(SigmoidTopK(), LossFree(rate=0.01), 120)
    assert ratios[0] > 2.0
    assert np.mean(ratios[-10:]) < 1.2  # the largest of 8 loads of 500 draws is 1.07 by chance
    assert ratios[0] > ratios[10] > ratios[40]


def test_the_quantile_correction_balances_the_load_in_a_few_steps():
    ratios = unbalance(QuantileBalanced(), QuantileBalance(), 8)
    assert ratios[0] > 2.0
    assert max(ratios[4:]) < 1.3


def test_at_equal_loads_the_loss_free_correction_stays():
    _, found = seen(ExpertChoice())
    correction_E = jnp.arange(E, dtype=jnp.float32)
    assert np.array_equal(LossFree()(correction_E, found), correction_E)


def test_the_quantile_correction_needs_the_router_that_solves_for_it():
    _, found = seen(SigmoidTopK(scale=2.5, groups=4, groups_kept=2))
    with pytest.raises(ValueError, match="QuantileBalanced"):
        QuantileBalance()(jnp.zeros(E), found)


# Refusals.


@pytest.mark.parametrize(
    ("router", "experts", "active", "words"),
    [
        (SoftmaxTopK(groups=3, groups_kept=1), 8, 2, ("groups=3", "num_experts=8")),
        (SigmoidTopK(groups=4, groups_kept=1), 8, 3, ("experts_per_token=3", "2 of 8")),
        (QuantileBalanced(), 4, 4, ("experts_per_token=4", "SoftmaxTopK")),
    ],
    ids=["groups", "open", "cutoff"],
)
def test_sizes_that_a_router_cannot_serve_are_refused_when_they_are_written_down(
    router, experts, active, words
):
    with pytest.raises(ValueError, match=type(router).__name__) as error:
        Moe(num_experts=experts, experts_per_token=active, expert_dim=F, router=router)
    assert all(word in str(error.value) for word in words)


def test_more_active_experts_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"experts_per_token=9 .*1\.\.8"):
        Moe(num_experts=8, experts_per_token=9, expert_dim=F, router=SoftmaxTopK())
