"""Expressions of estimators: arithmetic, units that agree, and every term measured once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import curricula
from research.core.parts import describe, rebuild, vary
from research.curriculum.estimators.excess_loss import ExcessLoss
from research.curriculum.estimators.free import Free
from research.curriculum.estimators.given import Given
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.scored_by import ScoredBy
from research.curriculum.estimators.teacher_forced_entropy import TeacherForcedEntropy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.curriculum.expressions import nats, quantile, ranked, standardised, where
from research.curriculum.policies.top_fraction import TopFraction
from research.curriculum.terms import terms_of, value_of
from research.huggingface.pretrained import Pretrained

LOSS, ENTROPY = TeacherForcedLoss(), TeacherForcedEntropy()
ROUNDING = 1e-4  # scores are rounded so before they are standardised or ranked
columns = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=19).map(
    lambda pairs: np.asarray(pairs, np.float64).T / 3
)


def value(expression, loss_X, entropy_X):
    return value_of(expression, {LOSS: np.asarray(loss_X), ENTROPY: np.asarray(entropy_X)})


@given(signal_YX=columns)
def test_behind_the_door_arithmetic_is_that_of_numbers(signal_YX):
    a, b = signal_YX
    x, y = nats(LOSS), nats(ENTROPY)
    for expression, expected in (
        (x - 0.5 * y, a - 0.5 * b),
        (2 + x * y, 2 + a * b),
        (-x, -a),
        (1 - x / (y + 1), 1 - a / (b + 1)),
        (where(x < y, x, 0.0), np.where(a < b - ROUNDING / 2, a, 0.0)),
        (where(x > 5, 1, y), np.where(a > 5, 1.0, b)),
        (x + quantile(x, 0.5), a + np.median(a)),
    ):
        np.testing.assert_allclose(value(expression, a, b), expected, atol=1e-9)


@given(signal_YX=columns, scale=st.floats(0.5, 9), shift=st.floats(-5, 5))
def test_a_standardised_term_has_no_unit(signal_YX, scale, shift):
    a, b = signal_YX
    z = value(standardised(LOSS), a, b)
    assert abs(z.mean()) < 1e-9
    assert np.std(a) < 1e-6 or z.std() == pytest.approx(1.0)
    moved = value(standardised(LOSS), scale * a + shift, b)
    spread = max(min(1.0, scale) * np.std(a), 0.1)  # 0.1: below it only all alike
    np.testing.assert_allclose(moved, z, atol=6 * ROUNDING / spread)  # z of 19 is at most 4.3


@given(signal_YX=columns)
def test_a_ranked_term_knows_the_order_alone(signal_YX):
    a, b = signal_YX
    ranks = value(ranked(LOSS), a, b)
    np.testing.assert_array_equal(value(ranked(LOSS), a**3 + 2 * a, b), ranks)
    assert ranks.min() >= 0
    assert ranks.max() <= 1
    assert ranks.mean() == pytest.approx(0.5 if len(a) > 1 else 0.0)
    below = (a[:, None] > a).sum(axis=1) + ((a[:, None] == a).sum(axis=1) - 1) / 2
    np.testing.assert_allclose(ranks, below / (len(a) - 1))


def test_an_example_that_a_term_does_not_know_has_no_score():
    a, b = np.array([1.0, np.nan, 3.0, 2.0]), np.array([0.0, 1.0, np.nan, 2.0])
    for expression in (
        nats(LOSS) + nats(ENTROPY),
        ranked(LOSS) * standardised(ENTROPY),
        where(nats(LOSS) < 2.5, nats(ENTROPY), 7.0),
        where(nats(LOSS) < nats(ENTROPY), 1.0, 0.0),
    ):
        known = ~np.isnan(value(expression, a, b))
        assert known[[0, 3]].all()
        assert not known[1]
    np.testing.assert_array_equal(value(ranked(LOSS), a, b)[[0, 3, 2]], [0, 0.5, 1])
    assert np.isnan(value(nats(LOSS) / nats(ENTROPY), a, b))[0]


def test_every_term_is_measured_once_and_an_estimator_without_a_unit_is_refused():
    expression = ranked(LOSS) * (1 - ranked(ENTROPY)) + 0.1 * standardised(LOSS)
    assert terms_of(expression) == (LOSS, ENTROPY)
    assert terms_of(ENTROPY) == (ENTROPY,)
    assert terms_of(None) == ()
    with pytest.raises(TypeError, match=r"say nats\(...\), standardised\(...\) or ranked"):
        nats(LOSS) + ENTROPY
    with pytest.raises(ValueError, match="measures nothing"):
        curricula.round_wise(
            where(1.0, 2.0, 3.0), TopFraction(fraction=0.5), rounds=2, rescore_fraction=0.0
        )


def test_an_expression_is_a_part():
    expression = where(nats(LOSS) < quantile(nats(LOSS), 0.5), ranked(ENTROPY), 0.0) - 0.5
    assert rebuild(describe(expression)) == expression
    assert hash(rebuild(describe(expression))) == hash(expression)
    assert vary(expression, {"left.condition.right.fraction": 0.9}) != expression


def test_a_score_follows_from_the_last_value_of_each_term():
    reference = Pretrained(folder="reference")
    estimator = nats(ExcessLoss(reference=reference)) + 10 * nats(Given(field="level"))
    curriculum = curricula.round_wise(
        estimator, TopFraction(fraction=0.5), rounds=3, rescore_fraction=0.5
    )
    other = ScoredBy(estimator=LOSS, model=reference, same_tokens=True)
    assert curriculum.measured == (LOSS, other, Given(field="level"))
    assert curriculum.scorers == (LOSS,)
    state = curriculum.init(4)
    signals = np.float32([[5, 6, 7, 8], [1, 1, 4, 4], [0, 1, 0, 1]])
    state = curriculum.rescore(state, np.arange(4), signals, 0)
    np.testing.assert_array_equal(state.score_X, [4, 15, 3, 14])
    state = curriculum.rescore(state, np.array([2, 0]), signals[:, [2, 0]] - [[6], [0], [0]], 1)
    np.testing.assert_array_equal(state.score_X, [-2, 15, -3, 14])
    np.testing.assert_array_equal(curriculum.measurements(state), state.signal_YX)
    with pytest.raises(ValueError, match="3 measurements need as many scores"):
        curriculum.rescore(state, np.arange(4), signals[0], 2)


def test_what_training_reports_can_be_a_term():
    estimator = nats(Free()) - nats(Length())
    policy = TopFraction(fraction=0.5, unscored="first")
    curriculum = curricula.round_wise(estimator, policy, rounds=2)
    state = curriculum.init(3)
    state = curriculum.rescore(state, np.arange(3), np.float32([1, 2, 3]), 0)
    assert np.isnan(state.score_X).all()
    state = curriculum.open_round(state, 0, 0)
    rows = {
        "id": np.array([2, 0]),
        "tokens": np.array([2.0, 1.0]),
        "loss_nats": np.array([9.0, 4.0]),
    }
    state = curriculum.observe(state, rows)
    np.testing.assert_array_equal(state.score_X, [3, np.nan, 1.5])
    np.testing.assert_array_equal(state.scored_round_X, [0, 0, 0])
    with pytest.raises(ValueError, match="unscored to 'first' or 'last'"):
        curricula.round_wise(estimator, TopFraction(fraction=0.5), rounds=2)
