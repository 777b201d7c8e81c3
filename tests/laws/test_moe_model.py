"""A mixture of experts inside the transformer: scan, cache, adapters, balance losses."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.layout import Layout
from research.core.records import Batch, Report, RouterStatistics, Total
from research.models.architecture import Architecture, Moe
from research.models.compute import Compute
from research.models.moe.capacity import Capacity
from research.models.moe.dense import Dense
from research.models.moe.expert_choice import ExpertChoice
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.models.transformer import Transformer
from research.objectives.balance import (
    Balanced,
    HuggingFaceBalance,
    RouterZ,
    SequenceBalance,
    SwitchBalance,
)
from research.objectives.cross_entropy import CrossEntropy
from research.tuning.lora import Lora

B, T, V, E, A, L = 8, 7, 23, 4, 2, 3
ARCH = Architecture(
    vocab_size=V,
    model_dim=12,
    num_layers=L,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffw_dim=10,
    moe=Moe(
        num_experts=E,
        experts_per_token=A,
        expert_dim=5,
        router=SoftmaxTopK(),
        shared_dim=3,
        dense_layers=(0,),
    ),
)
ONE = Layout().on(jax.devices()[:1])
FLOAT32 = 2e-5  # logits of order 1 after three layers, products in another order
LORA = Lora(rank=3, alpha=6.0, targets=("up_E_D_F", "router_D_E"))


@functools.cache
def model(dispatch=None, router=None) -> Transformer:
    arch = ARCH
    if router is not None:
        assert arch.moe is not None
        arch = dataclasses.replace(arch, moe=dataclasses.replace(arch.moe, router=router))
    return Transformer(arch, ONE, Compute(dispatch=dispatch))


def noise(tree, seed: int, scale: float = 0.3):
    numbers = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * numbers.normal(size=leaf.shape), jnp.float32), tree
    )


@functools.cache
def params():
    return noise(model().abstract(), 0)


@functools.cache
def factors():
    return noise(jax.eval_shape(LORA.split, params(), jax.random.key(0))[0], 1)


def batch(padding: int = 2) -> Batch:
    """Make rows whose last `padding` places are empty, in every second row."""
    numbers = np.random.default_rng(3)
    tokens_BT = numbers.integers(0, V, (B, T)).astype(np.int32)
    lengths_B1 = np.where(np.arange(B) % 2, T, T - padding)[:, None]
    segments_BT = (np.arange(T) < lengths_B1).astype(np.int32)
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=np.roll(tokens_BT, -1, 1),
        weights_BT=((np.arange(T) < lengths_B1 - 1) * 1.0).astype(np.float32),
        positions_BT=np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
        segments_BT=segments_BT,
        ids_BZ=np.arange(B, dtype=np.int32)[:, None],
    )


@functools.partial(jax.jit, static_argnums=0)
def learn(model: Transformer, trained, frozen, batch: Batch):
    """Give loss, statistics and the gradients of the factors."""

    def loss(trained):
        output = model.apply(LORA.join(trained, frozen), batch)
        mask = batch.segments_BT[..., None] > 0
        return jnp.sum(jnp.where(mask, jnp.sin(output.logits()), 0)), output.router

    return jax.value_and_grad(loss, has_aux=True)(trained)


def assert_close(left, right, tolerance=FLOAT32):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


def test_gradients_through_the_scan_equal_those_of_the_dense_reference():
    ours = learn(model(), factors(), params(), batch())
    reference = learn(model(dispatch=Dense()), factors(), params(), batch())
    assert_close(ours, reference)
    for name in ("up_E_D_F", "router_D_E"):
        gradient = ours[1]["layers"]["1"]["ffw"][name]
        assert all(np.abs(factor).max() > 0 for factor in gradient.values())


def test_statistics_leave_through_the_output_stack_by_stack():
    (_, router), _ = learn(model(), factors(), params(), batch())
    assert list(router) == ["1"]  # layer 0 is dense
    seen = router["1"]
    tokens_B = batch().segments_BT.sum(1)
    assert seen.load_BE.shape == (L - 1, B, E)
    assert np.array_equal(seen.load_BE.sum(-1), np.broadcast_to(A * tokens_B, (L - 1, B)))
    assert seen.chosen_BTA.shape == (L - 1, B, T, A)


def test_cached_decoding_equals_the_full_forward():
    rows = batch(padding=0)
    full = np.asarray(jax.jit(lambda p: model().apply(p, rows).logits())(params()))
    first = 3
    prompts = jax.tree.map(lambda x: x[:, :first], rows)
    prompts = dataclasses.replace(prompts, ids_BZ=rows.ids_BZ)
    output, cache = jax.jit(model().prefill, static_argnums=2)(params(), prompts, T)
    assert_close(output.logits(), full[:, :first])
    extend = jax.jit(model().extend)
    for t in range(first, T):
        fed = [getattr(rows, name)[:, t : t + 1] for name in ("tokens_BT", "positions_BT")]
        output, cache = extend(params(), cache, *fed, np.ones((B, 1), np.int32))
        assert_close(output.logits()[:, 0], full[:, t])


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (model(dispatch=Capacity()), ("Capacity", "batch_invariance")),
        (model(router=ExpertChoice()), ("ExpertChoice", "causality")),
    ],
    ids=["dispatch", "router"],
)
def test_scoring_and_decoding_refuse_what_breaks_their_laws(refused, words):
    with pytest.raises(ValueError, match="scor") as error:
        refused.require_laws("causality", "batch_invariance")
    assert all(word in str(error.value) for word in words)
    model().require_laws("causality", "batch_invariance")


# Balance losses.

LOSSES = [SwitchBalance(), HuggingFaceBalance(), SequenceBalance()]


def statistics(load_LBE, probability_LBE=None, tokens: float = 12.0) -> RouterStatistics:
    load_LBE = jnp.asarray(load_LBE, jnp.float32)
    probability_LBE = load_LBE / A if probability_LBE is None else probability_LBE
    each = jnp.full(load_LBE.shape[:2], tokens)
    return RouterStatistics(
        load_BE=load_LBE,
        probability_BE=probability_LBE,
        z_B=each,
        entropy_B=each,
        dropped_B=0 * each,
        tokens_B=each,
    )


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_a_balance_loss_is_least_at_uniform_load(loss):
    """Over routers whose load follows their probability, as it does where tokens choose by it."""
    layers, rows, tokens = 2, 3, 12.0
    even = np.full((layers, rows, E), A * tokens / E)
    least = float(loss(statistics(even)))
    known = {"balance_switch": layers, "balance_hugging_face": A, "balance_sequence": layers}
    np.testing.assert_allclose(least, known[loss.name], rtol=1e-6)
    numbers = np.random.default_rng(8)
    for _ in range(20):
        shares = numbers.dirichlet(np.ones(E))
        assert float(loss(statistics(np.broadcast_to(A * tokens * shares, even.shape)))) > least
    collapsed = np.zeros_like(even)
    collapsed[..., 0] = A * tokens
    np.testing.assert_allclose(loss(statistics(collapsed)), least * E, rtol=1e-6)


def test_descending_a_balance_loss_evens_the_router_out():
    logits = jnp.asarray([2.0, 0.5, 0.0, -1.0])
    load = jnp.broadcast_to(A * 12.0 * jax.nn.softmax(logits), (1, 1, E))

    def value(logits):
        probability = jnp.broadcast_to(12.0 * jax.nn.softmax(logits), (1, 1, E))
        return SwitchBalance()(statistics(load, probability))

    step = -jax.jit(jax.grad(value))(logits)
    assert step[0] < 0  # the most loaded expert becomes less likely, the least loaded more
    assert step[3] > 0


def test_rows_of_padding_count_for_nothing():
    numbers = np.random.default_rng(2)
    found = statistics(numbers.uniform(1, 5, (2, 3, E)))
    longer = jax.tree.map(
        lambda x: jnp.concatenate([x, jnp.zeros((x.shape[0], 1, *x.shape[2:]))], axis=1), found
    )
    for loss in (*LOSSES, RouterZ()):
        np.testing.assert_allclose(loss(longer), loss(found), rtol=1e-6)


def test_the_balanced_objective_adds_its_losses_to_the_mean():
    inner, rows, reference = CrossEntropy(), batch(), model(dispatch=Dense())
    objective = Balanced(objective=inner, losses=(SwitchBalance(weight=0.5), RouterZ(weight=0.25)))

    @jax.jit
    def both(params):
        return inner(reference, params, rows), objective(reference, params, rows)

    (plain, reported), (total, report) = both(params())
    assert total.count == plain.count
    values = {name: report.totals[name].mean for name in ("balance_switch", "router_z")}
    expected = plain.mean + 0.5 * values["balance_switch"] + 0.25 * values["router_z"]
    np.testing.assert_allclose(total.mean, expected, rtol=1e-6)
    assert report.totals.keys() == reported.totals.keys() | values.keys()
    assert_close(report.rows, reported.rows)
    assert_close(report.router, reported.router)
    assert values["balance_switch"] > L - 1


def test_the_balanced_objective_runs_the_model_once():
    objective = Balanced(objective=CrossEntropy(), losses=(SwitchBalance(),))
    plain, ours = (
        jax.jit(lambda p, o=o: o(model(), p, batch())[0].sum).lower(params()).as_text()
        for o in (CrossEntropy(), objective)
    )
    assert plain.count("dot_general") == ours.count("dot_general")


def nothing(model, params, batch) -> tuple[Total, Report]:
    """Minimise nothing, over five tokens."""
    del params, model, batch
    return Total(sum=jnp.float32(0), count=jnp.float32(5)), Report(totals={}, rows={})


def test_gradients_of_the_balance_reach_the_router_and_no_expert_of_the_last_layer():
    objective = Balanced(objective=nothing, losses=(HuggingFaceBalance(weight=1.0),))
    stack = params()["layers"]["1"]

    def balance(ffw):
        layers = params()["layers"] | {"1": stack | {"ffw": stack["ffw"] | ffw}}
        return objective(model(dispatch=Dense()), params() | {"layers": layers}, batch())[0].sum

    names = ("router_D_E", "up_E_D_F")
    gradient = jax.jit(jax.grad(balance))({name: stack["ffw"][name] for name in names})
    assert np.abs(gradient["router_D_E"]).max() > 1e-3
    assert np.abs(gradient["up_E_D_F"][0]).max() > 1e-5
    assert not np.asarray(gradient["up_E_D_F"][-1]).any()


def test_a_dense_model_has_nothing_to_balance():
    dense = Transformer(dataclasses.replace(ARCH, moe=None), ONE, Compute())
    with pytest.raises(ValueError, match="no router"):
        jax.eval_shape(
            lambda p: Balanced(objective=CrossEntropy(), losses=(RouterZ(),))(dense, p, batch()),
            dense.abstract(),
        )
    with pytest.raises(ValueError, match="repeat"):
        Balanced(objective=CrossEntropy(), losses=(RouterZ(), RouterZ(weight=0.1)))
    with pytest.raises(ValueError, match="empty"):
        Balanced(objective=CrossEntropy(), losses=())
