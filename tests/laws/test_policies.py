"""Policies: who is selected, in which order, whatever the scores are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.curriculum.budget import EqualSteps
from research.curriculum.curriculum import Curriculum
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.curriculum.ordering import draws, quotas
from research.curriculum.policies.bottom_fraction import BottomFraction
from research.curriculum.policies.round_wise_uniform import RoundWiseUniform
from research.curriculum.policies.sorted_pool import Sorted
from research.curriculum.policies.top_fraction import TopFraction
from research.curriculum.policies.uniform import Uniform

POLICIES = (
    Uniform(),
    RoundWiseUniform(fraction=0.3),
    TopFraction(fraction=0.3),
    TopFraction(fraction=0.3, order="descending"),
    BottomFraction(fraction=0.4, order="ascending"),
    Sorted(),
    Sorted(descending=True),
)
SCORED = tuple(policy for policy in POLICIES if policy.uses_scores)
scores = st.lists(st.integers(0, 40), min_size=2, max_size=37).map(lambda v: np.float32(v) / 7)
seeds = st.integers(0, 2**32 - 1)


def curriculum(policy, **changes):
    """A curriculum around `policy`, with every switch at its plainest."""
    held = {
        "estimator": TeacherForcedLoss() if policy.uses_scores else None,
        "rounds": 1,
        "reset_optimizer_each_round": False,
        "allow_repeats": True,
        "budget": EqualSteps(),
        "rescore_fraction": 1.0 if policy.uses_scores else 0.0,
    }
    return Curriculum(policy=policy, **(held | changes))


def opened(policy, score_X, seed=0, group_X=None, share_G=None, **changes):
    """(curriculum, state) in round 0 with given scores."""
    made = curriculum(policy, **changes)
    state = made.init(len(score_X), group_X, share_G)
    state = dataclasses.replace(state, score_X=np.asarray(score_X, np.float32))
    return made, made.open_round(state, 0, seed)


def selected(policy, score_X, **options):
    return opened(policy, score_X, **options)[1].selection()


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@given(score_X=scores, seed=seeds)
def test_ids_are_in_range_and_a_selection_holds_none_twice(policy, score_X, seed):
    made, state = opened(policy, score_X, seed)
    assert len(state.queue) == len(np.unique(state.queue)) == made.num_selected(len(score_X))
    assert state.queue.min() >= 0
    assert state.queue.max() < len(score_X)
    np.testing.assert_array_equal(np.sort(state.queue), state.selection())


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@given(score_X=scores, seed=seeds)
def test_the_same_key_gives_the_same_plan(policy, score_X, seed):
    first, second = (opened(policy, score_X, seed)[1].queue for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_another_seed_gives_another_plan_unless_scores_decide_it_all(policy):
    score_X = np.arange(29)
    first, second = (opened(policy, score_X, seed)[1].queue for seed in (0, 1))
    decided = isinstance(policy, Sorted) or getattr(policy, "order", "shuffled") != "shuffled"
    assert np.array_equal(first, second) == decided


@pytest.mark.parametrize("policy", SCORED, ids=repr)
@given(score_X=scores, seed=seeds)
def test_only_the_order_of_scores_counts(policy, score_X, seed):
    stretched = np.float32(3.5) * score_X**2 + score_X + 11
    np.testing.assert_array_equal(
        opened(policy, score_X, seed)[1].queue, opened(policy, stretched, seed)[1].queue
    )


@pytest.mark.parametrize("policy", SCORED, ids=repr)
@given(data=st.data(), size=st.integers(2, 31))
def test_renaming_the_pool_renames_the_selection(policy, data, size):
    score_X = np.float32(data.draw(st.permutations(range(size)))) / 3
    new_name_X = np.asarray(data.draw(st.permutations(range(size))))
    renamed = np.empty_like(score_X)
    renamed[new_name_X] = score_X
    np.testing.assert_array_equal(
        np.sort(new_name_X[selected(policy, score_X)]), selected(policy, renamed)
    )


@pytest.mark.parametrize("policy", SCORED, ids=repr)
@given(score_X=scores)
def test_noise_below_the_resolution_changes_nothing(policy, score_X):
    noise = np.random.default_rng(len(score_X)).uniform(-3e-5, 3e-5, len(score_X))
    rounded = np.round(score_X, 3)
    np.testing.assert_array_equal(
        opened(policy, rounded)[1].queue, opened(policy, rounded + noise)[1].queue
    )


def test_ties_go_to_the_lowest_id():
    score_X = np.float32([1, 2, 2, 2, 1, 2])
    assert selected(TopFraction(fraction=0.34), score_X).tolist() == [1, 2]
    assert selected(BottomFraction(fraction=0.17), score_X).tolist() == [0]
    queue = opened(Sorted(descending=True), score_X)[1].queue
    assert queue.tolist() == [1, 2, 3, 5, 0, 4]


@given(score_X=scores)
def test_top_and_bottom_select_the_extremes(score_X):
    top = selected(TopFraction(fraction=0.5), score_X)
    bottom = selected(BottomFraction(fraction=0.5), score_X)
    rest = np.setdiff1d(np.arange(len(score_X)), top)
    assert score_X[top].min() >= score_X[rest].max(initial=-np.inf)
    rest = np.setdiff1d(np.arange(len(score_X)), bottom)
    assert score_X[bottom].max() <= score_X[rest].min(initial=np.inf)


@given(score_X=scores)
def test_orders_sort_by_score(score_X):
    queue = opened(TopFraction(fraction=0.5, order="descending"), score_X)[1].queue
    assert (np.diff(score_X[queue]) <= 0).all()
    queue = opened(TopFraction(fraction=0.5, order="ascending"), score_X)[1].queue
    assert (np.diff(score_X[queue]) >= 0).all()
    queue = opened(Sorted(), score_X)[1].queue
    assert (np.diff(score_X[queue]) >= 0).all()


def test_unscored_examples_are_named_or_placed():
    score_X = np.float32([3, np.nan, 1, 2, np.nan])
    with pytest.raises(ValueError, match=r"2 of 5 examples have no score, first ids \[1, 4\]"):
        opened(TopFraction(fraction=0.4), score_X)
    first = selected(TopFraction(fraction=0.4, unscored="first"), score_X)
    assert first.tolist() == [1, 4]
    last = selected(TopFraction(fraction=0.6, unscored="last"), score_X)
    assert last.tolist() == [0, 2, 3]
    queue = opened(Sorted(unscored="last"), score_X)[1].queue
    assert queue[:3].tolist() == [2, 3, 0]


def test_unscored_examples_come_in_random_order():
    score_X = np.full(101, np.nan)
    policy = TopFraction(fraction=0.2, unscored="first")
    first, second = (selected(policy, score_X, seed=seed) for seed in (0, 1))
    assert len(np.intersect1d(first, second)) < len(first)


def test_the_control_selects_everybody_alike():
    counts = np.zeros(13)
    for seed in range(600):
        counts[selected(RoundWiseUniform(fraction=0.31), np.zeros(13), seed=seed)] += 1
    expected = 600 * 4 / 13
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)  # five standard deviations


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_weights_of_sources_hold_in_every_selection(policy):
    group_X = np.repeat([0, 1, 2], [30, 20, 50])
    share_G = np.array([0.25, 0.25, 0.5])
    made, state = opened(
        policy, np.linspace(0, 9, 100) % 2, group_X=group_X, share_G=tuple(share_G)
    )
    total = made.num_selected(100)
    assert len(state.queue) == total
    counts = np.bincount(group_X[state.queue], minlength=3)
    assert np.abs(counts - total * share_G).max() < 1


@given(total=st.integers(1, 500), weights=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_quotas_add_up_and_are_within_one_of_exact(total, weights):
    share_G = np.asarray(weights, float)
    quota_G = quotas(total, share_G)
    assert quota_G.sum() == total
    assert np.abs(quota_G - total * share_G / share_G.sum()).max() < 1


def test_a_small_group_with_a_large_weight_is_repeated_evenly():
    group_X = np.repeat([0, 1], [5, 36])
    made, state = opened(Uniform(), np.zeros(41), group_X=group_X, share_G=(0.5, 0.5))
    ids, state = made.plan(state, 5 * 41, 0)
    uses = np.bincount(ids, minlength=41)
    assert uses[:5].sum() == 5 * 21
    for group in (uses[:5], uses[5:]):
        assert group.max() - group.min() <= 1


def test_a_group_too_small_for_its_weight_is_refused():
    group_X = np.repeat([0, 1], [5, 36])
    with pytest.raises(ValueError, match="cannot give"):
        opened(TopFraction(fraction=0.5), np.zeros(41), group_X=group_X, share_G=(0.5, 0.5))


def test_draws_are_frozen():
    """A changed word would silently change the order of every run that has been recorded."""
    assert draws(3, 7, 0, 2).tolist() == FROZEN


FROZEN = [16399895268638834694, 1645132711743076622, 13845068504235397883]
