"""Estimators: bounds, invariances, and agreement with the formula spelt out in NumPy."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.generation import Sampling
from research.core.layout import Layout
from research.core.records import Batch
from research.curriculum.estimators.edco_release import EdcoRelease, mean_of_highest
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.prefix_entropy import PrefixEntropy
from research.curriculum.estimators.teacher_forced_entropy import TeacherForcedEntropy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.transformer import Transformer

VOCABULARY, PREFIX = 23, 6
LENGTHS = (5, 3, 7)
NOISE = 1e-5  # float32 sums in another order; measured 5e-7

ARCH = Architecture(
    vocab_size=VOCABULARY,
    model_dim=12,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffw_dim=20,
    init_std=0.4,  # large, so that predictions are neither flat nor certain
)
MODEL = Transformer(ARCH, Layout().on(jax.devices()[:1]), Compute())
PARAMS = MODEL.init(jax.random.key(3))

RELEASE = EdcoRelease(prefix_tokens=PREFIX, top_tokens=5)
SUMMED = PrefixEntropy(prefix_tokens=PREFIX, reduction="sum")
ESTIMATORS = (
    PrefixEntropy(prefix_tokens=PREFIX),
    PrefixEntropy(prefix_tokens=PREFIX, temperature=1.0),
    RELEASE,
    TeacherForcedLoss(),
    TeacherForcedEntropy(),
    Length(),
)


def tokens_of(row):
    return np.random.default_rng(row).integers(0, VOCABULARY, LENGTHS[row])


def batch_of(rows, width=8, left=False):
    """One example a row; the second half of each is trained."""
    shape = (len(rows), width)
    tokens, targets, positions, segments = (np.zeros(shape, np.int32) for _ in range(4))
    weights = np.zeros(shape, np.float32)
    for b, row in enumerate(rows):
        size = LENGTHS[row]
        place = slice(width - size, width) if left else slice(0, size)
        tokens[b, place] = tokens_of(row)
        targets[b, place] = [*tokens_of(row)[1:], 0]
        weights[b, place] = [*(t >= size // 2 for t in range(size - 1)), 0]
        positions[b, place] = np.arange(size)
        segments[b, place] = 1
    return Batch(
        tokens_BT=jnp.asarray(tokens),
        targets_BT=jnp.asarray(targets),
        weights_BT=jnp.asarray(weights),
        positions_BT=jnp.asarray(positions),
        segments_BT=jnp.asarray(segments),
        ids_BZ=jnp.asarray(rows, jnp.int32)[:, None],
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def scored(estimator, stop_ids, params, batch):
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(11), batch.ids_BZ[:, 0])
    return estimator.score(MODEL, params, (batch,), key_B, stop_ids)


def score(estimator, rows=(0, 1, 2), stop_ids=(), **shape):
    return np.asarray(scored(estimator, stop_ids, PARAMS, batch_of(rows, **shape)))


@jax.jit
def full_logits(params, tokens, segments):
    batch = Batch(
        tokens_BT=tokens,
        targets_BT=tokens,
        weights_BT=segments.astype(jnp.float32),
        positions_BT=jnp.arange(tokens.shape[1])[None],
        segments_BT=segments,
        ids_BZ=jnp.zeros((1, 1), jnp.int32),
    )
    return MODEL.apply(params, batch).logits()[0]


def predictions(row, continuation=()):
    """Raw logits [T, V] of the full, uncached forward pass, in float64."""
    tokens = np.concatenate([tokens_of(row), continuation]).astype(np.int32)
    padding = (0, max(LENGTHS) + PREFIX - len(tokens))
    segments = np.pad(np.ones_like(tokens), padding)[None]
    logits = full_logits(PARAMS, np.pad(tokens, padding)[None], segments)
    return np.asarray(logits, np.float64)[: len(tokens)]


def entropy(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    return -(p * np.log(p)).sum(-1)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_padding_side_batch_mates_and_order_change_nothing(estimator):
    other = score(estimator, (2, 1), width=13, left=True)
    np.testing.assert_allclose(score(estimator)[[2, 1]], other, atol=NOISE)


@pytest.mark.parametrize("estimator", [*ESTIMATORS[:5], SUMMED], ids=repr)
def test_scores_lie_in_their_bounds_and_differ(estimator):
    scores = score(estimator)
    most = math.log(VOCABULARY)
    most = {SUMMED: PREFIX * most, RELEASE: math.log(5)}.get(estimator, most)
    assert len(np.unique(scores)) == 3
    assert (scores > 0).all()
    assert estimator == TeacherForcedLoss() or (scores <= most).all()


def test_teacher_forced_scores_are_means_over_trained_targets():
    losses, entropies = score(TeacherForcedLoss()), score(TeacherForcedEntropy())
    for row in range(3):
        first = LENGTHS[row] // 2
        logits = predictions(row)[first:-1]
        target = tokens_of(row)[first + 1 :]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        loss = -log_p[np.arange(len(target)), target].mean()
        np.testing.assert_allclose(losses[row], loss, rtol=NOISE)
        np.testing.assert_allclose(entropies[row], entropy(logits).mean(), rtol=NOISE)


def greedy(row):
    """Greedy continuation and the logits of each of its predictions, without a cache."""
    path = []
    for _ in range(PREFIX):
        path.append(int(predictions(row, path)[-1].argmax()))
    return path, predictions(row, path)[LENGTHS[row] - 1 : -1]


def test_prefix_entropy_is_that_of_the_uncached_model_along_its_own_answer():
    means, sums = score(ESTIMATORS[0]), score(SUMMED)
    for row in range(3):
        _, logits = greedy(row)
        np.testing.assert_allclose(means[row], entropy(logits).mean(), rtol=NOISE)
        np.testing.assert_allclose(sums[row], entropy(logits).sum(), rtol=NOISE)


def test_the_prediction_of_the_stop_token_counts_and_nothing_after_it():
    path, logits = greedy(0)
    last = path.index(path[2]) + 1
    assert last < PREFIX
    mean = score(ESTIMATORS[0], stop_ids=(path[2],))[0]
    np.testing.assert_allclose(mean, entropy(logits[:last]).mean(), rtol=NOISE)


def test_the_release_averages_the_highest_truncated_entropies_of_its_sampled_path():
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(11), jnp.arange(3))
    sampling = Sampling(max_new_tokens=PREFIX, temperature=0.7, top_p=0.7)
    paths_BN = MODEL.generate(PARAMS, batch_of((0, 1, 2)), sampling, (), key_B).tokens_BN
    scores = score(RELEASE)
    for row in range(3):
        logits = predictions(row, paths_BN[row])[LENGTHS[row] - 1 : -1]
        truncated = entropy(np.sort(logits, axis=-1)[:, -5:])
        expected = np.sort(truncated)[-2:].mean()  # ceil(0.2 * 6) = 2
        np.testing.assert_allclose(scores[row], expected, rtol=NOISE)


def test_a_sampled_path_depends_on_the_key_of_its_row():
    twins = batch_of((0, 0, 0))
    ids = jnp.asarray([[0], [1], [1]])
    scores = scored(ESTIMATORS[1], (), PARAMS, dataclasses.replace(twins, ids_BZ=ids))
    assert abs(scores[0] - scores[1]) > 1e-3
    assert scores[1] == scores[2]


def test_length_counts_tokens():
    np.testing.assert_array_equal(score(Length()), LENGTHS)


@given(
    values=st.lists(st.floats(0, 3, width=32), min_size=1, max_size=9),
    fraction=st.floats(0.05, 1),
)
def test_the_mean_of_the_highest_takes_at_least_one(values, fraction):
    padded = np.full((1, 11), 99.0, np.float32)
    padded[0, : len(values)] = values
    count = max(1, math.ceil(fraction * len(values) - 1e-5))
    expected = np.sort(values)[::-1][:count].mean()
    got = mean_of_highest(jnp.asarray(padded), jnp.asarray([len(values)]), fraction)
    if math.ceil(fraction * len(values) - 1e-7) == math.ceil(fraction * len(values) - 1e-5):
        np.testing.assert_allclose(got, [expected], rtol=1e-5)


def test_views_say_what_the_model_is_shown():
    (view,) = PrefixEntropy(instruction="Briefly.", template=True).views
    assert (view.content, view.instruction, view.template) == ("prompt", "Briefly.", True)
    (view,) = EdcoRelease().views
    assert (view.content, view.template) == ("prompt", False)
    assert TeacherForcedLoss().views[0].content == "training"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrefixEntropy(prefix_tokens=0), "prefix_tokens=0"),
        (lambda: PrefixEntropy(temperature=0.0), "for a greedy path say None"),
        (lambda: PrefixEntropy(reduction="median"), "choose 'mean' or 'sum'"),
        (lambda: EdcoRelease(top_tokens=1), "top_tokens=1"),
        (lambda: EdcoRelease(top_fraction=0.0), "top_fraction=0.0"),
        (lambda: Length(of="words"), "of='words'"),
    ],
)
def test_a_wrong_setting_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
