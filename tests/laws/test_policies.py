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
from research.curriculum.policies.competence import Competence
from research.curriculum.policies.floor import UniformFloor
from research.curriculum.policies.mixture import Mixture, filled
from research.curriculum.policies.round_wise_uniform import RoundWiseUniform
from research.curriculum.policies.self_paced import SelfPaced
from research.curriculum.policies.softmax import Softmax
from research.curriculum.policies.sorted_pool import Sorted
from research.curriculum.policies.top_fraction import TopFraction
from research.curriculum.policies.two_stage import TwoStage
from research.curriculum.policies.ucb1 import LAST, PULLS, Ucb1
from research.curriculum.policies.uniform import Uniform
from research.curriculum.policies.window import Window

POLICIES = (
    Uniform(),
    RoundWiseUniform(fraction=0.3),
    TopFraction(fraction=0.3),
    TopFraction(fraction=0.3, order="descending"),
    BottomFraction(fraction=0.4, order="ascending"),
    Sorted(),
    Sorted(descending=True),
    Window(fraction=0.3, skip=0.2),
    Softmax(fraction=0.3, temperature=0.5),
    Competence(fraction=0.3, initial=0.4, rounds_to_full=5),
    SelfPaced(threshold_nats=9.0),  # above every score here: as many as the others' quota, all
    TwoStage(fraction=0.3, medium_rounds=1),
    TwoStage(fraction=0.4, medium_rounds=1, medium=0.8, order="descending"),
    UniformFloor(policy=TopFraction(fraction=0.7), epsilon=0.5),
    Mixture(policy=TopFraction(fraction=0.3)),
    Ucb1(fraction=0.3, arms=3, slots=5),
)
SCORED = tuple(policy for policy in POLICIES if policy.uses_scores)
BY_ORDER = tuple(p for p in SCORED if not isinstance(p, (Softmax, SelfPaced)))
BY_SCORE = (TopFraction, BottomFraction, Sorted, Window, TwoStage)  # chance orders, never selects
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
        "rescore_fraction": float(policy.uses_scores and not isinstance(policy, Ucb1)),
    }
    return Curriculum(policy=policy, **(held | changes))


def opened(policy, score_X, seed=0, group_X=None, share_G=None, **changes):
    """(curriculum, state) in round 0 with given scores."""
    made = curriculum(policy, **changes)
    if isinstance(policy, Mixture) and group_X is None:
        group_X, share_G = np.zeros(len(score_X)), (1.0, 0.0)  # two sources, one of them empty
    state = made.init(len(score_X), group_X, share_G)
    state = dataclasses.replace(state, score_X=np.asarray(score_X, np.float32))
    return made, made.open_round(state, 0, seed)


def selected(policy, score_X, **options):
    return opened(policy, score_X, **options)[1].selection()


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@given(score_X=scores, seed=seeds)
def test_ids_are_in_range_and_a_selection_holds_none_twice(policy, score_X, seed):
    made, state = opened(policy, score_X, seed)
    size = made.num_selected(len(score_X))
    open_ = np.ceil(0.4 * len(score_X)) if isinstance(policy, Competence) else np.inf
    assert len(state.queue) == len(np.unique(state.queue)) == min(size, open_)
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
    decided = isinstance(policy, Sorted) or (
        isinstance(policy, BY_SCORE) and getattr(policy, "order", "shuffled") != "shuffled"
    )
    assert np.array_equal(first, second) == decided


@pytest.mark.parametrize("policy", BY_ORDER, ids=repr)
@given(score_X=scores, seed=seeds)
def test_only_the_order_of_scores_counts(policy, score_X, seed):
    stretched = np.float32(3.5) * score_X**2 + score_X + 11
    np.testing.assert_array_equal(
        opened(policy, score_X, seed)[1].queue, opened(policy, stretched, seed)[1].queue
    )


@pytest.mark.parametrize("policy", [p for p in SCORED if isinstance(p, BY_SCORE)], ids=repr)
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


@pytest.mark.parametrize(
    "policy", [policy for policy in POLICIES if not isinstance(policy, SelfPaced)], ids=repr
)
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


def test_a_window_is_the_top_of_what_is_left_when_the_top_is_dropped():
    score_X = np.float32([5, 1, 9, 7, 3, 8, 2, 6, 4, 0])
    assert selected(Window(fraction=0.3, skip=0.2), score_X).tolist() == [0, 3, 7]
    assert selected(Window(fraction=0.3, skip=0.0), score_X).tolist() == [2, 3, 5]
    group_X = np.repeat([0, 1], 5)
    shares = {"group_X": group_X, "share_G": (0.5, 0.5)}
    assert selected(Window(fraction=0.4, skip=0.2), score_X, **shares).tolist() == [0, 3, 7, 8]


def test_softmax_draws_by_its_weights_and_leaves_nobody_out():
    score_X = np.float32([0.0, 1.0, 2.0])
    counts = np.zeros(3)
    for seed in range(900):
        counts[selected(Softmax(fraction=0.34, temperature=0.8), score_X, seed=seed)] += 1
    weight = np.exp((score_X - score_X.mean()) / score_X.std() / 0.8)
    expected = 900 * weight / weight.sum()
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())  # five deviations
    cold = Softmax(fraction=0.4, temperature=1e-3)
    many = np.float32(np.random.default_rng(2).permutation(40))
    top = selected(TopFraction(fraction=0.4), many)
    np.testing.assert_array_equal(selected(cold, many), top)
    upside_down = Softmax(fraction=0.4, temperature=-1e-3)
    np.testing.assert_array_equal(selected(upside_down, -many), top)


def test_competence_opens_the_pool_from_its_easy_end_by_the_square_root():
    policy = Competence(fraction=0.3, initial=0.2, rounds_to_full=4)
    levels = [policy.competence(round_) for round_ in range(6)]
    expected = np.sqrt(np.arange(4) * (1 - 0.04) / 4 + 0.04)
    np.testing.assert_allclose(levels, [*expected, 1.0, 1.0])
    score_X = np.float32(np.random.default_rng(1).permutation(50))
    made, state = opened(policy, score_X, rounds=5)
    for round_ in range(5):
        ids, most = state.selection(), int(np.ceil(levels[round_] * 50))
        assert len(ids) == min(15, most)
        assert score_X[ids].max() < most
        if round_ < 4:
            state = made.open_round(state, round_ + 1, 0)
    assert score_X[ids].max() > 40


@given(score_X=scores, threshold=st.floats(1.0, 4.0))
def test_self_paced_selection_is_the_minimiser(score_X, threshold):
    policy = SelfPaced(threshold_nats=threshold, growth=2.0)
    if score_X.min() >= threshold:
        with pytest.raises(ValueError, match="no loss is below"):
            opened(policy, score_X)
        return
    made, state = opened(policy, score_X, rounds=2)
    chosen = np.isin(np.arange(len(score_X)), state.selection())
    cost = np.rint(score_X.astype(float) / 1e-4) * 1e-4 - threshold
    assert cost[chosen].sum() == pytest.approx(np.minimum(cost, 0).sum())
    later = made.open_round(state, 1, 0).selection()
    assert np.isin(state.selection(), later).all()


def test_two_stages_are_the_middle_and_then_the_top():
    score_X = np.float32(np.random.default_rng(3).permutation(20))
    made, state = opened(TwoStage(fraction=0.2, medium_rounds=2), score_X, rounds=3)
    for round_, places in enumerate(([8, 9, 10, 11], [8, 9, 10, 11], [16, 17, 18, 19])):
        assert np.sort(score_X[state.selection()]).tolist() == places
        state = made.open_round(state, round_ + 1, 0) if round_ < 2 else state
    high = selected(TwoStage(fraction=0.2, medium_rounds=2, medium=1.0), score_X)
    assert np.sort(score_X[high]).tolist() == [16, 17, 18, 19]


def test_a_floor_reaches_everybody_and_keeps_the_rest_of_the_policy():
    score_X, counts = np.float32(np.arange(30)), np.zeros(30)
    policy = UniformFloor(policy=TopFraction(fraction=0.4), epsilon=0.5)
    for seed in range(400):
        counts[selected(policy, score_X, seed=seed)] += 1
    assert (counts[24:] == 400).all()
    expected = 400 * 6 / 24
    assert np.abs(counts[:24] - expected).max() < 5 * np.sqrt(expected)  # five deviations
    barely = UniformFloor(policy=TopFraction(fraction=0.1), epsilon=0.01)
    assert selected(barely, score_X)[-2:].tolist() == [28, 29]  # one of three is left to chance


def test_a_mixture_moves_towards_what_is_left_to_learn():
    group_X, score_X = np.repeat([0, 1, 2], [20, 30, 50]), np.zeros(100)
    score_X[:20], score_X[20:50], score_X[50:] = 0.1, 0.9, -5.0  # below 0 counts as nothing left
    policy = Mixture(policy=RoundWiseUniform(fraction=0.2), rate=2.0, smoothing=0.3)
    shares = {"group_X": group_X, "share_G": (0.4, 0.4, 0.2)}
    made, state = opened(policy, score_X, rounds=2, **shares)
    assert np.bincount(group_X[state.selection()]).tolist() == [8, 8, 4]
    state = made.open_round(state, 1, 0)
    weight = np.array([0.4, 0.4, 0.2]) * np.exp([0.2, 1.8, 0.0])
    np.testing.assert_allclose(state.share_G, 0.7 * weight / weight.sum() + 0.1, rtol=1e-5)
    assert state.share_G.min() >= 0.1
    np.testing.assert_array_equal(
        np.bincount(group_X[state.selection()]), quotas(20, state.share_G)
    )
    with pytest.raises(ValueError, match="there is one group"):
        made.init(100)


@given(
    quota=st.lists(st.integers(0, 30), min_size=3, max_size=3),
    left=st.lists(st.integers(0, 30), min_size=3, max_size=3),
)
def test_quotas_beyond_a_source_go_to_the_others(quota, left):
    held_G = filled(np.array(quota), np.array(left))
    assert (held_G <= left).all()
    assert held_G.sum() == min(sum(quota), sum(left))


def reported(made, state, loss_of):
    """Train on the whole selection and report a loss for each example of it."""
    ids = state.selection()
    losses = np.array([loss_of(x) for x in ids])
    return made.observe(
        state, {"id": ids, "tokens": np.full(len(ids), 2.0), "loss_nats": 2 * losses}
    )


def test_a_bandit_tries_every_arm_and_then_follows_the_falling_loss():
    score_X = np.float32(np.repeat([1, 2, 3], [40, 30, 30]))
    policy = Ucb1(fraction=0.2, arms=3, slots=10, exploration=0.1)
    made, state = opened(policy, score_X, rounds=5)
    counts = []
    for round_ in range(5):
        counts.append(np.bincount(policy.arm_of(score_X)[state.selection()], minlength=3))
        state = reported(made, state, lambda x: 5.0 - round_ * (score_X[x] == 2))  # noqa: B023
        if round_ < 4:
            state = made.open_round(state, round_ + 1, 0)
    assert (np.array(counts).sum(axis=1) == 20).all()
    assert (counts[0] >= 6).all()  # nothing is known: ten slots of two among three arms
    assert counts[4][1] > 2 * max(counts[4][0], counts[4][2])
    np.testing.assert_allclose(state.memory[:, PULLS].sum(), 4 * 10)
    assert state.memory[0, LAST] == state.memory[2, LAST] == 5.0


def test_arms_are_levels_where_there_are_few_and_equal_parts_where_there_are_many():
    policy = Ucb1(fraction=0.5, arms=3, slots=4)
    assert policy.arm_of(np.float32([7, 1, 1, 1, 9])).tolist() == [1, 0, 0, 0, 2]
    many = policy.arm_of(np.float32(np.random.default_rng(0).permutation(60)))
    assert np.bincount(many).tolist() == [20, 20, 20]


@pytest.mark.parametrize(
    ("policy", "fields"),
    [
        (Window(fraction=0.3, skip=0.2), {"fraction": 0.4, "skip": 0.3, "order": "ascending"}),
        (
            Softmax(fraction=0.3, temperature=0.5),
            {"fraction": 0.4, "temperature": 3.0, "order": "ascending"},
        ),
        (
            Competence(fraction=0.3, initial=0.2, rounds_to_full=2),
            {"fraction": 0.4, "initial": 0.25, "rounds_to_full": 4},
        ),
        (SelfPaced(threshold_nats=9.0, growth=2.0), {"threshold_nats": 7.0, "growth": 3.0}),
        (
            TwoStage(fraction=0.3, medium_rounds=1),
            {"fraction": 0.4, "medium_rounds": 2, "medium": 0.7, "order": "ascending"},
        ),
        (UniformFloor(policy=TopFraction(fraction=0.3), epsilon=0.2), {"epsilon": 0.5}),
        (
            Mixture(policy=RoundWiseUniform(fraction=0.3), rate=0.1, smoothing=0.2),
            {"rate": 0.5, "smoothing": 0.9},
        ),
        (
            Ucb1(fraction=0.3, arms=3, slots=7),
            {"fraction": 0.4, "arms": 4, "slots": 14, "exploration": 0.01},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_field_is_dead(policy, fields):
    score_X = np.float32(np.random.default_rng(5).permutation(47)) / 2
    group_X = np.arange(47) // 24

    def plan(policy):
        shares = {"group_X": group_X, "share_G": (0.5, 0.5)} if hasattr(policy, "mix") else {}
        made, state = opened(policy, score_X, rounds=4, **shares)
        queues = []
        for round_ in range(1, 4):
            queues.append(state.queue.tolist())
            state = reported(made, state, lambda x: 5.0 - round_ * score_X[x])  # noqa: B023
            state = made.open_round(state, round_, 0)
        return queues

    for name, value in fields.items():
        assert plan(dataclasses.replace(policy, **{name: value})) != plan(policy), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(fraction=0.8, skip=0.3), "skip=0.3 and fraction=0.8"),
        (lambda: Softmax(fraction=0.2, temperature=0.0), "say TopFraction"),
        (lambda: Competence(fraction=0.2, initial=0.0, rounds_to_full=2), "initial=0.0"),
        (lambda: Competence(fraction=0.2, initial=0.5, rounds_to_full=0), "rounds_to_full=0"),
        (lambda: SelfPaced(threshold_nats=-1.0), "threshold_nats=-1.0"),
        (lambda: SelfPaced(threshold_nats=1.0, growth=0.5), "growth=0.5"),
        (lambda: TwoStage(fraction=0.2, medium_rounds=0), "medium_rounds=0"),
        (lambda: TwoStage(fraction=0.2, medium_rounds=1, medium=1.5), "medium=1.5"),
        (lambda: UniformFloor(policy=Uniform(), epsilon=0.5), "selects the whole pool"),
        (
            lambda: UniformFloor(policy=RoundWiseUniform(fraction=0.1), epsilon=0.5),
            "explores by itself",
        ),
        (lambda: UniformFloor(policy=Ucb1(fraction=0.1), epsilon=0.5), "explores by itself"),
        (lambda: Mixture(policy=Uniform()), "selects the whole pool"),
        (lambda: Mixture(policy=Ucb1(fraction=0.1)), "divides the rounds by itself"),
        (lambda: Mixture(policy=TopFraction(fraction=0.1), rate=0.0), "rate=0.0"),
        (lambda: Ucb1(fraction=0.1, arms=1), "arms=1"),
        (lambda: Ucb1(fraction=0.1, arms=5, slots=4), "slots=4"),
        (lambda: curriculum(Ucb1(fraction=0.1), rescore_fraction=1.0), "scores are taken once"),
    ],
)
def test_an_impossible_setting_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_draws_are_frozen():
    """A changed word would silently change the order of every run that has been recorded."""
    assert draws(3, 7, 0, 2).tolist() == FROZEN


FROZEN = [16399895268638834694, 1645132711743076622, 13845068504235397883]
