"""Continuous batching and shared prefixes: every row comes out as if it were alone."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import layouts
from research.core.generation import Decoding, Sampling
from research.models.compute import Compute
from research.models.transformer import Transformer
from tests.laws.test_generate import (
    ARCH,
    GREEDY,
    MODEL,
    SAMPLED,
    N,
    V,
    assert_same,
    params,
    prompts,
    run,
    text,
)

WIDTH = 11
LENGTHS = (7, 3, 11, 5, 0, 9, 2, 4, 10, 6, 1, 8, 3)  # a prime number of prompts, one of them empty
STOPS = tuple(range(0, V, 5))  # a fifth of all tokens: rows end anywhere between 1 and N
COMMON = text(99, 4)


def batch(lengths=LENGTHS, before: tuple[int, ...] = ()):
    texts = [[*before, *text(50 + seed, n)] if n else [] for seed, n in enumerate(lengths)]
    return prompts(texts, WIDTH + len(before))


@functools.cache
def one_after_the_other(sampling=GREEDY):
    return run(batch(), sampling, stop_ids=STOPS)


def with_decoding(model=MODEL, **settings) -> Transformer:
    return dataclasses.replace(model, decoding=Decoding(**settings))


def test_rows_end_at_all_lengths_so_that_these_tests_mean_something():
    lengths = one_after_the_other().lengths_B
    assert set(lengths) >= {0, 1, 2, N}


@pytest.mark.parametrize(
    ("rows", "admitted"), [(1, 1), (5, 3), pytest.param(12, 12, marks=pytest.mark.slow)]
)
def test_rows_in_flight_change_nothing(rows, admitted):
    model = with_decoding(rows=rows, admitted=admitted)
    assert_same(run(batch(), stop_ids=STOPS, model=model), one_after_the_other())


def test_a_row_draws_by_its_own_key_and_its_own_step():
    model = with_decoding(rows=3, admitted=2)
    got = run(batch(), SAMPLED, stop_ids=STOPS, model=model)
    assert_same(got, one_after_the_other(SAMPLED))


def test_one_token_and_no_stop_token_are_no_special_cases():
    for sampling, stop_ids in (
        (Sampling(max_new_tokens=1), STOPS),
        (Sampling(max_new_tokens=N), ()),
    ):
        got = run(batch(), sampling, stop_ids=stop_ids, model=with_decoding(rows=4, admitted=2))
        assert_same(got, run(batch(), sampling, stop_ids=stop_ids))


def test_each_shard_of_rows_admits_its_own():
    place = layouts.data(2).on(jax.devices()[:2])
    split = Transformer(ARCH, place, Compute())
    lengths = (*LENGTHS, 5)  # 14 prompts in two shards
    tree = jax.device_put(params(), place.weights(MODEL.abstract()))
    given = jax.device_put(batch(lengths), place.batch(batch(lengths)))
    model = with_decoding(split, rows=4, admitted=2)
    got = run(given, stop_ids=STOPS, model=model, tree=tree)
    assert_same(got, run(batch(lengths), stop_ids=STOPS))
    with pytest.raises(ValueError, match="admitted=1 is no multiple of the 2 shards"):
        run(given, stop_ids=STOPS, model=with_decoding(split, rows=4), tree=tree)


@pytest.mark.parametrize("rows", [None, 4])
def test_a_shared_prefix_is_read_once_and_changes_nothing(rows):
    given = batch(before=tuple(COMMON))
    model = with_decoding(rows=rows, admitted=1 if rows is None else 2, shared_tokens=len(COMMON))
    assert_same(run(given, stop_ids=STOPS, model=model), run(given, stop_ids=STOPS))


@pytest.mark.parametrize("rows", [None, 4])
def test_a_prompt_without_an_id_is_read_and_not_continued(rows):
    given = batch()
    nameless = np.arange(len(LENGTHS)) % 3 == 0
    mixed = dataclasses.replace(given, ids_BZ=np.where(nameless[:, None], -1, given.ids_BZ))
    model = with_decoding(rows=rows, admitted=1 if rows is None else 2)
    got, want = run(mixed, stop_ids=STOPS, model=model), one_after_the_other()
    assert (got.lengths_B[nameless] == 0).all()
    np.testing.assert_array_equal(got.tokens_BN[~nameless], want.tokens_BN[~nameless])
    np.testing.assert_array_equal(got.lengths_B[~nameless], want.lengths_B[~nameless])


def test_settings_that_cannot_be_met_are_errors():
    with pytest.raises(ValueError, match="admitted=5: expected 1 to rows=4"):
        Decoding(rows=4, admitted=5)
    with pytest.raises(ValueError, match="rows=0 must be positive"):
        Decoding(rows=0)
    with pytest.raises(ValueError, match="shared_tokens=-1"):
        Decoding(shared_tokens=-1)
