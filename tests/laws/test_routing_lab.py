"""Laws of the routing laboratory: drift counts tokens, specialisation is more than chance."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.layout import Layout
from research.core.records import RouterStatistics
from research.core.tree import flatten
from research.data.batches import single_batch
from research.data.pool import Data, open_pool
from research.data.sources import Jsonl
from research.evaluate.evaluate import evaluate
from research.evaluate.routing import AGREEMENT, RouterDrift
from research.evaluate.specialisation import mutual_information, specialisation
from research.huggingface.export import save
from research.huggingface.pretrained import Pretrained
from research.models.architecture import Architecture, Moe
from research.models.compute import Compute
from research.models.moe.layers import in_order, sparse_layers
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.models.transformer import Transformer
from research.train.prepare import prepare
from research.tuning.lora import Lora
from tests.flow.runs import tiny_run

V, E, A, L, ITEMS = 31, 5, 2, 3, 11
ARCH = Architecture(
    vocab_size=V,
    model_dim=12,
    num_layers=L,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffw_dim=10,
    max_positions=32,
    moe=Moe(
        num_experts=E,
        experts_per_token=A,
        expert_dim=7,
        router=SoftmaxTopK(),
        dense_layers=(1,),
    ),
)
PLACE = Layout().on(jax.devices()[:1])
MODEL = Transformer(ARCH, PLACE, Compute())
STACKS = {"first": "0", "last": "2"}  # layers 0 and 2 have experts, each a stack of its own
ROUNDING = 1e-12  # sums of a few float64 logarithms


@functools.cache
def params():
    numbers = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * numbers.normal(size=leaf.shape), jnp.float32),
        MODEL.abstract(),
    )


def with_router(change, stack: str):
    """Give the parameters with one layer's router changed."""
    layers = params()["layers"]
    ffw = layers[stack]["ffw"]
    ffw = ffw | {"router_D_E": change(ffw["router_D_E"])}
    return params() | {"layers": layers | {stack: layers[stack] | {"ffw": ffw}}}


def data_of(folder: Path, *, rows: int = 4) -> Data:
    """Write items of 3 to 13 tokens, of two kinds."""
    numbers, file = np.random.default_rng(1), folder / "items.jsonl"
    lines = [
        {"id": f"i{x}", "input_ids": numbers.integers(1, V, 3 + x).tolist(), "kind": "ab"[x % 2]}
        for x in range(ITEMS)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = Jsonl(path=str(file))
    return Data(sources=(source,), rows=rows, row_tokens=16, pack=False, needs_no_text=True)


def ask(data: Data, start, **settings):
    evaluator = RouterDrift(data=data, **settings)
    return evaluate(evaluator, MODEL, params(), None, PLACE, start=start)


@functools.cache
def chosen_alone():
    """Give what makes the experts of every token of one row [L, T, A]."""
    apply = jax.jit(lambda tree, batch: in_order(ARCH, MODEL.apply(tree, batch).router).chosen_BTA)
    return lambda tree, batch: np.asarray(apply(tree, batch))[:, 0]


def test_nothing_has_drifted_before_the_first_update(tmp_path):
    found = ask(data_of(tmp_path), params)
    assert [found.metrics[name].value for name in found.metrics] == [1.0, 1.0, 1.0]
    assert list(found.metrics) == [AGREEMENT, f"{AGREEMENT}_layer_0", f"{AGREEMENT}_layer_2"]
    assert found.metrics[AGREEMENT].count == ITEMS
    assert all(row[AGREEMENT] == 1.0 for row in found.rows)


def test_fresh_adapters_on_the_router_have_not_moved_a_token(tmp_path):
    tuning = Lora(rank=2, targets=("router_D_E",))
    trainable, frozen = tuning.split(params(), jax.random.key(0))
    adapted = tuning.join(trainable, frozen)
    evaluator = RouterDrift(data=data_of(tmp_path))
    found = evaluate(evaluator, MODEL, adapted, None, PLACE, start=lambda: frozen)
    assert found.metrics[AGREEMENT].value == 1.0


def test_agreement_is_the_share_of_shared_experts_token_by_token(tmp_path):
    data = data_of(tmp_path)
    before = with_router(lambda router: router[..., ::-1], STACKS["last"])
    found = ask(data, lambda: before)
    kept = made = 0
    for example, row in zip(open_pool(data, None).examples, found.rows, strict=True):
        batch = single_batch([example], [0], 1, 16)
        now, then = (chosen_alone()(tree, batch)[-1] for tree in (params(), before))
        shared = [len(set(a) & set(b)) for a, b in zip(now, then, strict=True) if a[0] >= 0]
        assert row[f"{AGREEMENT}_layer_2"] == pytest.approx(sum(shared) / (A * len(shared)))
        kept, made = kept + sum(shared), made + A * len(shared)
    assert found.metrics[f"{AGREEMENT}_layer_0"].value == 1.0  # what comes later changes nothing
    assert found.metrics[f"{AGREEMENT}_layer_2"].value == pytest.approx(kept / made)
    assert 0 < kept < made
    assert found.metrics[AGREEMENT].value == pytest.approx((kept + made) / (2 * made))


def test_padding_and_batches_count_for_nothing(tmp_path):
    first, second = (ask(data_of(tmp_path, rows=rows), params).rows for rows in (4, 7))
    assert first == second
    for x, row in enumerate(first):
        assert np.sum(row["load"], axis=1).tolist() == [A * (3 + x)] * 2


def test_items_carry_the_fields_they_are_sliced_by(tmp_path):
    found = ask(data_of(tmp_path), params, slice_by=("kind",))
    assert [row["slices"]["kind"] for row in found.rows] == list("abababababa")
    assert found.slices["kind=b"][AGREEMENT].count == 5


def test_a_model_without_experts_or_without_a_start_is_refused(tmp_path):
    data = data_of(tmp_path)
    with pytest.raises(ValueError, match="not being trained"):
        ask(data, None)
    dense = Transformer(dataclasses.replace(ARCH, moe=None), PLACE, Compute())
    with pytest.raises(ValueError, match="dense"):
        evaluate(RouterDrift(data=data), dense, params(), None, PLACE, start=params)


def test_layers_come_in_their_order_whatever_stack_they_are_in():
    arch = dataclasses.replace(ARCH, num_layers=7, windows=(3, None) * 3 + (3,))
    layers = {s.name: s.layers for stage in arch.stages() for s in stage if s.first != 1}
    assert sparse_layers(arch) == (0, 2, 3, 4, 5, 6)

    def seen(layers: tuple[int, ...]) -> RouterStatistics:
        numbers = np.asarray(layers, np.float32)[:, None]
        wide = np.broadcast_to(numbers[..., None], (len(layers), 1, E))
        return RouterStatistics(
            load_BE=wide,
            probability_BE=wide,
            z_B=numbers,
            entropy_B=numbers,
            dropped_B=numbers,
            tokens_B=numbers,
        )

    router = {name: seen(own) for name, own in reversed(layers.items())}
    joined = in_order(arch, router)
    assert joined.tokens_B[:, 0].tolist() == joined.load_BE[:, 0, -1].tolist() == [0, 2, 3, 4, 5, 6]


@given(st.integers(0, 10_000))
def test_information_lies_between_nothing_and_the_smaller_logarithm(seed):
    counts = np.random.default_rng(seed).integers(0, 9, (3, L, E)).astype(float)
    counts[0] += 1  # no layer is empty
    nats = mutual_information(counts)
    assert np.all(nats > -ROUNDING)
    assert np.all(nats <= np.log(3) + ROUNDING)


def test_information_is_nothing_where_slices_are_alike_and_all_where_they_are_apart():
    alike = np.asarray([1.0, 2.0, 4.0])[:, None, None] * np.arange(1.0, E + 1)
    assert mutual_information(alike) == pytest.approx(0.0, abs=ROUNDING)
    apart = np.eye(E)[:3, None] * 7.0
    assert mutual_information(apart) == pytest.approx(np.log(3))


def test_chance_is_not_taken_for_specialisation():
    """Items of few tokens that like an expert each, whatever their slice."""
    numbers = np.random.default_rng(2)
    load = np.stack([numbers.multinomial(9, p) for p in numbers.dirichlet([0.3] * E, 90)])[:, None]
    slices = [f"s{x % 3}" for x in range(90)]
    found = specialisation(load, slices)
    independent = (3 - 1) * (E - 1) / (2 * load.sum())  # Miller and Madow, of single tokens
    assert found.chance_L[0] > 2 * independent  # an item's tokens are alike
    assert abs(found.above_chance_L[0]) < found.chance_L[0]
    assert found.p > 0.05


def test_specialisation_is_found_in_the_layer_that_has_it():
    numbers = np.random.default_rng(3)
    slices = [f"s{x % 3}" for x in range(60)]
    even = numbers.multinomial(8, [1 / E] * E, (60, L))
    fond = np.eye(E, dtype=int)[[x % 3 for x in range(60)]] * 8
    load = even.copy()
    load[:, 1] += fond
    found = specialisation(load, slices)
    assert np.argmax(found.above_chance_L) == 1
    assert found.above_chance_L[1] > 0.2 > found.above_chance_L[0]
    assert found.p < 0.01
    assert found.load_SLE.sum() == load.sum()
    assert found.slices == ("s0", "s1", "s2")


def test_the_start_is_read_or_drawn_again_but_for_what_is_frozen(tmp_path):
    drawn = prepare(tiny_run(tmp_path))
    first = flatten(drawn.params())
    save(tmp_path / "model", drawn.model, drawn.params())
    read = prepare(tiny_run(tmp_path, {"model": Pretrained(folder=str(tmp_path / "model"))}))
    path = ("layers", "0", "ffw", "up_D_F")
    held = {"layers": {"0": {"ffw": {"up_D_F": first[path] + 1}}}}
    for prepared in (drawn, read):
        again = flatten(prepared.params(held))
        assert again.keys() == first.keys()
        assert again[path] is flatten(held)[path]
        assert all(np.array_equal(again[p], first[p]) for p in first if p != path)
