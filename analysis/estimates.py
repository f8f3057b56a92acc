"""How sure a study can be: intervals, effects and ties from replicates. Plain numbers in, plain numbers out.

Replicates of one config differ by their seed alone. Their variance is pooled over all configs (the
mean square error of a one-way ANOVA), because two or three replicates say next to nothing about the
variance of their own config. That assumes the variance to be the same everywhere. Where a quantity has
bounds (shares lie in [0, 1]), so have its intervals: cutting off what cannot be costs no coverage.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, permutations
from math import inf, sqrt
from statistics import fmean

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""Of every interval in a report; 1 - CONFIDENCE is the level of every test."""

_FEW_POINTS = 9
"""Up to so many all orders are gone through: 362,880."""


@dataclass(frozen=True)
class Noise:
    """Variance between replicates of one config, pooled over configs, and its degrees of freedom."""

    variance: float
    dof: int
    bounds: tuple[float, float] = (-inf, inf)
    """Between which the measured quantity lies."""


@dataclass(frozen=True)
class Estimate:
    """A mean; its standard error and the half width of its interval are None if they cannot be known."""

    value: float
    standard_error: float | None
    half_width: float | None
    count: int
    bounds: tuple[float, float] = (-inf, inf)

    @property
    def low(self) -> float | None:
        """Lower end of the interval, at the least the lower bound."""
        return None if self.half_width is None else max(self.value - self.half_width, self.bounds[0])

    @property
    def high(self) -> float | None:
        """Upper end of the interval, at the most the upper bound."""
        return None if self.half_width is None else min(self.value + self.half_width, self.bounds[1])

    @property
    def is_cut(self) -> bool:
        """Whether the interval ends at a bound, and so is not symmetric."""
        if self.half_width is None:
            return False
        low, high = self.bounds
        return self.value - self.half_width < low or self.value + self.half_width > high

    @property
    def bars(self) -> tuple[float, float]:
        """How far the interval reaches down and up; not at all if it is unknown."""
        if self.low is None or self.high is None:
            return 0.0, 0.0
        return self.value - self.low, self.high - self.value


@dataclass(frozen=True)
class LevelMean:
    """The mean of all configs that have one level of a factor."""

    level: Hashable
    estimate: Estimate
    num_configs: int


@dataclass(frozen=True)
class Effect:
    """The difference between a factor's best and its worst level."""

    levels: tuple[LevelMean, ...]
    best: LevelMean
    worst: LevelMean
    half_width: float | None
    p_value: float | None
    matched: bool
    """Levels were compared within the same settings of the other factors; else between whole configs."""

    num_left_out: int
    """Settings of the other factors that lack a level and therefore do not count."""

    @property
    def difference(self) -> float:
        """Best minus worst: negative where lower is better."""
        return self.best.estimate.value - self.worst.estimate.value

    @property
    def excludes_zero(self) -> bool:
        """Whether the effect's interval excludes zero; no interval excludes nothing."""
        return self.half_width is not None and abs(self.difference) > self.half_width


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation over configs."""

    rho: float
    p_value: float
    num_configs: int

    @property
    def is_significant(self) -> bool:
        """Whether it differs from zero, at the level of every test."""
        return self.p_value < 1 - CONFIDENCE


@dataclass(frozen=True)
class Interaction:
    """F test of the additive model's lack of fit: do the factors act independently of each other?"""

    statistic: float
    dof: tuple[int, int]
    p_value: float


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean; of equal values their value, from which `fmean` may differ in the last digit."""
    values = tuple(values)
    return values[0] if min(values) == max(values) else fmean(values)


def pool(groups: Iterable[Sequence[float]], bounds: tuple[float, float] = (-inf, inf)) -> Noise:
    """Pooled variance within groups: sum of squares about each group's mean over sum(R_i - 1)."""
    squares, dof = 0.0, 0
    for group in groups:
        if group:
            middle = mean(group)
            squares += sum((value - middle) ** 2 for value in group)
            dof += len(group) - 1
    return Noise(squares / dof if dof else inf, dof, bounds)


def estimate_mean(values: Sequence[float], noise: Noise, num_compared: int = 1) -> Estimate | None:
    """Mean of one config's replicates with its t interval; None without a value.

    The intervals of `num_compared` estimates cover together what one covers alone (Bonferroni).
    """
    if not values:
        return None
    return _estimate(mean(values), 1 / len(values), noise, len(values), num_compared)


def estimate_means(
    groups: Mapping[str, Sequence[float]], bounds: tuple[float, float] = (-inf, inf)
) -> dict[str, Estimate]:
    """Means of configs by name, without those that have no value, with the noise pooled over all of them.

    Where replicates agree to the last digit, and not for want of samples as shares may, the quantity is
    constant (no subspace, no style divergence): that config has no error, and tells nothing of the others'.
    """
    groups = {name: values for name, values in groups.items() if values}
    is_share = bounds[1] == 1
    constant = {name for name, each in groups.items() if len(set(each)) == 1 < len(each) and not is_share}
    noise = pool((each for name, each in groups.items() if name not in constant), bounds)
    found = {
        name: estimate_mean(each, Noise(0.0, 1, bounds) if name in constant else noise)
        for name, each in groups.items()
    }
    return {name: estimate for name, estimate in found.items() if estimate}


def estimate_difference(
    first: Sequence[float], second: Sequence[float], noise: Noise, num_compared: int = 1
) -> Estimate:
    """Mean of one config's replicates minus that of another's, intervals as in `estimate_mean`.

    The bounds of the quantity are none of a difference.
    """
    factor, count = 1 / len(first) + 1 / len(second), len(first) + len(second)
    return _estimate(
        mean(first) - mean(second), factor, Noise(noise.variance, noise.dof), count, num_compared
    )


def estimate_mean_of_configs(
    groups: Sequence[Sequence[float]], noise: Noise, num_compared: int = 1
) -> Estimate:
    """Unweighted mean of several configs' means, of variance noise * sum(1 / R) / n^2."""
    value = mean(mean(group) for group in groups)
    factor = sum(1 / len(group) for group in groups) / len(groups) ** 2
    return _estimate(value, factor, noise, sum(len(group) for group in groups), num_compared)


def differences(first: Mapping[str, float], second: Mapping[str, float]) -> list[float]:
    """First minus second for each name, as of a trial, that both have, in the order of the first."""
    return [value - second[name] for name, value in first.items() if name in second]


def differs_from_zero(estimate: Estimate, noise: Noise, num_compared: int = 1) -> float | None:
    """Two-sided p-value of the estimate's t test against zero, times `num_compared` (Bonferroni).

    None if its error cannot be known.
    """
    if estimate.standard_error is None:
        return None
    p_value = 2 * float(stats.t.sf(_ratio(estimate.value, estimate.standard_error), noise.dof))
    return min(1.0, num_compared * p_value)


def tied_with_best(
    best: Sequence[float], others: Sequence[Sequence[float]], noise: Noise
) -> list[bool | None]:
    """Whether each other config cannot be told from the best: Tukey and Kramer's test, at the level of 5 %
    for all pairs of configs together, since the best one is picked by looking.

    None where it cannot be said: without values, or without replicates.
    """
    compared = [index for index, other in enumerate(others) if best and other and noise.dof]
    if not compared:
        return [None] * len(others)
    least = _range_quantile(CONFIDENCE, len(compared) + 1, noise.dof)
    ties: list[bool | None] = [None] * len(others)
    for index in compared:
        error = sqrt(noise.variance * (1 / len(best) + 1 / len(others[index])) / 2)
        ties[index] = _ratio(mean(best) - mean(others[index]), error) <= least
    return ties


def resample(groups: Sequence[Sequence[Sequence[float]]], draws: int, seed: int = 0) -> np.ndarray:
    """Means of configs as other seeds might have given them: a bootstrap of the replicates' residuals.

    Each draw adds to a config's mean the mean of as many residuals as it has replicates, drawn from
    those of all configs (the assumption of `pool`) and widened by sqrt(R / (R - 1)), which makes
    their variance that of `pool`. What was measured on the same trial stays together.

    Args:
        groups: for each config its replicates, each of them a vector of quantities.
        draws: how many studies to draw.
        seed: of the draws.

    Returns:
        `[draw, config, quantity]`; without replicates the means themselves, unchanged.
    """
    arrays = [np.asarray(group, float) for group in groups]
    means = np.stack([array.mean(0) for array in arrays])
    widened = [
        (array - mean) * sqrt(len(array) / (len(array) - 1))
        for array, mean in zip(arrays, means, strict=True)
        if len(array) > 1
    ]
    residuals = np.concatenate(widened) if widened else np.zeros((1, means.shape[1]))
    rng = np.random.default_rng(seed)
    noise = [residuals[rng.integers(len(residuals), size=(draws, len(array)))].mean(1) for array in arrays]
    resampled: np.ndarray = means + np.stack(noise, axis=1)
    return resampled


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the order given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def level_effect(
    cells: Mapping[Hashable, Mapping[Hashable, Sequence[float]]],
    noise: Noise,
    *,
    lower_is_better: bool = False,
    num_factors: int = 1,
) -> Effect | None:
    """The effect of a factor with levels; None if fewer than two levels have values.

    A grid is compared within the settings of the other factors that every level has, so that no
    other factor shifts the difference, and its error is the noise between replicates. Where most
    settings lack a level (random or adaptive sampling) whole configs are compared: their means are
    the observations, and the variance between configs of one level is the error.

    Best and worst are chosen by looking, so the interval is Tukey and Kramer's for the range of all
    levels (with two levels it is the t interval), and Bonferroni's over `num_factors` factors.

    Args:
        cells: for each level, in order, the replicates' values of each setting of the other factors.
        noise: variance between replicates of one config.
        lower_is_better: whether the smallest mean is the best.
        num_factors: factors whose effects the study looks at.
    """
    present = {level: row for level, row in cells.items() if row}
    if len(present) < 2:
        return None
    settings = set().union(*present.values())
    shared = settings.intersection(*present.values())
    matched = 2 * len(shared) >= len(settings)
    if matched:
        error = noise
        means = [
            LevelMean(
                level, estimate_mean_of_configs([row[setting] for setting in shared], noise), len(shared)
            )
            for level, row in present.items()
        ]
    else:
        error = pool([[mean(values) for values in row.values()] for row in present.values()], noise.bounds)
        means = [_level_mean(level, row, error) for level, row in present.items()]
    ordered = sorted(means, key=lambda mean: mean.estimate.value, reverse=not lower_is_better)
    half_width, p_value = _range_interval(ordered, error, num_factors)
    left_out = len(settings) - len(shared) if matched else 0
    return Effect(tuple(means), ordered[0], ordered[-1], half_width, p_value, matched, left_out)


def rank_correlation(x: Sequence[float], y: Sequence[float], num_factors: int = 1) -> Correlation | None:
    """Spearman's correlation, its p-value times `num_factors`; None below four points or without spread.

    Up to nine points the p-value is exact, over all orders: a t distribution calls noise significant there.
    """
    x, y = ([float(f"{value:.12g}") for value in each] for each in (x, y))  # equal but for rounding: tied
    if len(x) < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rho, p_value = stats.spearmanr(x, y)
    if len(x) <= _FEW_POINTS:
        ranks, others = (stats.rankdata(each) - (len(each) + 1) / 2 for each in (x, y))
        sums = ranks[_orders(len(x))] @ others  # of quarters, so without rounding
        p_value = (abs(sums) >= abs(ranks @ others)).mean()
    return Correlation(float(rho), min(1.0, float(p_value) * num_factors), len(x))


def interaction(cells: Mapping[tuple[Hashable, ...], Sequence[float]], noise: Noise) -> Interaction | None:
    """Test whether effects simply add up, on a grid: `cells` maps each config's levels to its replicates.

    The additive model is fitted to the configs' means by least squares, weighted by replicates; what
    it leaves over is compared with the noise. None if nothing is left over, or no noise is known.
    """
    filled = {levels: values for levels, values in cells.items() if values}
    if not filled or not noise.dof or not noise.variance:
        return None
    columns = [np.ones(len(filled))]
    for factor in zip(*filled, strict=True):
        columns += [
            np.array([level == other for level in factor], float) for other in sorted(set(factor), key=repr)
        ]
    weights = np.sqrt([len(values) for values in filled.values()])
    design = np.stack(columns, axis=1) * weights[:, None]
    means = np.array([mean(values) for values in filled.values()]) * weights
    solution, _, rank, _ = np.linalg.lstsq(design, means, rcond=None)
    dof = len(filled) - int(rank)
    if dof == 0:
        return None
    statistic = float(((means - design @ solution) ** 2).sum()) / dof / noise.variance
    return Interaction(statistic, (dof, noise.dof), float(stats.f.sf(statistic, dof, noise.dof)))


def _level_mean(level: Hashable, row: Mapping[Hashable, Sequence[float]], error: Noise) -> LevelMean:
    """Mean of a level's configs, each one observation."""
    value = mean(mean(values) for values in row.values())
    return LevelMean(level, _estimate(value, 1 / len(row), error, len(row)), len(row))


def _estimate(value: float, factor: float, noise: Noise, count: int, num_compared: int = 1) -> Estimate:
    """An estimate whose variance is noise times factor."""
    if not noise.dof:
        return Estimate(value, None, None, count, noise.bounds)
    error = sqrt(noise.variance * factor)
    return Estimate(value, error, _t_quantile(noise.dof, num_compared) * error, count, noise.bounds)


def _range_interval(
    ordered: Sequence[LevelMean], error: Noise, num_factors: int
) -> tuple[float | None, float | None]:
    """Half width and p-value of the difference of the outermost levels; None without degrees of freedom."""
    first, last = ordered[0].estimate, ordered[-1].estimate
    if first.standard_error is None or last.standard_error is None:
        return None, None
    scale = sqrt((first.standard_error**2 + last.standard_error**2) / 2)
    confidence = 1 - (1 - CONFIDENCE) / num_factors
    p_value = _range_tail(_ratio(first.value - last.value, scale), len(ordered), error.dof)
    return _range_quantile(confidence, len(ordered), error.dof) * scale, min(1.0, p_value * num_factors)


def _ratio(difference: float, error: float) -> float:
    """|difference| / error, also where all replicates agree exactly."""
    if error:
        return abs(difference) / error
    return inf if difference else 0.0


@cache
def _orders(num_points: int) -> np.ndarray:
    """All of them: positions `[order, point]`."""
    places = chain.from_iterable(permutations(range(num_points)))
    return np.fromiter(places, np.int8).reshape(-1, num_points)


@cache
def _t_quantile(dof: int, num_compared: int) -> float:
    return float(stats.t.isf((1 - CONFIDENCE) / 2 / num_compared, dof))


@cache
def _range_quantile(confidence: float, num_levels: int, dof: int) -> float:
    """Quantile of Tukey's studentized range; of two levels it is sqrt(2) times Student's t."""
    if num_levels == 2:
        return sqrt(2) * float(stats.t.ppf((1 + confidence) / 2, dof))
    return float(stats.studentized_range.ppf(confidence, num_levels, dof))


def _range_tail(ratio: float, num_levels: int, dof: int) -> float:
    if num_levels == 2:
        return 2 * float(stats.t.sf(ratio / sqrt(2), dof))
    return float(stats.studentized_range.sf(ratio, num_levels, dof))
