"""Laws of schedules: the peak is reached, the end is what was asked for, nothing turns back."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.optimizers.schedules import Constant, Cosine, Linear, WarmupStableDecay

PEAK = 3e-4
FLOAT32 = 1e-6  # relative: single-precision arithmetic of one formula
DECAYING = [
    Linear(peak_lr=PEAK, warmup_fraction=0.2, final_fraction=0.1),
    Cosine(peak_lr=PEAK, warmup_fraction=0.2, final_fraction=0.1),
    WarmupStableDecay(peak_lr=PEAK, warmup_fraction=0.2, decay_fraction=0.3, final_fraction=0.1),
]
ALL = [Constant(peak_lr=PEAK, warmup_fraction=0.2), *DECAYING]
FRACTIONS = np.linspace(0, 1, 41, dtype=np.float32)


@jax.jit
def follow(schedule, fractions=FRACTIONS):
    return jax.vmap(schedule)(jnp.asarray(fractions))


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_the_warm_up_rises_in_a_straight_line_from_zero_to_the_peak(schedule):
    rates = np.asarray(follow(schedule))
    assert rates[0] == 0
    assert rates.max() == pytest.approx(PEAK, rel=FLOAT32)
    rising = FRACTIONS <= 0.2
    np.testing.assert_allclose(rates[rising], PEAK * FRACTIONS[rising] / 0.2, rtol=FLOAT32)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_nothing_rises_after_the_warm_up(schedule):
    rates = np.asarray(follow(schedule))[FRACTIONS >= 0.2]
    assert (np.diff(rates) <= 0).all()


@pytest.mark.parametrize("schedule", DECAYING, ids=str)
def test_the_end_is_the_final_fraction_of_the_peak(schedule):
    assert float(schedule(1.0)) == pytest.approx(0.1 * PEAK, rel=FLOAT32)
    assert float(schedule(1.5)) == float(schedule(1.0))


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_without_a_warm_up_the_peak_comes_first(schedule):
    bare = dataclasses.replace(schedule, warmup_fraction=0.0)
    assert float(bare(0.0)) == pytest.approx(PEAK, rel=FLOAT32)


def test_shapes_between_start_and_end_are_the_ones_their_names_say():
    middle = 0.6  # halfway between the end of the warm-up and the end
    assert float(DECAYING[0](middle)) == pytest.approx(0.55 * PEAK, rel=FLOAT32)
    assert float(DECAYING[1](middle)) == pytest.approx(0.55 * PEAK, rel=FLOAT32)
    quarter = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi / 4))
    assert float(DECAYING[1](0.4)) == pytest.approx(quarter * PEAK, rel=FLOAT32)
    assert float(DECAYING[2](middle)) == pytest.approx(PEAK, rel=FLOAT32)
    assert float(DECAYING[2](0.85)) == pytest.approx(0.55 * PEAK, rel=FLOAT32)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_no_field_is_dead(schedule):
    reference = np.asarray(follow(schedule))
    for field in dataclasses.fields(schedule):
        other = dataclasses.replace(schedule, **{field.name: 0.7 * getattr(schedule, field.name)})
        assert (np.asarray(follow(other)) != reference).any(), field.name


def test_schedules_that_differ_in_numbers_share_one_compilation():
    follow(DECAYING[1])
    compiled = follow._cache_size()
    follow(Cosine(peak_lr=1.0, warmup_fraction=0.0, final_fraction=0.5))
    assert follow._cache_size() == compiled


def test_a_field_out_of_range_is_an_error_that_says_its_value():
    with pytest.raises(ValueError, match=r"peak_lr=-1\.0.*warmup_fraction=2\.0"):
        Linear(peak_lr=-1.0, warmup_fraction=2.0)
    with pytest.raises(ValueError, match=r"decay_fraction=0\.5 .*leave room"):
        WarmupStableDecay(peak_lr=PEAK, warmup_fraction=0.6, decay_fraction=0.5)
