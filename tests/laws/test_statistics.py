"""Laws of the statistics: closed forms, scipy's own answers, and coverage by simulation."""

import numpy as np
import pytest
import scipy.stats

from research.evaluate.folds import fold_difference, fold_interval
from research.evaluate.power import (
    detectable_difference,
    detectable_over_seeds,
    detectable_paired_difference,
    paired_items,
    paired_power,
    unpaired_items,
    unpaired_power,
)
from research.evaluate.statistics import (
    LEVEL,
    POWER,
    holm,
    influence,
    mcnemar,
    mean_interval,
    overlap_at,
    paired_bootstrap,
    paired_difference,
    proportion,
    ratio_interval,
    spearman,
)

CLOSED_FORM = 1e-9  # float64 arithmetic against a formula written out by hand
SIMULATIONS = 400
COVERAGE_NOISE = 4 * (0.95 * 0.05 / SIMULATIONS) ** 0.5  # four binomial standard errors


def test_folds_are_compared_with_the_variance_of_what_they_share():
    """10 runs of 5 folds: the error is sqrt(1 + 10 / 4) times that of independent runs."""
    differences = np.random.default_rng(5).normal(0.3, 0.2, 10)
    found = fold_difference(differences, 5)
    error = scipy.stats.sem(differences) * np.sqrt(1 + 10 / 4)
    assert found.high - found.value == pytest.approx(scipy.stats.t.ppf(0.975, 9) * error)
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(found.value) / error, 9))
    estimate = fold_interval(differences, 5)
    assert (estimate.low, estimate.high) == (found.low, found.high)
    assert np.isnan(fold_interval([0.7], 5).low)
    assert fold_difference([0.5, 0.5], 2).p == 0.0


def test_folds_of_a_rule_that_differs_by_its_rows_alone_rarely_seem_to_differ():
    """Means over rows, of which each fold leaves out a fifth: what they share is seen as such."""
    rng, found = np.random.default_rng(3), 0
    for _ in range(SIMULATIONS):
        first, second = rng.normal(0, 1, (2, 50))
        part = np.arange(50) % 5
        losses = [
            [np.mean((x[part == f] - x[part != f].mean()) ** 2) for f in range(5)]
            for x in (first, second)
        ]
        found += fold_difference(np.subtract(*losses), 5).p < LEVEL
    assert found / SIMULATIONS < 0.05 + COVERAGE_NOISE


def test_a_mean_has_students_interval():
    values = [0.61, 0.58, 0.66]
    estimate = mean_interval(values)
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
    assert estimate.value == pytest.approx(1.85 / 3, abs=CLOSED_FORM)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=CLOSED_FORM)
    assert estimate.count == 3


def test_one_value_has_no_interval_and_no_value_is_an_error():
    assert np.isnan(mean_interval([0.5]).low)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_a_proportion_has_wilsons_interval():
    k, n, z = 99, 230, scipy.stats.norm.ppf(0.975)
    p = k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    estimate = proportion(k, n)
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half), abs=1e-9)


@pytest.mark.parametrize(("successes", "count"), [(0, 7), (7, 7)])
def test_a_proportion_at_its_edge_keeps_an_interval_inside_zero_and_one(successes, count):
    estimate = proportion(successes, count)
    assert 0 <= estimate.low < estimate.high <= 1


def test_the_influence_of_items_averages_to_the_ratio():
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 40, size=53)
    sums = counts * rng.gamma(2.0, 1.0, size=53)
    assert influence(sums, counts).mean() == pytest.approx(sums.sum() / counts.sum(), abs=1e-9)
    equal = np.full(53, 4)
    assert influence(sums, equal) == pytest.approx(sums / 4, abs=CLOSED_FORM)


def test_yes_no_items_get_wilsons_interval_and_others_students():
    assert ratio_interval([1, 0, 1, 1, 0], np.ones(5)) == proportion(3, 5)
    values = [0.25, 0.5, 1.0, 0.75]
    assert ratio_interval(values, np.ones(4)) == mean_interval(values)
    assert ratio_interval([0, 0, 0], [2, 5, 3]) == proportion(0, 3)
    assert ratio_interval([2, 5, 3], [2, 5, 3]) == proportion(3, 3)


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(SIMULATIONS):
        counts = rng.integers(1, 30, size=80)
        level = rng.normal(2.0, 0.5, size=80) + 0.01 * counts  # longer items are harder
        sums = counts * level
        truth = np.mean([c * (2.0 + 0.01 * c) for c in range(1, 30)]) / np.mean(range(1, 30))
        estimate = ratio_interval(sums, counts)
        hits += estimate.low <= truth <= estimate.high
    assert abs(hits / SIMULATIONS - 0.95) < COVERAGE_NOISE


def test_the_paired_bootstrap_agrees_with_the_normal_interval_for_many_items():
    rng = np.random.default_rng(3)
    differences = rng.normal(0.05, 0.4, size=1_013)
    found = paired_bootstrap(differences)
    normal = mean_interval(differences)
    width = normal.high - normal.low
    tolerance = 0.05 * width  # Monte Carlo error of 9,999 resamples, about 2 % of the width
    assert found.low == pytest.approx(normal.low, abs=tolerance)
    assert found.high == pytest.approx(normal.high, abs=tolerance)
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    assert found == paired_bootstrap(differences)


def test_equal_arms_do_not_differ():
    assert paired_bootstrap(np.zeros(11)).p == 1.0
    assert paired_difference(np.zeros((3, 11))).p == 1.0
    assert mcnemar([1, 0, 1], [1, 0, 1]).p == 1.0


def test_one_seed_leaves_the_paired_t_test_over_items():
    rng = np.random.default_rng(4)
    first, second = rng.normal(0.3, 1, size=41), rng.normal(0, 1, size=41)
    expected = scipy.stats.ttest_rel(first, second)
    found = paired_difference((first - second)[None, :])
    assert found.p == pytest.approx(expected.pvalue, abs=CLOSED_FORM)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_one_item_leaves_the_paired_t_test_over_seeds():
    found = paired_difference(np.array([[0.02], [0.05], [0.01]]))
    assert found.p == pytest.approx(scipy.stats.ttest_1samp([0.02, 0.05, 0.01], 0).pvalue)


@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize(("seed_spread", "item_spread"), [(0.2, 1.0), (0.05, 0.3), (0.5, 0.1)])
def test_the_luck_of_seeds_is_in_the_interval(seeds, seed_spread, item_spread):
    rng = np.random.default_rng(5)
    items = 61
    hits = naive = 0
    for _ in range(SIMULATIONS):
        d = (
            seed_spread * rng.normal(size=(seeds, 1))
            + item_spread * rng.normal(size=(1, items))
            + rng.normal(size=(seeds, items))
        )
        found, over_items = paired_difference(d), mean_interval(d.mean(axis=0))
        hits += found.low <= 0 <= found.high
        naive += over_items.low <= 0 <= over_items.high
    assert hits / SIMULATIONS > 0.95 - COVERAGE_NOISE  # conservative where a component is small
    if seed_spread == 0.5:  # items alone would call the luck of the seeds a finding
        assert naive / SIMULATIONS < 0.9


def test_the_detectable_difference_is_seen_four_times_in_five():
    rng = np.random.default_rng(6)
    items, spread = 67, 0.5
    truth = paired_difference(spread * rng.normal(size=(1, 100_003))).detectable
    truth *= np.sqrt(100_003 / items)  # what 67 items of this spread can see
    seen = sum(
        paired_difference(truth + spread * rng.normal(size=(1, items))).p < 0.05
        for _ in range(SIMULATIONS)
    )
    assert abs(seen / SIMULATIONS - 0.8) < 4 * (0.8 * 0.2 / SIMULATIONS) ** 0.5


def test_mcnemar_counts_only_the_items_on_which_the_arms_disagree():
    first = [1] * 9 + [0] * 2 + [1] * 20 + [0] * 6
    second = [0] * 9 + [1] * 2 + [1] * 20 + [0] * 6
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second, found.items) == (9, 2, 37)
    assert found.rate == pytest.approx(11 / 37)
    assert found.p == pytest.approx(2 * (1 + 11 + 55) / 2**11)  # binomial tail, by hand
    with pytest.raises(ValueError, match="yes/no"):
        mcnemar([0.5, 1], [1, 1])


def test_holm_steps_down_and_never_reverses_an_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_spearman_is_scipys_and_ignores_what_was_never_scored():
    rng = np.random.default_rng(7)
    first = rng.normal(size=29)
    second = first + rng.normal(size=29)
    found = spearman(np.append(first, np.nan), np.append(second, 3.0))
    assert found.value == pytest.approx(scipy.stats.spearmanr(first, second).statistic)
    assert found.count == 29
    assert -1 < found.low < found.value < found.high < 1
    assert np.isnan(spearman(np.ones(9), first[:9]).value)
    assert spearman(first, 2 * first).value == pytest.approx(1.0)


def test_overlap_is_one_with_itself_and_zero_with_its_reverse():
    scores = np.arange(12.0)
    assert overlap_at(scores, scores, 0.25) == 1.0
    assert overlap_at(scores, -scores, 0.25) == 0.0
    assert overlap_at([3, 2, 1, 0], [3, 0, 2, 1], 0.5) == 0.5
    with pytest.raises(ValueError, match="fraction=0"):
        overlap_at(scores, scores, 0)


def test_two_rates_need_as_many_items_as_the_published_tables_say():
    """R's `power.prop.test`: its documentation's two examples, and the textbook's 388."""
    assert unpaired_power(0.50, 0.75, 50) == pytest.approx(0.740, abs=5e-4)
    assert unpaired_items(0.50, 0.75, power=0.90) == pytest.approx(76.7, abs=0.05)
    assert np.ceil(unpaired_items(0.5, 0.6)) == 388
    assert unpaired_items(0.5, 0.6, level=0.01) > unpaired_items(0.5, 0.6)


def test_with_230_items_nobody_sees_less_than_13_points_unpaired():
    assert 100 * detectable_difference(0.43, 230) == pytest.approx(13, abs=0.1)
    assert unpaired_items(0.4043, 0.4696) > 900  # 40.43 against 46.96, as was published
    falls = detectable_difference(0.99, 20)  # a rise by a point cannot show
    assert unpaired_items(0.99, 0.99 - falls) == pytest.approx(20)
    assert detectable_difference(0.5, 3) == float("inf")


@pytest.mark.parametrize(("rate", "items"), [(0.0, 61), (0.2, 230), (0.43, 1_009)])
def test_what_is_detectable_needs_just_these_items(rate, items):
    assert unpaired_items(rate, rate + detectable_difference(rate, items)) == pytest.approx(items)
    psi = 0.2 + rate / 2
    delta = detectable_paired_difference(psi, items)
    assert paired_items(delta, psi) == pytest.approx(items)
    assert paired_power(delta, psi, items) == pytest.approx(POWER)
    assert detectable_paired_difference(psi, items, level=LEVEL / 9) > delta


def test_pairing_gains_nothing_where_answers_have_nothing_in_common():
    rate = 0.43  # independent answers disagree at 2 p (1 - p)
    paired = detectable_paired_difference(2 * rate * (1 - rate), 100_003)
    assert paired == pytest.approx(detectable_difference(rate, 100_003), rel=0.01)
    assert detectable_paired_difference(0.01, 20) == float("inf")


def test_paired_power_is_that_of_the_exact_distribution():
    """All outcomes of 211 items with P(only first) = 0.20, P(only second) = 0.10, enumerated.

    The approximation is of McNemar's test with the normal critical value.
    """
    items, up, down = 211, 0.20, 0.10
    counts = np.arange(items + 1)
    first = scipy.stats.binom.pmf(counts, items, up)
    power = 0.0
    for b, weight in zip(counts, first, strict=True):
        c = counts[: items - b + 1]
        rejected = np.abs(b - c) > scipy.stats.norm.ppf(0.975) * np.sqrt(b + c)
        power += weight * scipy.stats.binom.pmf(c, items - b, down / (1 - up))[rejected].sum()
    assert paired_power(up - down, up + down, items) == pytest.approx(power, abs=0.02)


@pytest.mark.parametrize(("seeds", "seed_spread"), [(3, 0.02), (5, 0.05), (5, 0.0)])
def test_a_difference_called_detectable_is_seen_at_least_four_times_in_five(seeds, seed_spread):
    rng = np.random.default_rng(8)
    items, psi = 503, 0.3
    truth = detectable_over_seeds(psi, items, seeds, seed_spread)
    up, seen = (psi + truth) / 2, 0
    for _ in range(SIMULATIONS):
        item = rng.random(items)  # the same item is hard for every seed
        d = np.where(item < up, 1.0, np.where(item < psi, -1.0, 0.0))
        luck = seed_spread * rng.normal(size=(seeds, 1))
        seen += paired_difference(d + luck + np.zeros((seeds, items))).p < LEVEL
    assert seen / SIMULATIONS > POWER - 4 * (POWER * (1 - POWER) / SIMULATIONS) ** 0.5


def test_more_seeds_see_more_only_where_seeds_are_what_varies():
    few, many = (detectable_over_seeds(0.2, 1_000, seeds, 0.05) for seeds in (3, 10))
    assert many < 0.6 * few
    few, many = (detectable_over_seeds(0.2, 1_000, seeds, 0.0) for seeds in (3, 10))
    assert many == pytest.approx(few)
