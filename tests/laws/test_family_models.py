"""The decoder's laws hold for every family's architecture, not for the plain one alone."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import models
from launch.rows import longest_row
from research.core.generation import Sampling
from research.core.layout import Layout
from research.core.records import Batch
from research.data.pool import Data, open_pool
from research.data.sources import Jsonl
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.rope import DynamicScaling, LongScaling, Rope
from research.models.transformer import Transformer

TOLERANCE = 5e-5  # four layers of float32 products, summed in another order; logits of order 10
QUICK = {"xla_backend_optimization_level": 0}  # compiling is the cost of these tests
T, LONG, SHORT = 19, 12, 7
STRETCHED = Rope(scaling=DynamicScaling(factor=3.0, original_max_positions=9))
ARCHITECTURES = {
    preset.__name__: preset()
    for preset in (
        models.tiny_gemma2,
        models.tiny_gemma3,
        models.tiny_phi3,
        models.tiny_smollm3,
        models.tiny_granite,
        models.tiny_olmo2,
        models.tiny_glm4,
        models.tiny_gpt2,
    )
} | {"dynamic": dataclasses.replace(models.tiny_llama(), rope=STRETCHED)}


@functools.cache
def logits(name: str) -> np.ndarray:
    """The logits of the rows below, one program an architecture."""
    arch = ARCHITECTURES[name]
    model = Transformer(arch, Layout().on(jax.devices()[:1]), Compute())
    run = jax.jit(lambda params, batch: model.apply(params, batch).logits(), compiler_options=QUICK)
    return np.asarray(run(drawn(model), rows(arch)))


def drawn(model: Transformer) -> dict:
    """Draw weights, norms and biases, all of them away from 0 and 1."""
    random = np.random.RandomState(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        centre = 1.0 - model.arch.norm_offset if "norm" in name and "bias" not in name else 0.0
        return np.float32(centre + 0.2 * random.randn(*leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, model.abstract())


def rows(arch: Architecture) -> Batch:
    """A row; the same with another end; two packed texts; the first alone, the second later."""
    random = np.random.RandomState(1)
    whole, first, second = (random.randint(0, arch.vocab_size, n) for n in (T, LONG, SHORT))
    other = np.append(whole[:8], (whole[8:] + 1) % arch.vocab_size)
    packed = [[(0, whole)], [(0, other)], [(0, first), (LONG, second)], [(0, first)], [(5, second)]]
    held = {name: np.zeros((len(packed), T), np.int32) for name in ("tokens", "positions", "on")}
    for row, texts in enumerate(packed):
        for number, (start, tokens) in enumerate(texts, 1):
            at = np.s_[row, start : start + len(tokens)]
            held["tokens"][at], held["on"][at] = tokens, number
            held["positions"][at] = np.arange(len(tokens))
    return Batch(
        tokens_BT=held["tokens"],
        targets_BT=held["tokens"],
        weights_BT=np.float32(held["on"] > 0),
        positions_BT=held["positions"],
        segments_BT=held["on"],
        ids_BZ=np.zeros((len(packed), 2), np.int32),
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_future_changes_nothing(name):
    got, want = logits(name)[1], logits(name)[0]
    np.testing.assert_array_equal(got[:8], want[:8])
    assert np.abs(got[8:] - want[8:]).max(axis=-1).min() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_and_padded_rows_equal_rows_alone(name):
    packed, first, second = logits(name)[2:]
    np.testing.assert_allclose(packed[:LONG], first[:LONG], rtol=0, atol=TOLERANCE)
    alone = second[5 : 5 + SHORT]
    np.testing.assert_allclose(packed[LONG:], alone, rtol=0, atol=TOLERANCE)
    assert np.ptp(alone) > 1, "logits near zero would agree by accident"


def test_norms_of_a_fresh_model_scale_by_one():
    model = Transformer(models.tiny_gemma3(), Layout().on(jax.devices()[:1]), Compute())

    def norms_of(key: jax.Array) -> list[jax.Array]:  # what is not asked for is not compiled
        leaves = jax.tree_util.tree_leaves_with_path(model.init(key))
        return [leaf for path, leaf in leaves if "norm" in path[-1].key]

    norms = jax.jit(norms_of)(jax.random.key(0))
    assert len(norms) == 1 + 2 * (4 + 2)  # the final one; two stacks of branches, heads
    assert all((1.0 + leaf == 1.0).all() for leaf in norms)


def test_generation_ends_where_a_table_of_positions_does():
    arch = dataclasses.replace(models.tiny_gpt2(), max_positions=11)
    model = Transformer(arch, Layout().on(jax.devices()[:1]), Compute())
    params = drawn(model)
    prompts = jax.tree.map(lambda leaf: leaf[3:], rows(arch))
    prompts = dataclasses.replace(prompts, ids_BZ=prompts.ids_BZ[:, :1])
    cut = dataclasses.replace(prompts, segments_BT=prompts.segments_BT * (np.arange(T) < 8))
    made = model.generate(params, cut, Sampling(max_new_tokens=9), ())
    # 8 and 3 tokens: the last new one is predicted from the last position, and not fed
    assert made.lengths_B.tolist() == [11 - 8 + 1, 11 - 3 + 1]
    assert not made.finished_B.any()


def test_a_pool_with_a_text_beyond_the_table_of_positions_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    lengths = {"fits": 12, "long": 13, "longer": 15}
    lines = [{"id": id, "input_ids": list(range(n))} for id, n in lengths.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pool = open_pool(Data(sources=(Jsonl(path=str(path)),), needs_no_text=True), None)
    with pytest.raises(ValueError, match=r"'long' has 13 tokens, and 1 more .* 11 positions"):
        pool.require_fit(11)
    pool.require_fit(14)
    pool.require_fit(models.tiny_llama().longest_text)


def test_rows_longer_than_the_table_of_positions_cannot_be_asked_for():
    place, compute = Layout().on(jax.devices()[:1]), Compute()
    gpt2 = SimpleNamespace(model=Transformer(models.tiny_gpt2(), place, compute))
    llama = SimpleNamespace(model=Transformer(models.tiny_llama(), place, compute))
    with pytest.raises(ValueError, match=r"row_tokens=33, .* 32 positions"):
        longest_row(gpt2, 33)
    assert [longest_row(gpt2, None), longest_row(gpt2, 20), longest_row(llama, 999)] == [
        32,
        20,
        999,
    ]


@pytest.mark.parametrize("name", ["tiny_phi3", "dynamic"])
def test_what_goes_by_length_is_tried_on_both_sides_of_its_original_length(name):
    scaling = ARCHITECTURES[name].rope.scaling
    assert isinstance(scaling, (LongScaling, DynamicScaling))
    assert SHORT < scaling.original_max_positions < LONG
