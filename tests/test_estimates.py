from math import sqrt
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.estimates import (
    estimate_mean,
    estimate_means,
    holm,
    interaction,
    level_effect,
    mean,
    pool,
    rank_correlation,
    resample,
    tied_with_best,
)


def test_pooled_noise_matches_numbers_worked_by_hand():
    noise = pool([[1.0, 3.0], [2.0, 2.0, 5.0], [7.0], []])
    assert (noise.variance, noise.dof) == (pytest.approx(8 / 3), 3)


def test_pooled_noise_is_the_mean_square_error_of_an_anova():
    groups = np.random.default_rng(0).normal(size=(5, 3))
    between = 3 * groups.mean(1).var(ddof=1)
    assert between / pool(groups.tolist()).variance == pytest.approx(stats.f_oneway(*groups).statistic)


@given(st.floats(-1e6, 1e6), st.integers(1, 9))
def test_mean_of_equal_values_is_their_value(value, count):
    assert mean([value] * count) == value


@pytest.mark.parametrize("sizes", [(3,) * 8, (5,) * 8, (7, 2, 5, 3, 6, 4, 2, 7)])
def test_equal_values_have_no_noise_that_could_make_anything_significant(sizes):
    for value in (0.1, 0.7, 0.994):  # of which sums divided by their number are not always the value
        groups = [[value] * size for size in sizes]
        noise = pool(groups)
        assert noise.variance == 0
        assert interaction({(i // 2, i % 2): each for i, each in enumerate(groups)}, noise) is None
        assert tied_with_best(groups[0], groups[1:], noise) == [True] * 7
        effect = level_effect({i % 2: {i // 2: each} for i, each in enumerate(groups)}, noise)
        assert effect.difference == 0


def test_a_constant_has_no_error_and_tells_nothing_of_the_others_unless_it_is_a_share():
    groups = {"none": [], "constant": [0.0, 0.0], "other": [1.0, 3.0]}
    found = estimate_means(groups)
    assert (found["constant"].standard_error, found["other"].standard_error) == (0, pytest.approx(1))
    found = estimate_means(groups, (0, 1))  # variance 2 with 1 of 2 degrees of freedom: 1
    assert {name: each.standard_error for name, each in found.items()} == pytest.approx(
        {"constant": sqrt(1 / 2), "other": sqrt(1 / 2)}
    )


def test_interval_of_a_mean_matches_numbers_worked_by_hand():
    # Squares 0.02 + 0.02 over 2 degrees of freedom: variance 0.02, standard error 0.1, t 4.302653.
    noise = pool([[0.5, 0.7], [0.2, 0.4]])
    estimate = estimate_mean([0.5, 0.7], noise)
    assert estimate is not None
    assert estimate.standard_error == pytest.approx(0.1)
    assert (estimate.low, estimate.high) == pytest.approx((0.6 - 0.4302653, 0.6 + 0.4302653))


def test_interval_of_a_mean_is_unknown_without_replicates():
    estimate = estimate_mean([0.5], pool([[0.5], [0.7]]))
    assert estimate is not None
    assert (estimate.value, estimate.half_width) == (0.5, None)
    assert estimate_mean([], pool([[0.5, 0.6]])) is None


def test_effect_of_two_levels_is_the_t_test():
    a, b = [0.61, 0.64, 0.59], [0.52, 0.55, 0.50]
    effect = level_effect({"a": {(): a}, "b": {(): b}}, pool([a, b]))
    oracle = stats.ttest_ind(a, b)
    low, high = oracle.confidence_interval()
    assert effect.difference == pytest.approx(fmean(a) - fmean(b))
    assert effect.half_width == pytest.approx((high - low) / 2)
    assert effect.p_value == pytest.approx(oracle.pvalue)


def test_effect_of_more_levels_is_tukeys_honest_difference():
    groups = np.random.default_rng(1).normal([[0.0], [0.4], [1.5]], 0.5, (3, 4))
    effect = level_effect(
        {name: {(): row.tolist()} for name, row in enumerate(groups)}, pool(groups.tolist())
    )
    oracle = stats.tukey_hsd(*groups)
    first, last = effect.best.level, effect.worst.level
    bounds = oracle.confidence_interval()
    assert effect.p_value == pytest.approx(oracle.pvalue[first, last], rel=1e-3)
    assert effect.half_width == pytest.approx((bounds.high - bounds.low)[first, last] / 2, rel=1e-3)


def test_effect_is_averaged_over_the_settings_that_every_level_has():
    # Setting z lacks level b: left out, else its low value would pass for an effect of a.
    cells = {
        "a": {"x": [0.6, 0.8], "y": [0.5, 0.5], "z": [0.0, 0.0]},
        "b": {"x": [0.4, 0.4], "y": [0.3, 0.5]},
    }
    noise = pool([values for row in cells.values() for values in row.values()])
    effect = level_effect(cells, noise)
    # Means 0.6 and 0.4; noise 0.04 / 5 = 0.008; variance of each mean 0.008 (1/2 + 1/2) / 4 = 0.002.
    assert effect.difference == pytest.approx(0.2)
    assert effect.half_width == pytest.approx(2.570582 * sqrt(0.004))
    assert (effect.matched, effect.num_left_out) == (True, 1)


def test_effect_compares_whole_configs_where_levels_share_no_setting():
    cells = {"a": {1: [0.6, 0.7], 2: [0.8, 0.9]}, "b": {3: [0.2, 0.3], 4: [0.4, 0.5]}}
    effect = level_effect(cells, pool([[0.6, 0.6001]]))
    oracle = stats.ttest_ind([0.65, 0.85], [0.25, 0.45])
    assert not effect.matched
    assert effect.p_value == pytest.approx(oracle.pvalue)


def test_effect_has_the_smallest_mean_as_best_where_lower_is_better():
    effect = level_effect(
        {1: {(): [5.0, 6.0]}, 2: {(): [1.0, 2.0]}}, pool([[1.0, 2.0]]), lower_is_better=True
    )
    assert (effect.best.level, effect.difference) == (2, -4.0)


@given(st.floats(0.1, 10), st.floats(-5, 5), st.permutations(["a", "b", "c"]))
def test_effect_ignores_units_origin_and_order_of_levels(scale, shift, order):
    cells = {
        "a": {1: [0.1, 0.3], 2: [0.4, 0.2]},
        "b": {1: [0.5, 0.4], 2: [0.7, 0.9]},
        "c": {1: [0.2], 2: [0.1]},
    }
    moved = {
        level: {
            setting: [scale * value + shift for value in values] for setting, values in cells[level].items()
        }
        for level in order
    }
    effect, other = (
        level_effect(each, pool([values for row in each.values() for values in row.values()]))
        for each in (cells, moved)
    )
    assert (other.best.level, other.worst.level) == (effect.best.level, effect.worst.level)
    assert other.half_width == pytest.approx(scale * effect.half_width)
    assert other.p_value == pytest.approx(effect.p_value, rel=1e-4)


def test_effect_needs_two_levels_and_survives_replicates_that_agree():
    assert level_effect({"a": {(): [0.5, 0.6]}, "b": {}}, pool([[0.5, 0.6]])) is None
    equal = level_effect({"a": {(): [0.5, 0.5]}, "b": {(): [0.6, 0.6]}}, pool([[0.5, 0.5], [0.6, 0.6]]))
    assert (equal.p_value, equal.half_width) == (0.0, 0.0)


def test_interaction_of_two_by_two_matches_numbers_worked_by_hand():
    # d = 0.9 - 0.5 - 0.4 + 0.4 = 0.4; F = R d^2 / 4 / noise with R = 2 and noise 0.0008 / 4 = 0.0002.
    cells = {(a, b): [mean - 0.01, mean + 0.01] for (a, b), mean in
             {(0, 0): 0.9, (0, 1): 0.5, (1, 0): 0.4, (1, 1): 0.4}.items()}  # fmt: skip
    test = interaction(cells, pool(cells.values()))
    assert (test.statistic, test.dof) == (pytest.approx(2 * 0.16 / 4 / 0.0002), (1, 4))
    additive = {(a, b): [a + b - 0.01, a + b + 0.01] for a in (0, 1) for b in (0, 1, 2)}
    assert interaction(additive, pool(additive.values())).p_value == pytest.approx(1.0)


def test_holm_matches_numbers_worked_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_ties_are_differences_that_are_not_significant():
    groups = [[0.70, 0.71], [0.70, 0.70], [0.50, 0.51], []]
    assert tied_with_best(groups[0], groups[1:], pool(groups)) == [True, False, None]
    assert tied_with_best([0.7], [[0.1]], pool([[0.7], [0.1]])) == [None]


def test_ties_are_those_of_tukeys_test():
    verdicts = []
    for seed in range(10):
        groups = np.random.default_rng(seed).normal([[0.0], [0.3], [0.8], [1.2]], 0.5, (4, 5)).tolist()
        best, *others = sorted(groups, key=fmean, reverse=True)
        oracle = stats.tukey_hsd(best, *others).pvalue[0, 1:]
        assert tied_with_best(best, others, pool(groups)) == (oracle > 0.05).tolist()
        verdicts += (oracle > 0.05).tolist()
    assert 0.2 < fmean(verdicts) < 0.8


def test_rank_correlation_is_spearmans():
    x, y = [*range(1, 11)], [2, 1, 3, 5, 4, 7, 6, 9, 8, 10]
    found = rank_correlation(x, y, num_factors=3)
    assert found.rho == pytest.approx(1 - 6 * 8 / (10 * 99))
    assert found.p_value == pytest.approx(3 * stats.spearmanr(x, y).pvalue)
    assert rank_correlation([1.0] * 6, [*range(6)]) is None


def test_values_that_differ_by_rounding_alone_are_tied_in_a_rank_correlation():
    x = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert rank_correlation(x, [0.3, 0.1 + 0.2, 0.5, 0.7, 0.6]).rho == pytest.approx(
        stats.spearmanr(x, [1, 1, 2, 4, 3]).statistic
    )


def test_of_few_points_the_correlations_p_value_is_exact():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]).p_value == pytest.approx(2 / 24)
    assert rank_correlation([1, 2, 3, 4], [40, 30, 20, 10], num_factors=20).p_value == 1
    nine = rank_correlation([*range(9)], [*range(9)], num_factors=20)
    assert nine.p_value == pytest.approx(20 * 2 / 362_880)
    for y in ([2, 1, 3, 5, 4, 6], [1, 1, 1, 2, 3, 2], [3.5, 1.5, 0.5, 2.5, 5.5, 4.5]):
        x = [1.0, 2.0, 2.0, 3.0, 4.0, 7.0]
        oracle = stats.permutation_test(
            (x,),
            lambda order, other=y: abs(stats.spearmanr(order, other).statistic),
            permutation_type="pairings",
            n_resamples=np.inf,
            alternative="greater",
        )
        assert rank_correlation(x, y).p_value == pytest.approx(oracle.pvalue)


def test_intervals_of_shares_end_at_their_bounds():
    noise = pool([[0.99, 1.0], [0.5, 0.9]], bounds=(0.0, 1.0))
    estimate = estimate_mean([0.99, 1.0], noise)
    assert estimate.half_width > 0.4
    assert (estimate.high, estimate.is_cut) == (1.0, True)
    assert estimate.bars == pytest.approx((estimate.half_width, 0.005))
    free = estimate_mean([0.99, 1.0], pool([[0.99, 1.0], [0.5, 0.9]]))
    assert (free.high > 1, free.is_cut) == (True, False)


def test_resampled_means_have_the_variance_of_the_pooled_noise():
    groups = np.random.default_rng(0).normal(size=(40, 3, 2)).tolist()
    draws = resample(groups, 4000)
    assert draws.shape == (4000, 40, 2)
    for axis in range(2):
        noise = pool([[pair[axis] for pair in group] for group in groups])
        assert draws[..., axis].var(0).mean() == pytest.approx(noise.variance / 3, rel=0.05)
    assert draws.mean(0) == pytest.approx(np.mean(groups, axis=1), abs=0.05)


def test_resampled_replicates_keep_together_what_one_trial_measured():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(20, 3))
    draws = resample(np.stack([first, 2 * first], axis=2).tolist(), 10)
    assert draws[..., 1] == pytest.approx(2 * draws[..., 0])


def test_resampled_means_without_replicates_are_the_means():
    assert (resample([[[1.0]], [[2.0]]], 3) == [[[1.0], [2.0]]] * 3).all()


def test_intervals_cover_the_true_means_and_effects():
    rng = np.random.default_rng(0)
    studies, means, effects = 500, 0, 0
    truth = np.array([[0.3, 0.5], [0.2, 0.4], [0.3, 0.3]])
    for _ in range(studies):
        values = truth[..., None] + 0.1 * rng.standard_normal((3, 2, 3))
        noise = pool(values.reshape(6, 3).tolist())
        estimate = estimate_mean(values[1, 1].tolist(), noise)
        means += estimate.low < 0.4 < estimate.high
        effect = level_effect({b: {a: values[a, b].tolist() for a in range(3)} for b in range(2)}, noise)
        true = truth.mean(0)[effect.best.level] - truth.mean(0)[effect.worst.level]
        effects += abs(effect.difference - true) < effect.half_width
    assert 0.92 < means / studies < 0.98
    assert 0.92 < effects / studies < 0.98


def test_null_effects_are_rarely_significant():
    rng = np.random.default_rng(1)
    studies, alarms, ties = 500, 0, 0
    for _ in range(studies):
        values = rng.normal(size=(3, 2, 2))  # levels of one factor, of another, replicates
        noise = pool(values.reshape(6, 2).tolist())
        first = {a: {b: values[a, b].tolist() for b in range(2)} for a in range(3)}
        second = {b: {a: values[a, b].tolist() for a in range(3)} for b in range(2)}
        effects = [level_effect(cells, noise, num_factors=2) for cells in (first, second)]
        alarms += any(effect.excludes_zero for effect in effects)
        assert all(effect.excludes_zero == (effect.p_value < 0.05) for effect in effects)
        best, *others = sorted(rng.normal(size=(12, 3)).tolist(), key=fmean, reverse=True)
        ties += all(tied_with_best(best, others, pool([best, *others])))
    assert 0.005 < alarms / studies < 0.06
    assert 0.94 < ties / studies < 0.98
