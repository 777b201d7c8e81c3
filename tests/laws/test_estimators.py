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
from research.curriculum.estimators.first_token_entropy import FirstTokenEntropy
from research.curriculum.estimators.given import Given
from research.curriculum.estimators.gradient_norm import GradientNorm
from research.curriculum.estimators.gradient_similarity import GradientSimilarity
from research.curriculum.estimators.ifd import Ifd
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.option_letters import OptionLetters
from research.curriculum.estimators.prefix_entropy import PrefixEntropy
from research.curriculum.estimators.scored_by import ScoredBy
from research.curriculum.estimators.teacher_forced_entropy import TeacherForcedEntropy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.curriculum.gradients import chosen, sketch
from research.data.pool import Data
from research.data.sources import Jsonl
from research.huggingface.pretrained import Pretrained
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

TARGETS = ("down_F_D", "final_norm_D")
GUIDE = Data(sources=(Jsonl(path="never-opened.jsonl"),))
LETTERS = (3, 8, 21, 13)  # the tokens of four letters
RELEASE = EdcoRelease(prefix_tokens=PREFIX, top_tokens=5)
SUMMED = PrefixEntropy(prefix_tokens=PREFIX, reduction="sum")
SAMPLED = PrefixEntropy(prefix_tokens=PREFIX, temperature=1.0)
ESTIMATORS = (
    PrefixEntropy(prefix_tokens=PREFIX),
    SAMPLED,
    RELEASE,
    TeacherForcedLoss(),
    TeacherForcedEntropy(),
    Length(),
    FirstTokenEntropy(),
    OptionLetters(),
    Ifd(),
    GradientNorm(targets=TARGETS),
    GradientSimilarity(guide=GUIDE, targets=TARGETS, size=31),
)
INFLUENCE = GradientSimilarity(guide=GUIDE, targets=TARGETS[1:], size=37, similarity="dot", seed=3)


def tokens_of(row):
    return np.random.default_rng(row).integers(0, VOCABULARY, LENGTHS[row])


def shown_as(content, row):
    """(tokens, which of them are trained) of a row in a view."""
    tokens, half = tokens_of(row), LENGTHS[row] // 2
    trained = np.arange(LENGTHS[row]) > half
    if content == "answer":
        return np.concatenate([[1], tokens[trained]]), np.arange(1 + trained.sum()) > 0
    if content == "letters":
        return np.array(LETTERS[: 2 + row]), np.zeros(2 + row, bool)
    return tokens, trained


def batch_of(rows, width=8, left=False, content="training"):
    """One example a row; the second half of each is trained."""
    shape = (len(rows), width)
    tokens, targets, positions, segments = (np.zeros(shape, np.int32) for _ in range(4))
    weights = np.zeros(shape, np.float32)
    for b, row in enumerate(rows):
        shown, trained = shown_as(content, row)
        size = len(shown)
        place = slice(width - size, width) if left else slice(0, size)
        tokens[b, place] = shown
        targets[b, place] = [*shown[1:], 0]
        weights[b, place] = [*trained[1:], 0]
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
def scored(estimator, stop_ids, params, *batches):
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(11), batches[0].ids_BZ[:, 0])
    guide = ()
    if hasattr(estimator, "direction"):
        guide = (estimator.direction(MODEL, params, batch_of((2, 0))),)
    return estimator.score(MODEL, params, batches, key_B, stop_ids, *guide)


def score(estimator, rows=(0, 1, 2), stop_ids=(), **shape):
    batches = [batch_of(rows, content=view.content, **shape) for view in estimator.views]
    return np.asarray(scored(estimator, stop_ids, PARAMS, *batches))


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


# Draws from all tokens are as those of the release from the likeliest.
@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(e, marks=[pytest.mark.slow] if e is SAMPLED else [], id=type(e).__name__)
        for e in ESTIMATORS
    ],
)
def test_padding_side_batch_mates_and_order_change_nothing(estimator):
    other = score(estimator, (2, 1), width=13, left=True)
    np.testing.assert_allclose(score(estimator)[[2, 1]], other, atol=NOISE)


@pytest.mark.parametrize("estimator", [*ESTIMATORS[:5], SUMMED, FirstTokenEntropy()], ids=repr)
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


def test_the_first_token_is_a_prefix_of_one():
    expected = [entropy(predictions(row)[-1]) for row in range(3)]
    np.testing.assert_allclose(score(FirstTokenEntropy()), expected, rtol=NOISE)
    one = score(PrefixEntropy(prefix_tokens=1))
    np.testing.assert_allclose(score(FirstTokenEntropy()), one, rtol=NOISE)


def test_option_letters_are_renormalised_among_themselves():
    scores = score(OptionLetters())
    for row in range(3):
        expected = entropy(predictions(row)[-1][list(LETTERS[: 2 + row])])
        np.testing.assert_allclose(scores[row], expected, rtol=NOISE)
        assert 0 <= scores[row] <= math.log(2 + row)


def losses_of(tokens, first):
    """Mean loss of tokens[first:], each by the full forward pass, in float64."""
    padded = np.pad(tokens, (0, max(LENGTHS) + PREFIX - len(tokens))).astype(np.int32)
    segments = (np.arange(len(padded)) < len(tokens)).astype(np.int32)
    logits = np.asarray(full_logits(PARAMS, padded[None], segments[None]), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.mean([log_p[t - 1, tokens[t]] for t in range(first, len(tokens))])


def test_ifd_is_the_loss_with_the_question_over_the_loss_without():
    scores = score(Ifd())
    for row in range(3):
        asked = losses_of(tokens_of(row), LENGTHS[row] // 2 + 1)
        alone = losses_of(shown_as("answer", row)[0], 1)
        np.testing.assert_allclose(scores[row], asked / alone, rtol=NOISE)


@jax.jit
def slopes(params, batch):
    """d mean loss / d all parameters of a batch of one row, by the textbook formula."""

    def loss(params):
        log_p = jax.nn.log_softmax(MODEL.apply(params, batch).logits())
        told_BT = jnp.take_along_axis(log_p, batch.targets_BT[..., None], axis=-1)[..., 0]
        return -jnp.sum(told_BT * batch.weights_BT) / jnp.sum(batch.weights_BT)

    return jax.grad(loss)(params)


def gradients_of(row, targets=TARGETS):
    return chosen(slopes(PARAMS, batch_of((row,))), targets)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_effort_is_the_norm_of_the_gradient_of_the_named_parameters():
    norms = [np.linalg.norm(flat(gradients_of(row))) for row in range(3)]
    np.testing.assert_allclose(score(GradientNorm(targets=TARGETS)), norms, rtol=1e-4)


def test_influence_compares_projected_gradients_with_the_mean_of_the_guide():
    for estimator in (ESTIMATORS[-1], INFLUENCE):
        gradients = [gradients_of(row, estimator.targets) for row in range(3)]
        own = np.stack([sketch(g, estimator.size, estimator.seed) for g in gradients])
        mean = (own[2] + own[0]) / 2
        norms = np.linalg.norm(own, axis=1) * np.linalg.norm(mean)
        norms = 1.0 if estimator is INFLUENCE else norms
        np.testing.assert_allclose(score(estimator), own @ mean / norms, rtol=1e-4)
    assert (np.abs(score(ESTIMATORS[-1])) <= 1).all()
    assert np.abs(sketch(gradients[0], 37, 3) - sketch(gradients[0], 37, 4)).max() > 1e-3


def test_a_projection_keeps_inner_products_on_average():
    a, b = ({"up_D_F": jnp.asarray(np.random.default_rng(s).normal(size=(9, 7)))} for s in (0, 1))
    a = {"up_D_F": a["up_D_F"] + b["up_D_F"]}
    exact, size = float(jnp.sum(a["up_D_F"] * b["up_D_F"])), 16
    project = jax.vmap(lambda tree, seed: sketch(tree, size, seed), (None, 0))
    seeds = jnp.arange(400)
    products = np.asarray(jnp.sum(project(a, seeds) * project(b, seeds), axis=1))
    norms = [float(jnp.sum(jnp.square(tree["up_D_F"]))) for tree in (a, b)]
    spread = np.sqrt((norms[0] * norms[1] + exact**2) / size)  # of one projection
    assert abs(products.mean() - exact) < 4 * spread / np.sqrt(400)
    assert products.std() < 1.5 * spread


def test_a_target_that_matches_nothing_is_named_with_what_there_is():
    with pytest.raises(ValueError, match=r"\['a', 'b'\] match no parameter .* no adapters"):
        score(GradientNorm())
    with pytest.raises(ValueError, match="'down_F_D'"):
        score(GradientNorm(targets=("down",)))


def test_a_stated_difficulty_is_a_number_or_a_place_among_levels():
    assert Given(field="meta.level").of_row({"meta": {"level": "3"}}) == 3.0
    graded = Given(field="grade", levels=("easy", "medium", "hard"))
    assert [graded.of_row({"grade": g}) for g in ("hard", "easy")] == [2.0, 0.0]
    for row, message in (
        ({"text": "x"}, "'grade' is missing"),
        ({"grade": "odd"}, "grade='odd' is none of the levels"),
    ):
        with pytest.raises(ValueError, match=message):
            graded.of_row(row)
    with pytest.raises(ValueError, match="grade='hard' is no number"):
        Given(field="grade").of_row({"grade": "hard"})


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
    for made in (FirstTokenEntropy, OptionLetters):
        for view in made(instruction="Briefly.", template=False).views:
            assert (view.instruction, view.template) == ("Briefly.", False)
    assert [view.content for view in OptionLetters().views] == ["slot", "letters"]
    assert [view.content for view in Ifd().views] == ["training", "answer"]
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
        (lambda: Given(field=""), "field is empty"),
        (lambda: Given(levels=("one",)), "at least two words"),
        (lambda: GradientNorm(targets=()), "targets is empty"),
        (lambda: GradientSimilarity(guide=GUIDE, size=1), "size=1"),
        (lambda: GradientSimilarity(guide=GUIDE, similarity="l2"), "similarity='l2'"),
        (lambda: GradientSimilarity(guide=None), "guide=None are no rows"),
        (lambda: ScoredBy(estimator=Given(), model=Pretrained(folder="x")), "asks no model"),
        (lambda: ScoredBy(estimator=Length(), model="x"), "say Pretrained"),
    ],
)
def test_a_wrong_setting_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
