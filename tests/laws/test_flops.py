"""Analytic FLOPs: equal to the multiply-adds of the traced program, counted one by one."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.layout import Layout
from research.core.records import Batch
from research.models.architecture import Architecture
from research.models.attention.reference import Reference
from research.models.compute import Compute
from research.models.flops import (
    attention_flops,
    forward_flops,
    kernel_parameters,
    training_flops,
)
from research.models.transformer import Transformer
from research.objectives.cross_entropy import CrossEntropy
from research.tuning.lora import Lora

TOKENS = 7
SIZES = {
    "vocab_size": 19,
    "model_dim": 10,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "ffw_dim": 22,
}
PLACE = Layout().on(jax.devices()[:1])


def model_of(**changes):
    arch = Architecture(**(SIZES | changes))
    return Transformer(arch, PLACE, Compute(unroll=True, attention=Reference()))


def batch():
    shape = (1, TOKENS)
    ones = jnp.ones(shape, jnp.int32)
    return Batch(
        tokens_BT=ones,
        targets_BT=ones,
        weights_BT=jnp.ones(shape),
        positions_BT=jnp.arange(TOKENS)[None],
        segments_BT=ones,
        ids_BZ=jnp.zeros((1, 1), jnp.int32),
    )


def product_flops(function, *args):
    """Add up 2 x (multiply-adds) of every product in the traced program."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                width = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
                total += 2 * width * equation.outvars[0].aval.size
            for inner in equation.params.values():
                inner = getattr(inner, "jaxpr", inner)
                total += count(inner) if hasattr(inner, "eqns") else 0
        return total

    return count(jax.make_jaxpr(function)(*args).jaxpr)


def unseen(arch):
    """What reference attention computes and masks: the other half of the square."""
    square = arch.num_layers * 4 * arch.num_heads * arch.head_dim * TOKENS**2
    return square - attention_flops(arch, TOKENS)


@pytest.mark.parametrize("tied_head", [False, True])
def test_a_forward_pass_costs_what_its_products_cost(tied_head):
    model = model_of(tied_head=tied_head, query_key_norm=True, qkv_bias=True)
    params = model.abstract()
    counted = product_flops(lambda p, b: model.apply(p, b).logits(), params, batch())
    assert forward_flops(model.arch, params, TOKENS) == counted - unseen(model.arch)


def test_full_training_costs_three_forward_passes():
    model = model_of()
    params = model.abstract()

    def loss(params, batch):
        return CrossEntropy()(model, params, batch)[0].sum

    counted = product_flops(jax.grad(loss), params, batch())
    expected = training_flops(model.arch, params, params, TOKENS)
    assert expected == 3 * forward_flops(model.arch, params, TOKENS)
    assert expected == counted - 3 * unseen(model.arch)


def test_adapters_cost_two_passes_over_what_is_frozen_and_three_over_themselves():
    model, tuning = model_of(), Lora(rank=2)
    trainable, frozen = jax.eval_shape(tuning.split, model.abstract(), jax.random.key(0))

    def loss(trainable, frozen, batch):
        return CrossEntropy()(model, tuning.join(trainable, frozen), batch)[0].sum

    counted = product_flops(jax.grad(loss), trainable, frozen, batch())
    joined = jax.eval_shape(tuning.join, trainable, frozen)
    expected = training_flops(model.arch, joined, trainable, TOKENS)
    # nothing trained lies below the first layer's projections: their inputs need no gradient
    heads = (SIZES["num_heads"] + 2 * SIZES["num_kv_heads"]) * SIZES["head_dim"]
    spared = 2 * TOKENS * SIZES["model_dim"] * (heads + 3 * 2)
    assert expected == counted - 3 * unseen(model.arch) + spared
    adapters = sum(kernel_parameters(model.arch, trainable))
    base = sum(kernel_parameters(model.arch, frozen))
    products = expected - 3 * attention_flops(model.arch, TOKENS)
    assert products == (4 * base + 6 * adapters) * TOKENS


def test_a_window_limits_what_attention_costs():
    arch = model_of(windows=(3, None, 100)).arch
    seen = sum(min(t + 1, 3) for t in range(TOKENS)) + 2 * sum(t + 1 for t in range(TOKENS))
    assert attention_flops(arch, TOKENS) == 4 * arch.num_heads * arch.head_dim * seen


def test_costs_of_sequences_are_given_one_by_one():
    model = model_of()
    params, lengths = model.abstract(), np.array([3, 5, 8])
    each = [forward_flops(model.arch, params, int(n), predictions=1) for n in lengths]
    np.testing.assert_array_equal(forward_flops(model.arch, params, lengths, predictions=1), each)
