"""Laws of packing and batches: nothing is lost, nothing overtakes, and a row changes no example."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.batches import pack_batch, single_batch
from research.data.examples import Example
from research.data.packing import pack

ROW_TOKENS = 23
LENGTHS = st.lists(st.integers(2, ROW_TOKENS), min_size=1, max_size=40)
ROWS, SEGMENTS = st.integers(1, 5), st.integers(1, 4)


def first_fit(lengths, num_rows, row_tokens, max_segments):
    """Say the rule again, as simply as it can be said."""
    rows = [[] for _ in range(num_rows)]
    for x, length in enumerate(lengths):
        for row in rows:
            if len(row) < max_segments and sum(lengths[k] for k in row) + length <= row_tokens:
                row.append(x)
                break
        else:
            return rows, list(range(x, len(lengths)))
    return rows, []


def example(seed: int, length: int) -> Example:
    rng = np.random.default_rng(seed)
    trained = rng.random(length) < 0.6
    trained[0] = False
    tokens = rng.integers(1, 99, length).astype(np.int32)
    return Example(id=str(seed), tokens=tokens, trained=trained, row={}, where="")


@given(lengths=LENGTHS, num_rows=ROWS, max_segments=SEGMENTS)
def test_packing_is_first_fit_in_the_given_order(lengths, num_rows, max_segments):
    packed = pack(range(len(lengths)), np.array(lengths), num_rows, ROW_TOKENS, max_segments)
    assert packed == first_fit(lengths, num_rows, ROW_TOKENS, max_segments)


@given(lengths=LENGTHS, num_rows=ROWS, max_segments=SEGMENTS, data=st.data())
def test_every_example_is_in_a_row_or_left_over_and_none_overtakes(
    lengths, num_rows, max_segments, data
):
    ids = data.draw(st.permutations([*range(len(lengths)), 0]))  # an id may come twice
    rows, left = pack(ids, np.array(lengths), num_rows, ROW_TOKENS, max_segments)
    placed = [x for row in rows for x in row]
    assert len(rows) == num_rows
    assert sorted(placed + left) == sorted(ids)
    assert left == ids[len(placed) :]
    assert all(len(row) <= max_segments for row in rows)
    assert all(sum(lengths[x] for x in row) <= ROW_TOKENS for row in rows)
    again = pack(ids, np.array(lengths), num_rows, ROW_TOKENS, max_segments)
    assert again == (rows, left)


def test_a_queue_packed_batch_by_batch_shows_every_example_once():
    lengths, queue, seen = np.random.default_rng(5).integers(2, 24, 101), list(range(101)), []
    while queue:
        rows, queue = pack(queue, lengths, 3, ROW_TOKENS, 4)
        seen += [x for row in rows for x in row]
    assert sorted(seen) == list(range(101))


def test_no_examples_are_empty_rows():
    assert pack([], np.array([3]), 2, ROW_TOKENS, 4) == ([[], []], [])


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="example 1 has 24 tokens and a row has 23"):
        pack([0, 1], np.array([3, 24]), 2, ROW_TOKENS, 4)


@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=14))
def test_an_example_is_the_same_in_a_packed_row_and_alone(lengths):
    examples = [example(x, length) for x, length in enumerate(lengths)]
    rows, _ = pack(range(len(lengths)), np.array(lengths), 3, ROW_TOKENS, 4)
    packed = pack_batch([[(x, examples[x]) for x in row] for row in rows], ROW_TOKENS, 4)
    for b, row in enumerate(rows):
        for z, x in enumerate(row):
            at = packed.segments_BT[b] == z + 1
            alone = single_batch([examples[x]], [x], 1, lengths[x])
            assert packed.ids_BZ[b, z] == x
            for name in ("tokens_BT", "targets_BT", "weights_BT", "positions_BT"):
                assert getattr(packed, name)[b][at].tolist() == getattr(alone, name)[0].tolist()


@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6))
def test_a_target_is_the_next_token_and_weighs_what_is_trained(lengths):
    examples = [example(x, length) for x, length in enumerate(lengths)]
    batch = single_batch(examples, range(len(lengths)), len(lengths) + 2, 11)
    for b, one in enumerate(examples):
        length = lengths[b]
        assert batch.tokens_BT[b, :length].tolist() == one.tokens.tolist()
        assert batch.targets_BT[b, : length - 1].tolist() == one.tokens[1:].tolist()
        assert batch.weights_BT[b, : length - 1].tolist() == one.trained[1:].tolist()
        assert batch.positions_BT[b, :length].tolist() == list(range(length))
        assert not batch.weights_BT[b, length - 1 :].any()
        assert not batch.segments_BT[b, length:].any()
    assert batch.weights_BT.sum() == sum(one.trained.sum() for one in examples)
    assert batch.ids_BZ[:, 0].tolist() == [*range(len(lengths)), -1, -1]
    assert not batch.segments_BT[-2:].any()


def test_a_batch_has_the_dtypes_that_the_step_was_compiled_for():
    batch = single_batch([example(0, 5)], [7], 3, 11)
    ints = (batch.tokens_BT, batch.targets_BT, batch.positions_BT, batch.segments_BT, batch.ids_BZ)
    assert {array.dtype for array in ints} == {np.dtype(np.int32)}
    assert batch.weights_BT.dtype == np.float32
    assert batch.ids_BZ.shape == (3, 1)
    assert batch.tokens_BT.shape == (3, 11)


def test_a_row_that_holds_too_much_is_refused():
    with pytest.raises(ValueError, match="holds 2 examples of 10 tokens"):
        pack_batch([[(0, example(0, 5)), (1, example(1, 5))]], 9, 4)
    with pytest.raises(ValueError, match="there is room for 1"):
        pack_batch([[(0, example(0, 5)), (1, example(1, 5))]], 19, 1)
    with pytest.raises(ValueError, match="2 examples do not fit 1 rows"):
        single_batch([example(0, 5), example(1, 5)], [0, 1], 1, 9)
