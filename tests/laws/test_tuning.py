"""Laws of tuning: identity at step 0, merged = unmerged, and nothing trained but what was asked."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from research.core.axes import axes_of, shape_of
from research.core.layout import Layout
from research.core.records import Batch
from research.core.weights import contract, take
from research.experiment import Update
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Constant
from research.train.step import compile_step, initialise, structure_of
from research.tuning.full import Full
from research.tuning.lora import Lora, LowRank, Override, factor_names

SIZES = {"D": 12, "K": 2, "G": 3, "H": 4, "F": 20, "V": 29, "E": 5, "R": 7, "B": 3, "T": 8}
ARCH = Architecture(
    vocab_size=29, model_dim=12, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=4, ffw_dim=20
)
PLACE = Layout().on(jax.devices()[:1])
LINEAR = ("query_D_KGH", "key_D_KH", "value_D_KH", "out_KGH_D", "gate_D_F", "up_D_F", "down_F_D")
FLOAT32 = 2e-5  # logits of some units after two layers, products in another order
ONE_PRODUCT = 1e-5  # a single contraction of a few dozen terms of size 1


@functools.cache
def model(tied: bool = False) -> Transformer:
    return Transformer(dataclasses.replace(ARCH, tied_head=tied), PLACE, Compute())


@functools.cache
def params(tied: bool = False):
    """Draw weights without compiling an initialiser."""
    numbers = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * numbers.normal(size=leaf.shape), leaf.dtype),
        model(tied).abstract(),
    )


def batch() -> Batch:
    tokens = jax.random.randint(jax.random.key(1), (3, 8), 0, 29)
    return Batch(
        tokens_BT=tokens,
        targets_BT=jnp.roll(tokens, -1, 1),
        weights_BT=jnp.ones((3, 8)),
        positions_BT=jnp.tile(jnp.arange(8), (3, 1)),
        segments_BT=jnp.ones((3, 8), jnp.int32),
        ids_BZ=jnp.arange(3)[:, None],
    )


@functools.partial(jax.jit, static_argnums=0)
def logits(tied: bool, params):
    return model(tied).apply(params, batch()).logits()


def split(tuning, params):
    return jax.jit(tuning.split)(params, jax.random.key(3))


def stir(trainable):
    """Replace every factor by noise: adapters of a trained model."""
    numbers = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * numbers.normal(size=leaf.shape), leaf.dtype), trainable
    )


def factors(tuning, params):
    """Give the shapes of a tuning's factors, filled with noise: nothing is compiled."""
    trainable, _ = jax.eval_shape(tuning.split, params, jax.random.key(3))
    return stir(trainable)


EVERYTHING = ("all_linear", "embed_V_D", "head_D_V")
TUNINGS = [
    (False, Lora(rank=5, alpha=10.0, targets=("key_D_KH", "embed_V_D", "head_D_V"))),
    (True, Lora(rank=5, alpha=10.0, rslora=True, targets=("out_KGH_D", "embed_V_D"))),
    (
        False,
        Lora(
            rank=5,
            targets=("attention.query_D_KGH", "layers.0.ffw.up_D_F", "value_D_KH"),
            overrides=(Override(target="query_D_KGH", rank=3, alpha=2.0),),
        ),
    ),
    (
        False,
        Lora(rank=5, targets=("key_D_KH",), trained=("value_D_KH", "ffw_norm_D", "head_D_V")),
    ),
    (False, Full()),
    (False, Full(frozen=("key_D_KH", "embed_V_D"))),
]


@pytest.mark.parametrize(("tied", "tuning"), TUNINGS, ids=str)
def test_the_output_at_step_zero_is_the_base_bit_for_bit(tied, tuning):
    trainable, frozen = split(tuning, params(tied))
    joined = logits(tied, tuning.join(trainable, frozen))
    assert np.array_equal(np.asarray(joined), np.asarray(logits(tied, params(tied))))


@pytest.mark.parametrize(
    ("tied", "tuning"), [*TUNINGS[1:], (False, Lora(rank=5, targets=EVERYTHING))], ids=str
)
def test_merged_equals_unmerged(tied, tuning):
    trained, frozen = factors(tuning, params(tied)), split(tuning, params(tied))[1]
    merged = jax.jit(tuning.merge)(trained, frozen)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, params(tied))
    unmerged = logits(tied, tuning.join(trained, frozen))
    np.testing.assert_allclose(logits(tied, merged), unmerged, rtol=FLOAT32, atol=FLOAT32)
    assert np.abs(np.asarray(unmerged - logits(tied, params(tied)))).max() > 0.1


def test_gradients_exist_for_the_factors_alone_and_equal_those_through_merged_weights():
    tied, tuning = TUNINGS[1]
    trained = factors(tuning, params(tied))

    def loss(assemble, trained):
        return jnp.square(
            model(tied).apply(assemble(trained, params(tied)), batch()).logits()
        ).sum()

    by_factors = jax.jit(jax.grad(functools.partial(loss, tuning.join)))(trained)
    by_weights = jax.jit(jax.grad(functools.partial(loss, tuning.merge)))(trained)
    assert jax.tree.structure(by_factors) == jax.tree.structure(trained)
    assert all(axes_of(path[-1]).letters.count("R") for path in flatten_dict(by_factors))
    for left, right in zip(jax.tree.leaves(by_factors), jax.tree.leaves(by_weights), strict=True):
        scale = float(jnp.abs(right).max())
        assert scale > 0
        np.testing.assert_allclose(left, right, rtol=0, atol=FLOAT32 * scale)


def test_full_trains_all_but_what_is_named_frozen():
    tuning = Full(frozen=("key_D_KH", "embed_V_D"))
    trained, frozen = (set(flatten_dict(tree)) for tree in split(tuning, params(False)))
    assert {path[-1] for path in frozen} == {"key_D_KH", "embed_V_D"}
    assert trained | frozen == set(flatten_dict(params(False)))
    assert not trained & frozen
    with pytest.raises(ValueError, match=r"frozen=.*router_D_E.*matches no parameter"):
        Full(frozen=("router_D_E",)).split(params(False), jax.random.key(0))


def test_frozen_bits_never_change_while_every_factor_does():
    tuning = Lora(rank=5, alpha=10.0, dropout=0.1, targets=("up_D_F", "head_D_V"))
    update = Update(
        tuning=tuning,
        objective=CrossEntropy(),
        optimizer=AdamW(weight_decay=0.1),
        schedule=Constant(peak_lr=0.01),
        max_gradient_norm=1.0,
        micro_batches=1,
    )
    given = jax.tree.map(np.asarray, params())
    copies = jax.tree.map(jnp.asarray, given)
    learner, frozen = initialise(PLACE, update, copies, 3)
    before = jax.tree.map(np.asarray, learner.trainable)
    step = compile_step(model(), PLACE, structure_of(learner))
    span = (jnp.int32(0), jnp.int32(2))
    for _ in range(2):
        learner, _ = step(learner, frozen, batch(), update, span, jax.random.key(7))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, given, frozen)))
    same = jax.tree.map(np.array_equal, before, learner.trainable)
    assert not any(jax.tree.leaves(same))


def test_all_linear_is_every_kernel_of_the_layers_and_nothing_else():
    trainable, frozen = jax.eval_shape(Lora(rank=5).split, params(), jax.random.key(3))
    assert trainable.keys() == {"layers"}
    assert {path[-2] for path in flatten_dict(trainable)} == set(LINEAR)
    assert jax.tree.map(jnp.shape, frozen) == jax.tree.map(jnp.shape, params())


def test_factors_have_the_axes_that_their_names_declare():
    tuning = Lora(rank=7, targets=EVERYTHING)
    trainable, _ = jax.eval_shape(tuning.split, model().abstract(), jax.random.key(3))
    for path, leaf in flatten_dict(trainable).items():
        stack = (ARCH.num_layers,) if path[0] == "layers" else ()
        assert leaf.shape == (*stack, *shape_of(path[-1], SIZES)), path
        assert leaf.dtype == jnp.float32
    query = trainable["layers"]["0"]["attention"]["query_D_KGH"]
    assert query.keys() == {"a_D_R", "b_R_KGH"}


def test_a_split_under_jit_puts_every_factor_into_its_sharding():
    layout = Layout(axes=(("fsdp", 1),), weights=(("D", ("fsdp",)),), activations=())
    place, tuning = layout.on(jax.devices()[:1]), Lora(rank=5, targets=("query_D_KGH",))
    shardings = place.weights(jax.eval_shape(tuning.split, params(), jax.random.key(3)))
    trainable, _ = jax.jit(tuning.split, out_shardings=shardings)(params(), jax.random.key(3))
    eager, _ = split(tuning, params())
    for left, right in zip(jax.tree.leaves(trainable), jax.tree.leaves(eager), strict=True):
        assert left.sharding.mesh == place.mesh
        np.testing.assert_array_equal(left, right)


def test_factors_depend_on_their_path_and_not_on_what_else_is_tuned():
    alone, _ = split(Lora(rank=5, targets=("up_D_F",)), params())
    among, _ = split(Lora(rank=5, targets=("gate_D_F", "up_D_F")), params())
    ffw = among["layers"]["0"]["ffw"]
    for name, leaf in alone["layers"]["0"]["ffw"]["up_D_F"].items():
        np.testing.assert_array_equal(leaf, ffw["up_D_F"][name])
    assert not np.array_equal(ffw["up_D_F"]["a_D_R"], ffw["gate_D_F"]["a_D_R"])
    bound = SIZES["D"] ** -0.5
    spread = np.abs(np.asarray(ffw["up_D_F"]["a_D_R"]))
    assert 0.9 * bound < spread.max() <= bound


def test_a_target_that_matches_nothing_is_an_error_that_lists_the_names():
    for wrong in ("query_D_KG", "attention_norm_D", "q_proj"):
        with pytest.raises(ValueError, match=rf"'{wrong}'\].*'query_D_KGH'"):
            Lora(rank=5, targets=(wrong,)).split(params(), jax.random.key(3))
    with pytest.raises(ValueError, match="Did you mean query_D_KGH"):
        Lora(rank=5, targets=("query_D_KG",)).split(params(), jax.random.key(3))
    untargeted = (Override(target="up_D_F", rank=2),)
    with pytest.raises(ValueError, match=r"overrides=\['up_D_F'\]"):
        Lora(rank=5, targets=("gate_D_F",), overrides=untargeted).split(params(), jax.random.key(3))


def test_a_field_out_of_range_is_an_error_that_says_its_value():
    with pytest.raises(ValueError, match=r"\[0\] must be positive.*alpha=-1\.0.*dropout=1\.0"):
        Lora(rank=0, alpha=-1.0, dropout=1.0)


@pytest.mark.parametrize(
    ("rslora", "rank", "alpha", "scale"),
    [(False, 4, 10.0, 2.5), (True, 4, 10.0, 5.0), (False, 8, 2.0, 0.25), (True, 9, 2.0, 2 / 3)],
)
def test_the_scale_is_alpha_over_rank_or_over_its_root(rslora, rank, alpha, scale):
    tuning = Lora(
        rank=6,
        alpha=7.0,
        rslora=rslora,
        targets=("up_D_F", "gate_D_F"),
        overrides=(Override(target="up_D_F", rank=rank, alpha=alpha),),
    )
    path = ("layers", "0", "ffw", "up_D_F")
    trained = factors(tuning, params())
    held = trained["layers"]["0"]["ffw"]["up_D_F"]
    assert tuning.rank_and_alpha(path) == (rank, alpha)
    assert tuning.scale(rank, alpha) == pytest.approx(scale)
    merged = jax.jit(lambda t, f: t.merge(f, params()))(tuning, trained)["layers"]["0"]["ffw"][
        "up_D_F"
    ]
    delta = scale * np.einsum("ldr,lrf->ldf", held["a_D_R"], held["b_R_F"])
    base = params()["layers"]["0"]["ffw"]["up_D_F"]
    np.testing.assert_allclose(merged - base, delta, rtol=0, atol=ONE_PRODUCT)
    assert tuning.rank_and_alpha(("layers", "0", "ffw", "gate_D_F")) == (6, 7.0)


def test_no_field_is_dead():
    reference = Lora(rank=4, alpha=8.0, dropout=0.3, targets=("up_D_F", "gate_D_F"))
    changes = {
        "rank": 5,
        "alpha": 9.0,
        "rslora": True,
        "dropout": 0.4,
        "targets": ("up_D_F",),
        "overrides": (Override(target="up_D_F", rank=2),),
        "trained": ("down_F_D",),
    }

    def output(tuning):
        trained = factors(tuning, params())
        ffw = tuning.join(trained, params(), jax.random.key(9))["layers"]["0"]["ffw"]
        first = {name: jax.tree.map(lambda leaf: leaf[0], ffw[name]) for name in ffw}
        x = draw("BTD", 8)
        return np.asarray(
            contract("BTD,DF->BTF", x, first["up_D_F"])
            + contract("BTD,DF->BTF", x, first["gate_D_F"])
            + first["down_F_D"].sum()
        )

    assert changes.keys() == {field.name for field in dataclasses.fields(Lora)}
    expected = output(reference)
    for name, value in changes.items():
        assert (output(dataclasses.replace(reference, **{name: value})) != expected).any(), name


def test_tunings_that_differ_in_alpha_and_dropout_share_one_compilation():
    trained = factors(Lora(rank=5, targets=("up_D_F",)), params())

    @jax.jit
    def run(tuning, key):
        return model().apply(tuning.join(trained, params(), key), batch()).hidden_BTD

    for alpha, dropout in ((1.0, 0.1), (2.0, 0.2)):
        run(Lora(rank=5, targets=("up_D_F",), alpha=alpha, dropout=dropout), jax.random.key(1))
    assert run._cache_size() == 1


def test_factors_stay_float32_over_a_bfloat16_base_and_merge_rounds_once():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params())
    tuning = Lora(rank=5, alpha=5.0, targets=("up_D_F",))
    trained = factors(tuning, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    merged = tuning.merge(trained, half)["layers"]["0"]["ffw"]["up_D_F"]
    held = trained["layers"]["0"]["ffw"]["up_D_F"]
    base = half["layers"]["0"]["ffw"]["up_D_F"]
    delta = jnp.einsum("ldr,lrf->ldf", held["a_D_R"], held["b_R_F"])
    once = (base.astype(jnp.float32) + delta).astype(jnp.bfloat16)
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged.astype(jnp.float32), once.astype(jnp.float32))


def draw(letters: str, seed: int) -> jax.Array:
    numbers = np.random.default_rng(seed)
    return jnp.asarray(numbers.normal(size=[SIZES[letter] for letter in letters]), jnp.float32)


def leaf_of(name: str, **more) -> tuple[LowRank, jax.Array]:
    """Give a low-rank leaf with random factors and the plain weight that it stands for."""
    axes = axes_of(name)
    a_name, b_name = factor_names(axes)
    a, b, base = (draw(axes_of(n).letters, s) for s, n in enumerate((a_name, b_name, name)))
    bank, inputs, outputs = axes.bank, axes.inputs, axes.outputs
    delta = jnp.einsum(f"{bank}{inputs}R,{bank}R{outputs}->{axes.letters}", a, b)
    return LowRank(base=base, a=a, b=b, axes=axes, **more), base + delta


@pytest.mark.parametrize(
    ("name", "equation"),
    [
        ("gate_D_F", "BTD,DF->BTF"),
        ("query_D_KGH", "BTD,DKGH->BTKGH"),
        ("out_KGH_D", "BTKGH,KGHD->BTD"),
        ("head_D_V", "BTD,DV->BTV"),
        ("embed_V_D", "BTD,VD->BTV"),
        ("up_E_D_F", "BTD,EDF->BTEF"),
        ("down_E_F_D", "BTEF,EFD->BTED"),
    ],
)
def test_a_low_rank_leaf_contracts_like_the_sum_it_stands_for(name, equation):
    leaf, weight = leaf_of(name)
    x = draw(equation.split(",")[0], 8)
    expected = jnp.einsum(equation, x, weight)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(
        contract(equation, x, leaf), expected, rtol=0, atol=ONE_PRODUCT * scale
    )


def test_a_low_rank_table_is_looked_up_like_the_sum_it_stands_for():
    leaf, weight = leaf_of("embed_V_D")
    ids = batch().tokens_BT
    np.testing.assert_allclose(
        take(leaf, ids, jnp.float32), weight[ids], rtol=ONE_PRODUCT, atol=ONE_PRODUCT
    )
    assert take(leaf, ids, jnp.bfloat16).dtype == jnp.bfloat16


def test_a_low_rank_leaf_stands_over_any_other_kind_of_leaf():
    inner, weight = leaf_of("gate_D_F")
    outer = dataclasses.replace(inner, base=inner)
    x = draw("BTD", 8)
    expected = jnp.einsum("BTD,DF->BTF", x, 2 * weight - inner.base)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(
        contract("BTD,DF->BTF", x, outer), expected, rtol=0, atol=ONE_PRODUCT * scale
    )


def test_dropout_drops_the_adapters_input_and_keeps_its_mean():
    rate = jnp.float32(0.25)
    leaf, _ = leaf_of("gate_D_F", dropout=rate)
    ones = jnp.ones((1, SIZES["T"], SIZES["D"]))
    base = dataclasses.replace(leaf, a=jnp.eye(SIZES["D"]), b=jnp.eye(SIZES["D"], SIZES["F"]))
    base = dataclasses.replace(base, base=jnp.zeros((SIZES["D"], SIZES["F"])))
    keys = jax.random.split(jax.random.key(4), 4000)
    seen = jax.vmap(lambda key: dataclasses.replace(base, key=key).contract("BTD,DF->BTF", ones))(
        keys
    )
    seen = np.asarray(seen)[..., : SIZES["D"]]
    np.testing.assert_allclose(np.unique(seen), [0, 1 / 0.75], rtol=1e-6)
    deviation = math.sqrt(0.25 / 0.75 / len(keys))
    assert np.abs(seen.mean(0) - 1).max() < 5 * deviation


def test_dropout_masks_differ_by_layer_parameter_and_key_and_are_off_without_a_key():
    tuning = Lora(rank=5, dropout=0.5, targets=("up_D_F", "gate_D_F"))
    trained = factors(tuning, params())

    def keys(key):
        ffw = tuning.join(trained, params(), key)["layers"]["0"]["ffw"]
        return [jax.random.key_data(ffw[name].key) for name in ("up_D_F", "gate_D_F")]

    drawn = np.concatenate([*keys(jax.random.key(1)), *keys(jax.random.key(2))])
    assert drawn.shape[0] == 4 * ARCH.num_layers == len(np.unique(drawn, axis=0))
    silent = dataclasses.replace(tuning, dropout=None)
    off = logits(False, tuning.join(trained, params()))
    np.testing.assert_array_equal(
        off, logits(False, silent.join(trained, params(), jax.random.key(1)))
    )
    zero = dataclasses.replace(tuning, dropout=0.0)
    np.testing.assert_array_equal(
        off, logits(False, zero.join(trained, params(), jax.random.key(1)))
    )
    on = logits(False, tuning.join(trained, params(), jax.random.key(1)))
    assert (np.asarray(on) != np.asarray(off)).mean() > 0.9
