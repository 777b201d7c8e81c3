"""Rounds, queues, budgets and what is remembered of the pool."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import curricula
from research.core.parts import describe, rebuild
from research.curriculum.ahead import ids_ahead, note_ahead, take_ahead
from research.curriculum.budget import EqualCompute, EqualSteps
from research.curriculum.curriculum import Curriculum
from research.curriculum.estimators.free import Free
from research.curriculum.estimators.prefix_entropy import PrefixEntropy
from research.curriculum.policies.round_wise_uniform import RoundWiseUniform
from research.curriculum.policies.top_fraction import TopFraction
from research.curriculum.policies.uniform import Uniform
from research.curriculum.state import from_arrays
from research.data.pool import Data
from research.data.sources import Jsonl
from research.huggingface.pretrained import Pretrained

SIZE = 23  # a prime pool
OTHER = Pretrained(folder="another")
GUIDE = Data(sources=(Jsonl(path="never-opened.jsonl"),))
PRESETS = {
    "edco": curricula.edco(),
    "edco_release": curricula.edco_release(),
    "static_edco": curricula.static_edco(),
    "easiest": curricula.easiest(),
    "round_wise_random": curricula.round_wise_random(),
    "random": curricula.random(),
    "dynamic_loss": curricula.dynamic_loss(),
    "dynamic_entropy": curricula.dynamic_entropy(),
    "static_perplexity": curricula.static_perplexity(),
    "shortest_first": curricula.shortest_first(),
    "free_loss": curricula.free_loss(),
    "first_token": curricula.first_token(),
    "option_letters": curricula.option_letters(),
    "ifd": curricula.ifd(),
    "excess_loss": curricula.excess_loss(OTHER),
    "rho_loss": curricula.rho_loss(OTHER),
    "edco_by": curricula.edco_by(OTHER),
    "uncertain_but_learnable": curricula.uncertain_but_learnable(),
    "less": curricula.less(GUIDE),
    "deft": curricula.deft(GUIDE, OTHER),
    "window": curricula.window(),
    "softmax_loss": curricula.softmax_loss(),
    "edco_with_floor": curricula.edco_with_floor(),
    "competence": curricula.competence(),
    "self_paced": curricula.self_paced(threshold_nats=6.5),
    "medium_then_hard": curricula.medium_then_hard(),
    "given_order": curricula.given_order(field="level"),
    "bandit": curricula.bandit(),
}


def scored(curriculum, state, round_, seed=0):
    """Give every id that is asked for a score that depends on id and round."""
    ids = curriculum.ids_to_score(state, round_, seed)
    scores = np.float32([(id_ * 7 + round_ * 3) % 11 for id_ in ids])
    signals = scores + 5 * np.arange(len(curriculum.measured))[:, None]
    return curriculum.rescore(state, ids, signals, round_, flops=5.0 * len(ids))


def opened(curriculum, rounds=1, size=SIZE, seed=0, per_round=0):
    """Open `rounds` rounds, handing `per_round` ids out in each."""
    state = curriculum.init(size)
    for round_ in range(rounds):
        state = curriculum.open_round(scored(curriculum, state, round_, seed), round_, seed)
        if per_round:
            _, state = curriculum.plan(state, per_round, seed)
    return state


@given(size=st.integers(2, 40), cycles=st.integers(1, 6), rows=st.integers(1, 7))
def test_each_example_is_measured_once_ahead_whatever_the_cycles_and_whoever_stops(
    size, cycles, rows
):
    curriculum = curricula.edco(rounds=2, fraction=0.5, rescore_fraction=0.7, score_ahead=True)
    state = opened(curriculum, size=size)
    assert not len(ids_ahead(curricula.edco(rounds=2), state, 1, 1, rows, 0))
    wanted, seen = curriculum.ids_to_score(state, 1, 0), []
    for cycle in range(cycles):
        ids = ids_ahead(curriculum, state, cycle + 1, cycles, rows, 0)
        assert len(ids) % rows == 0 or cycle == cycles - 1
        seen.append(ids)
        before = state
        state = note_ahead(curriculum, state, ids, ids / 4, step=cycle, flops=3.0 * len(ids))
        state = from_arrays(state.arrays())  # a checkpoint between any two cycles
        assert not len(ids_ahead(curriculum, state, cycle + 1, cycles, rows, 0))
        np.testing.assert_array_equal(state.score_X, before.score_X)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), wanted)
    taken = take_ahead(curriculum, state, 1)
    np.testing.assert_array_equal(taken.score_X[wanted], wanted / 4)
    for cycle, ids in enumerate(seen):
        assert (taken.scored_step_X[ids] == cycle).all()
    assert (taken.scored_round_X[wanted] == 1).all()
    assert taken.scored_rows == size + len(wanted)
    assert taken.scoring_flops == 5.0 * size + 3.0 * len(wanted)
    assert same(take_ahead(curriculum, taken, 1), taken)
    last = curriculum.open_round(taken, 1, 0)
    assert not len(ids_ahead(curriculum, last, 1, 1, rows, 0))


def test_scores_ahead_of_nothing_are_refused():
    with pytest.raises(ValueError, match="score_ahead=True takes no effect with rounds=1"):
        curricula.edco(rounds=1, reset_optimizer_each_round=False, score_ahead=True)
    with pytest.raises(ValueError, match="no later round scores anything"):
        curricula.static_edco(score_ahead=True)


def same(a, b):
    return all(np.array_equal(x, b.arrays()[k], equal_nan=True) for k, x in a.arrays().items())


def edco(**changes):
    """A small EDCO curriculum."""
    held = {
        "policy": TopFraction(fraction=0.3),
        "estimator": PrefixEntropy(prefix_tokens=5),
        "rounds": 3,
        "reset_optimizer_each_round": True,
        "allow_repeats": True,
        "budget": EqualSteps(),
        "rescore_fraction": 1.0,
    }
    return Curriculum(**(held | changes))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_travels_as_json(name):
    assert rebuild(describe(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_plans_as_many_ids_as_are_asked_for(name):
    curriculum = PRESETS[name]
    state = opened(curriculum, curriculum.rounds)
    ids, state = curriculum.plan(state, 3 * SIZE + 2, 0)
    assert len(ids) == 3 * SIZE + 2
    assert state.times_used_X.sum() == len(ids)


@pytest.mark.parametrize("name", PRESETS)
@given(cuts=st.lists(st.integers(0, 40), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_a_plan_does_not_depend_on_where_it_is_cut(name, cuts, seed):
    curriculum = PRESETS[name]
    start = opened(curriculum, seed=seed)
    whole, _ = curriculum.plan(start, sum(cuts), seed)
    pieces, state = [], start
    for count in cuts:
        ids, state = curriculum.plan(state, count, seed)
        pieces.append(ids)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("name", PRESETS)
def test_an_epoch_hands_out_each_selected_id_once_before_any_twice(name):
    curriculum = PRESETS[name]
    state = opened(curriculum)
    selection = state.selection()
    ids, _ = curriculum.plan(state, 3 * len(selection), 0)
    for epoch in ids.reshape(3, -1):
        np.testing.assert_array_equal(np.sort(epoch), selection)


@given(count=st.integers(1, 60), kept=st.integers(0, 60), seed=st.integers(0, 9))
def test_what_found_no_place_comes_first_and_does_not_count(count, kept, seed):
    curriculum, kept = edco(), min(kept, count)
    state = opened(curriculum, seed=seed)
    ids, planned = curriculum.plan(state, count, seed)
    left = ids[kept:][::-1]
    state = curriculum.put_back(planned, left)
    np.testing.assert_array_equal(state.times_used_X, np.bincount(ids[:kept], minlength=SIZE))
    again, _ = curriculum.plan(state, count + 3, seed)
    np.testing.assert_array_equal(again[: len(left)], left)
    after, _ = curriculum.plan(planned, kept + 3, seed)
    np.testing.assert_array_equal(again[len(left) :], after)


def test_only_ids_that_were_handed_out_can_be_put_back():
    curriculum = edco()
    ids, state = curriculum.plan(opened(curriculum), 2, 0)
    foreign = np.setdiff1d(np.arange(SIZE), ids)[:1]
    with pytest.raises(ValueError, match="were not handed out"):
        curriculum.put_back(state, foreign)


@pytest.mark.parametrize("name", PRESETS)
def test_state_survives_a_checkpoint_in_the_middle_of_a_round(name):
    curriculum = PRESETS[name]
    ids, state = curriculum.plan(opened(curriculum), 4, 0)
    state = curriculum.put_back(state, ids[2:])
    arrays = {key: np.array(value) for key, value in state.arrays().items()}
    restored = from_arrays(arrays)
    assert same(state, restored)
    for count in (3, 2 * SIZE):
        ours, state = curriculum.plan(state, count, 0)
        theirs, restored = curriculum.plan(restored, count, 0)
        np.testing.assert_array_equal(ours, theirs)
    assert same(state, restored)


def test_a_foreign_state_is_refused():
    arrays = edco().init(SIZE).arrays()
    del arrays["epoch"]
    with pytest.raises(ValueError, match="lacks \\['epoch'\\]"):
        from_arrays(arrays)


def test_scores_of_another_estimator_are_refused():
    state = opened(edco())
    other = edco(estimator=PrefixEntropy(prefix_tokens=6))
    with pytest.raises(ValueError, match="other settings"):
        other.open_round(state, 1, 0)


def test_rounds_open_in_order():
    curriculum = edco()
    with pytest.raises(ValueError, match="no round is open"):
        curriculum.plan(curriculum.init(SIZE), 1, 0)
    with pytest.raises(ValueError, match="round 2 cannot follow round 0"):
        curriculum.open_round(opened(curriculum), 2, 0)


def test_nothing_is_ever_changed_in_place():
    curriculum = edco()
    state = opened(curriculum, 2, per_round=9)
    before = {key: np.array(value) for key, value in state.arrays().items()}
    ids, planned = curriculum.plan(state, 40, 0)
    ids[:] = 0
    curriculum.put_back(planned, planned.queue[:3])
    curriculum.open_round(scored(curriculum, state, 2), 2, 0)
    assert all(np.array_equal(before[k], v, equal_nan=True) for k, v in state.arrays().items())


def test_a_round_is_a_fresh_selection_by_fresh_scores():
    curriculum = edco()
    first, second = opened(curriculum, 1), opened(curriculum, 2)
    assert not np.array_equal(first.selection(), second.selection())
    np.testing.assert_array_equal(second.scored_round_X, np.ones(SIZE))


@pytest.mark.parametrize("policy", [TopFraction(fraction=0.25), RoundWiseUniform(fraction=0.25)])
def test_without_repeats_rounds_share_no_example_and_reach_all(policy):
    curriculum = edco(
        policy=policy,
        rounds=4,
        allow_repeats=False,
        estimator=PrefixEntropy() if policy.uses_scores else None,
        rescore_fraction=1.0 if policy.uses_scores else 0.0,
    )
    state = opened(curriculum, 4, size=24, per_round=6)
    np.testing.assert_array_equal(state.times_used_X, np.ones(24))


def test_without_repeats_an_unused_example_stays_eligible():
    curriculum = edco(rounds=3, allow_repeats=False, rescore_fraction=0.0)
    state = opened(curriculum)
    used, state = curriculum.plan(state, 2, 0)
    state = curriculum.open_round(state, 1, 0)
    assert not np.isin(used, state.selection()).any()
    assert np.isin(opened(curriculum).selection(), np.union1d(used, state.selection())).all()


def test_without_repeats_a_round_hands_out_what_is_left_and_then_says_so():
    curriculum = edco(rounds=3, allow_repeats=False)
    state = opened(curriculum)
    ids, state = curriculum.plan(state, 100, 0)
    assert len(ids) == curriculum.num_selected(SIZE)
    with pytest.raises(ValueError, match="allow_repeats=False"):
        curriculum.plan(state, 1, 0)


def test_a_round_that_selects_nobody_is_refused_as_it_opens(monkeypatch):
    monkeypatch.setattr(TopFraction, "select", lambda *_: np.zeros(0, np.int64))
    with pytest.raises(ValueError, match=f"round 0 selects none of the {SIZE} examples"):
        opened(edco())


def test_a_cool_down_rests_what_was_selected():
    curriculum = edco(rounds=4, cool_down_rounds=2, rescore_fraction=0.0)
    selections = [opened(curriculum, n).selection() for n in (1, 2, 3, 4)]
    assert len(np.unique(np.concatenate(selections[:3]))) == 3 * len(selections[0])
    np.testing.assert_array_equal(selections[3], selections[0])


@given(fraction=st.floats(0, 1), seed=st.integers(0, 9))
def test_rescoring_a_fraction_takes_the_oldest_scores_first(fraction, seed):
    curriculum = edco(rounds=3, rescore_fraction=fraction)
    state = curriculum.init(SIZE)
    for round_ in range(3):
        ids = curriculum.ids_to_score(state, round_, seed)
        assert len(ids) == curriculum.rows_to_score(SIZE, round_)
        ages = round_ - state.scored_round_X
        rest = np.setdiff1d(np.arange(SIZE), ids)
        assert not len(ids) or ages[ids].min() >= ages[rest].max(initial=-1)
        state = curriculum.open_round(scored(curriculum, state, round_, seed), round_, seed)
    rows = sum(curriculum.rows_to_score(SIZE, round_) for round_ in range(3))
    assert (state.scored_rows, state.scoring_flops) == (rows, 5.0 * rows)


def test_which_of_equally_old_scores_are_renewed_depends_on_seed_and_round():
    curriculum = edco(rounds=3, rescore_fraction=0.5)
    state = opened(curriculum)
    chosen = [curriculum.ids_to_score(state, *args) for args in ((1, 0), (1, 1), (2, 0))]
    assert not np.array_equal(chosen[0], chosen[1])
    assert not np.array_equal(chosen[0], chosen[2])


@pytest.mark.parametrize("name", ["random", "round_wise_random", "edco"])
def test_every_epoch_is_shuffled_anew(name):
    state = opened(PRESETS[name], size=97)
    ids, _ = PRESETS[name].plan(state, 2 * len(state.queue), 0)
    first, second = np.split(ids, 2)
    assert not np.array_equal(first, second)


def test_the_control_draws_anew_each_round():
    rounds = [opened(PRESETS["round_wise_random"], n, size=97).selection() for n in (1, 2, 3)]
    assert not np.array_equal(rounds[0], rounds[1])
    assert not np.array_equal(rounds[1], rounds[2])


def test_a_score_that_is_not_finite_is_refused():
    curriculum = edco()
    state = curriculum.init(SIZE)
    with pytest.raises(ValueError, match=r"ids \[4\] are not finite"):
        curriculum.rescore(state, np.array([2, 4]), np.array([1.0, np.inf]), 0)
    with pytest.raises(ValueError, match="need as many scores"):
        curriculum.rescore(state, np.array([2, 2]), np.array([1.0, 1.0]), 0)


def test_the_free_estimator_reads_the_last_report_of_each_example():
    curriculum = curricula.free_loss(fraction=0.5)
    state = opened(curriculum)
    rows = {
        "id": np.array([[3, 5], [3, -1], [7, 9]]),
        "tokens": np.array([[4.0, 2.0], [4.0, 0.0], [5.0, 2.0]]),
        "loss_nats": np.array([[8.0, 3.0], [2.0, 0.0], [np.nan, 1.0]]),
    }
    state = curriculum.observe(state, rows)
    assert state.score_X[[3, 5, 9]].tolist() == [0.5, 1.5, 0.5]
    assert np.isnan(np.delete(state.score_X, [3, 5, 9])).all()
    assert state.scored_round_X[[3, 5, 9]].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="reads 'entropy_nats'"):
        Free(of="entropy").read(rows)


def test_the_free_estimator_sees_the_whole_pool_before_it_chooses():
    curriculum = curricula.free_loss(fraction=0.25, rounds=5)
    state = curriculum.init(24)
    for round_ in range(4):
        state = curriculum.open_round(state, round_, 0)
        ids, state = curriculum.plan(state, 6, 0)
        rows = {"id": ids, "tokens": np.ones(6), "loss_nats": ids.astype(float)}
        state = curriculum.observe(state, rows)
    np.testing.assert_array_equal(state.times_used_X, np.ones(24))
    state = curriculum.open_round(state, 4, 0)
    np.testing.assert_array_equal(state.selection(), np.arange(18, 24))


def test_other_estimators_observe_nothing():
    curriculum = edco()
    state = opened(curriculum)
    assert curriculum.observe(state, {"id": np.array([1])}) is state


def test_equal_compute_pays_for_scoring_with_steps():
    assert EqualSteps().steps(100, 8.0, 1e9) == 100
    budget = EqualCompute()
    assert budget.steps(100, 8.0, 0.0) == 100
    assert budget.steps(100, 8.0, 80.0) == 90
    assert budget.steps(100, 8.0, 81.0) == 89
    assert budget.steps(100, 4.0, 80.0, 8.0) == 180  # cheaper steps than the control's
    assert EqualSteps().steps(100, 4.0, 80.0, 8.0) == 100
    with pytest.raises(ValueError, match=r"as much as 99.5 steps, the control has 100"):
        budget.steps(100, 8.0, 796.0)


@given(
    steps=st.integers(2, 10**6),
    step_flops=st.floats(1e6, 1e15),
    share=st.floats(0, 0.9),
)
def test_equal_compute_neither_overspends_nor_leaves_a_step(steps, step_flops, share):
    scoring = share * (steps - 1) * step_flops
    made = EqualCompute().steps(steps, step_flops, scoring)
    noise = 1e-6 * step_flops
    assert made * step_flops + scoring <= steps * step_flops + noise
    assert (made + 1) * step_flops + scoring > steps * step_flops - noise


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"rounds": 1}, "takes no effect with rounds=1"),
        ({"policy": Uniform()}, "Uniform has none"),
        ({"estimator": None}, "estimator is None"),
        ({"estimator": Free(), "rescore_fraction": 0.0}, "unscored to 'first' or 'last'"),
        ({"rescore_fraction": 1.5}, "expected 0 to 1"),
        (
            {"policy": RoundWiseUniform(fraction=0.3), "estimator": None},
            "rescore_fraction=1.0 takes no effect",
        ),
        ({"cool_down_rounds": -1}, "cool_down_rounds=-1"),
        ({"cool_down_rounds": 1, "allow_repeats": False}, "takes no effect where allow_repeats"),
        ({"rounds": 4, "allow_repeats": False}, "4 rounds in a row select 0.3"),
        ({"rounds": 9, "cool_down_rounds": 3}, "4 rounds in a row select 0.3"),
    ],
)
def test_a_setting_that_cannot_take_effect_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        edco(**changes)


def test_the_same_run_twice_is_the_same_state():
    curriculum = edco(rescore_fraction=0.4)
    first, second = (opened(curriculum, 3, per_round=11, seed=5) for _ in range(2))
    assert same(first, second)
    assert not same(first, opened(curriculum, 3, per_round=11, seed=6))


def test_all_fields_of_the_state_are_in_the_checkpoint():
    state = edco().init(SIZE)
    assert set(state.arrays()) == {field.name for field in dataclasses.fields(state)}
