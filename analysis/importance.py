"""Which swept field matters how much: fANOVA, refitted to resampled replicates, checked by other trees."""

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from analysis.estimates import CONFIDENCE, resample
from analysis.findings import Findings
from analysis.results import Config, Factor, Results

_DRAWS = 40
"""Resampled studies on which an interval rests."""

_MOST_CONFIGS = 100
"""More are thinned out at random."""

_FEWEST_CONFIGS = 6
"""With fewer a forest has nothing to learn from."""

_TREES = 16
_MAX_DEPTH = 6
"""Of fANOVA's trees, whose cost grows with the square of their leaves."""

_DRAWN = 256
"""Settings of the other fields on which a total index rests."""


@dataclass(frozen=True)
class Importance:
    """How much of the objective's variance over the configs one swept field explains by itself."""

    name: str
    share: float
    """fANOVA's (Hutter, Hoos & Leyton-Brown 2014); what the shares leave of one is interactions and noise."""

    low: float | None
    high: float | None
    """Ends of the middle 95 % of what resampled replicates give; None without replicates. That tells how far
    other seeds move the share, not where it would lie without their noise."""

    total: float
    """The share that it explains together with its interactions (Sobol's total index), by trees of another
    kind: a check, which may lie below the share by as much as these differ from fANOVA's."""


MOST_NOISE = 0.8
"""A larger share of noise leaves the fields nothing to explain."""


@dataclass(frozen=True)
class _Field:
    """A swept field as columns of numbers; a simplex has one a weight, any other field has one."""

    name: str
    factors: tuple[Factor, ...]

    def encode(self, configs: Sequence[Config]) -> np.ndarray:
        """`[config, column]`: a level's position, or the number itself, its logarithm on a log scale."""
        columns = [[factor.position(factor.value(config)) for config in configs] for factor in self.factors]
        return np.array(columns).T


def noise_share(findings: Findings) -> float | None:
    """How much of the variance of the configs' means noise between seeds makes; None if it is unknown."""
    results, noise = findings.results, findings.noise
    groups = [values for config in results.configs if (values := results.values(config, results.objective))]
    if len(groups) < 2 or not noise.dof:
        return None
    variance = float(np.var([fmean(values) for values in groups], ddof=1))
    expected = noise.variance * fmean(1 / len(values) for values in groups)
    return min(1.0, expected / variance) if variance else None


def weigh(findings: Findings) -> list[Importance]:
    """The importance of each swept field that varies, largest first; none where that cannot be said.

    Nor is it said where nearly all that configs differ in is noise between seeds (`MOST_NOISE`).

    What only some configs have is left out: a forest would have to make up its value in the others.
    """
    results = findings.results
    measured = [
        (finding.config, values)
        for finding in findings.configs
        if (values := results.values(finding.config, results.objective))
    ]
    fields = list(_fields(results, [config for config, _ in measured]))
    if len(fields) < 2 or len(measured) < _FEWEST_CONFIGS:
        return []
    if len(measured) > _MOST_CONFIGS:
        kept = np.random.default_rng(0).choice(len(measured), _MOST_CONFIGS, replace=False)
        measured = [measured[index] for index in sorted(kept)]
    configs = [config for config, _ in measured]
    means = np.array([fmean(values) for _, values in measured])
    if np.ptp(means) == 0 or (noise_share(findings) or 0) > MOST_NOISE:
        return []
    blocks = [field.encode(configs) for field in fields]
    studies = [means]
    if any(len(values) > 1 for _, values in measured):
        studies += list(resample([[[value] for value in values] for _, values in measured], _DRAWS)[..., 0])
    shares = _fanova(fields, blocks, studies)
    totals = _totals(blocks, means)
    tail = 50 * (1 - CONFIDENCE)
    found = []
    for index, field in enumerate(fields):
        first, *others = shares[:, index].tolist()
        low, high = np.percentile(others, (tail, 100 - tail)).tolist() if others else (None, None)
        found.append(Importance(field.name, first, low, high, float(totals[index])))
    return sorted(found, key=lambda importance: -importance.share)


def _fields(results: Results, configs: Sequence[Config]) -> list[_Field]:
    """The fields that vary and that all configs have, with their factors."""
    grouped: dict[str, list[Factor]] = {}
    for factor in results.factors:
        values: set[Hashable] = {factor.value(config) for config in configs}
        if len(values) > 1 and None not in values:
            grouped.setdefault(factor.path, []).append(factor)
    return [_Field(results.swept[path], tuple(factors)) for path, factors in grouped.items()]


def _fanova(
    fields: Sequence[_Field], blocks: Sequence[np.ndarray], studies: Sequence[np.ndarray]
) -> np.ndarray:
    """Shares of variance `[study, field]`; a simplex has the sum of its weights' shares."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook it misses widgets that are of no use here
        import optuna  # slow to import, and not every report needs it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    columns: dict[str, list[float]] = {}
    owners: list[int] = []
    for index, (field, block) in enumerate(zip(fields, blocks, strict=True)):
        for factor, column in zip(field.factors, block.T, strict=True):
            distributions[factor.name] = (
                optuna.distributions.IntDistribution(0, len(factor.levels) - 1)
                if factor.levels
                else optuna.distributions.FloatDistribution(float(column.min()), float(column.max()))
            )
            columns[factor.name] = [int(value) if factor.levels else float(value) for value in column]
            owners.append(index)
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.create_trial(
                params=dict(zip(columns, row, strict=True)), distributions=distributions, value=0.0
            )
            for row in zip(*columns.values(), strict=True)
        ]
    )
    shares = np.zeros((len(studies), len(fields)))
    for index, values in enumerate(studies):
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, max_depth=_MAX_DEPTH, seed=0)
        found = evaluator.evaluate(study, target=lambda trial, y=values: float(y[trial.number]))  # type: ignore[misc]
        for name, owner in zip(columns, owners, strict=True):
            shares[index, owner] += found[name]
    return shares


def _totals(blocks: Sequence[np.ndarray], values: np.ndarray) -> list[float]:
    """Sobol's total index of each field, all columns of a field together: E[Var(f | the others)] / Var(f).

    The function f is that of extremely randomised trees, which on a grid is the means themselves; fields are
    drawn independently from the values of the configs.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    trees = ExtraTreesRegressor(4 * _TREES, random_state=0).fit(np.hstack(blocks), values)
    size = len(values)
    drawn = np.random.default_rng(0).integers(size, size=(len(blocks), _DRAWN))
    totals = []
    for field in range(len(blocks)):
        rows = np.repeat(drawn, size, axis=1)
        rows[field] = np.tile(np.arange(size), _DRAWN)
        drawings = np.hstack([block[each] for block, each in zip(blocks, rows, strict=True)])
        predictions = trees.predict(drawings).reshape(_DRAWN, size)
        totals.append(float(predictions.var(axis=1).mean() / predictions.var()))
    return totals
