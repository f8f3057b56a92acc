"""What a study found: configs with their estimates, effects of the factors, trade-offs."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from analysis.confirmation import Confirmed, confirmed
from analysis.estimates import (
    Correlation,
    Effect,
    Estimate,
    Interaction,
    Noise,
    differs_from_zero,
    estimate_mean_of_configs,
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
from analysis.results import Config, Factor, Quantity, Results

_DRAWS = 200
"""Resampled studies that tell how surely a config is on a front."""

Cells = dict[Hashable, dict[Hashable, list[float]]]


@dataclass(frozen=True)
class Column:
    """A number that each config has: what the table of configs shows of its test split, or its cost."""

    key: str
    title: str
    quantities: tuple[Quantity, ...]
    """Measured, and summed up, but for shares, which are averaged; none for the cost."""

    @property
    def decimals(self) -> int:
        """Digits to show."""
        return min((quantity.decimals for quantity in self.quantities), default=1)

    @property
    def lower_is_better(self) -> bool:
        """Whether it improves downwards."""
        return all(quantity.lower_is_better for quantity in self.quantities)

    @property
    def bounds(self) -> tuple[float, float]:
        """The values that it can take."""
        return self.quantities[0].bounds if self.quantities else (-inf, inf)

    def values(self, config: Config, results: Results) -> dict[str, float]:
        """By the id of each complete replicate."""
        if not self.quantities:
            return {trial.trial_id: trial.device_s for trial in config.complete}
        num_summed = len(self.quantities) if self.bounds[1] == 1 else 1
        return {name: value / num_summed for name, value in results.total(config, self.quantities).items()}

    def by_config(self, results: Results) -> dict[str, list[float]]:
        """One value a complete replicate of each config, by its hash."""
        return {each.config_hash: [*self.values(each, results).values()] for each in results.configs}


COST = Column("device_s", "device seconds", ())
"""What a trial costs."""


@dataclass(frozen=True)
class ConfigFinding:
    """One config, numbered by its rank, and what its replicates say."""

    number: int
    config: Config
    estimates: Mapping[str, Estimate | None]
    """By the key of `Findings.columns`."""

    is_best: bool
    tied: bool | None
    """Not significantly different from the best on the test split; None for the best, or if unknown."""

    @property
    def objective(self) -> Estimate | None:
        """The study's objective on the test split."""
        return self.estimates.get("objective")


@dataclass(frozen=True)
class FactorFinding:
    """A factor and its effect, if it has levels, or its rank correlation with the objective."""

    factor: Factor
    effect: Effect | None
    correlation: Correlation | None


@dataclass(frozen=True)
class Crossing:
    """Mean objective for each pair of levels of two factors, over the settings of the others that all
    pairs have."""

    along: Factor
    lines: Factor
    means: Mapping[tuple[Hashable, Hashable], Estimate]
    configs: Mapping[tuple[Hashable, Hashable], Sequence[Config]]


@dataclass(frozen=True)
class Contrast:
    """By how much a score of the product of posteriors exceeds that of their mixture."""

    quantity: Quantity
    difference: Estimate
    """Within trials, averaged over configs."""

    p_value: float | None
    """Holm's correction for all contrasts; None without replicates."""


@dataclass(frozen=True)
class FrontPoint:
    """A config in the plane of two columns that both matter."""

    finding: ConfigFinding
    x: Estimate
    y: Estimate
    on_front: bool
    """No other config is better in one and at least as good in the other."""

    attainment: float | None
    """Share of resampled studies that have it on the front; None without replicates."""


@dataclass(frozen=True)
class Findings:
    """All numbers of a report."""

    results: Results
    columns: tuple[Column, ...]
    configs: tuple[ConfigFinding, ...]
    factors: tuple[FactorFinding, ...]
    noise: Noise
    interaction: Interaction | None
    crossing: Crossing | None
    confirmed: tuple[Confirmed, ...]
    """Configs on fresh seeds, best first; empty without a confirmation."""

    @property
    def best(self) -> ConfigFinding | None:
        """The config with the best validation objective, if any trial completed."""
        return next((finding for finding in self.configs if finding.is_best), None)

    @property
    def effects(self) -> list[FactorFinding]:
        """Factors with levels that can be compared: first those whose effects exclude zero, largest first."""
        found = ((finding, finding.effect) for finding in self.factors if finding.effect)
        ordered = sorted(found, key=lambda each: (not each[1].excludes_zero, -abs(each[1].difference)))
        return [finding for finding, _ in ordered]

    @property
    def correlations(self) -> list[FactorFinding]:
        """Continuous factors: first those whose correlations are significant, strongest first."""
        found = ((finding, finding.correlation) for finding in self.factors if finding.correlation)
        ordered = sorted(found, key=lambda each: (not each[1].is_significant, -abs(each[1].rho)))
        return [finding for finding, _ in ordered]

    @property
    def num_compared(self) -> int:
        """Factors whose effects were looked at, for which intervals and p-values are corrected."""
        return len(self.effects) + len(self.correlations)


def find(results: Results) -> Findings:
    """Estimate everything that the report shows."""
    columns = tuple(_columns(results))
    table = {column.key: column.by_config(results) for column in columns}
    means = {column.key: estimate_means(table[column.key], column.bounds) for column in columns}
    objective = table.get("objective", {})
    noise = pool(objective.values(), results.objective.bounds)
    ties = _ties(results, objective, noise)
    configs = tuple(
        ConfigFinding(
            number=results.numbers[config.config_hash],
            config=config,
            estimates={key: found.get(config.config_hash) for key, found in means.items()},
            is_best=config is results.configs[0] and config.validation is not None,
            tied=ties.get(config.config_hash),
        )
        for config in results.configs
    )
    factors = _factor_findings(results, objective, noise)
    return Findings(
        results=results,
        columns=columns,
        configs=configs,
        factors=factors,
        noise=noise,
        interaction=_interaction(results, objective, noise),
        crossing=_crossing(results, factors, objective, noise),
        confirmed=confirmed(results),
    )


def grouped(
    results: Results, quantities: Iterable[Quantity], title: Callable[[Quantity], str]
) -> list[Column]:
    """Columns of what was measured: of quantities that have the same title the sum, of shares the mean."""
    found: dict[str, list[Quantity]] = {}
    for quantity in quantities:
        if results.last.get(quantity):
            found.setdefault(title(quantity), []).append(quantity)
    return [Column(name, name, tuple(own)) for name, own in found.items()]


def estimates(results: Results, quantity: Quantity) -> dict[str, Estimate]:
    """Each config's mean of a quantity, by config hash, with the noise pooled over all configs."""
    return estimate_means(results.by_config(quantity), quantity.bounds)


def leaders(
    replicates: Mapping[str, Sequence[float]], noise: Noise | None = None, *, lower_is_better: bool = False
) -> set[str]:
    """Names of the replicates with the best mean, and of those that cannot be told from it; none if all are.

    By the noise that the intervals beside them have, where others tell of it too, else by their own.
    """
    values = {name: each for name, each in replicates.items() if each}
    if not values:
        return set()
    choose = min if lower_is_better else max
    means = {name: mean(each) for name, each in values.items()}
    best = choose(values, key=lambda name: means[name])
    others = [name for name in values if name != best]
    ties = tied_with_best(values[best], [values[name] for name in others], noise or pool(values.values()))
    alike = {name for name, tied in zip(others, ties, strict=True) if tied or means[name] == means[best]}
    return {best} | alike if len(alike) < len(others) else set()


def contrasts(results: Results) -> list[Contrast]:
    """Product against mixture, for each test score that has both and does not tell what was given."""
    found, noises = [], []
    for quantity in results.last:
        other = quantity._replace(posterior="mixture")
        told = quantity.is_of_given or quantity.attribute
        if quantity.posterior != "product" or quantity.split != "test" or told or other not in results.last:
            continue
        first, second = results.last[quantity], results.last[other]
        differences = {name: first[name] - second[name] for name in first if name in second}
        ids = [[trial.trial_id for trial in config.complete] for config in results.configs]
        groups = [[differences[name] for name in each if name in differences] for each in ids]
        groups = [group for group in groups if group]
        if groups:
            noise = pool(groups)
            found.append((quantity, estimate_mean_of_configs(groups, noise)))
            noises.append(noise)
    p_values = [differs_from_zero(each, noise) for (_, each), noise in zip(found, noises, strict=True)]
    adjusted = iter(holm([p_value for p_value in p_values if p_value is not None]))
    return [
        Contrast(quantity, difference, None if p_value is None else next(adjusted))
        for (quantity, difference), p_value in zip(found, p_values, strict=True)
    ]


def front(findings: Findings, x: Column, y: Column) -> list[FrontPoint]:
    """The configs that have both columns, and which of them no other beats."""
    results = findings.results
    groups: list[tuple[ConfigFinding, list[tuple[float, float]]]] = []
    for each in findings.configs:
        first, second = x.values(each.config, results), y.values(each.config, results)
        pairs = [(first[name], second[name]) for name in first if name in second]
        if pairs:
            groups.append((each, pairs))
    if not groups:
        return []
    signs = np.array([1 if column.lower_is_better else -1 for column in (x, y)])
    xs, ys = (
        estimate_means(
            {each.config.config_hash: [pair[axis] for pair in pairs] for each, pairs in groups}, column.bounds
        )
        for axis, column in enumerate((x, y))
    )
    means = np.array([[found[each.config.config_hash].value for found in (xs, ys)] for each, _ in groups])
    on_front = _undominated(means * signs)
    attained = None
    if any(len(pairs) > 1 for _, pairs in groups):
        draws = resample([pairs for _, pairs in groups], _DRAWS)
        attained = np.mean([_undominated(draw * signs) for draw in draws], axis=0)
    points = []
    for index, (finding, _) in enumerate(groups):
        name, share = finding.config.config_hash, None if attained is None else float(attained[index])
        points.append(FrontPoint(finding, xs[name], ys[name], bool(on_front[index]), share))
    return points


def front_of_all(findings: Findings) -> tuple[list[Column], list[tuple[ConfigFinding, bool]]]:
    """The study's objectives, and whether a config is one that no other beats in all of them.

    Configs that lack one of the objectives are left out.
    """
    keys = ("objective", *(each.metric for each in findings.results.objectives[1:]))
    columns = [column for column in findings.columns if column.key in keys]
    signs = np.array([1 if column.lower_is_better else -1 for column in columns])
    found = [
        (each, [estimate.value for estimate in known if estimate])
        for each in findings.configs
        if all(known := [each.estimates[column.key] for column in columns])
    ]
    means = np.reshape([values for _, values in found], (len(found), len(columns))) * signs
    beaten = (((means <= each).all(1) & (means < each).any(1)).any() for each in means)
    return columns, [(each, not is_beaten) for (each, _), is_beaten in zip(found, beaten, strict=True)]


def column_of(results: Results, metric: str) -> Column | None:
    """A metric of the test split, given all modalities or nothing: of all together, else of each."""
    every = results.find(metric, "+".join(sorted(results.modalities))) or results.find(metric)
    each = (Quantity(metric, target=name) for name in results.modalities)
    found = (every,) if every else tuple(quantity for quantity in each if quantity in results.last)
    return Column(metric, Quantity(metric).title, found) if found else None


def _undominated(points: np.ndarray) -> np.ndarray:
    """Which points `[point, axis]` no other beats, where smaller is better on both axes."""
    places, place = np.unique(points, axis=0, return_inverse=True)
    y = places[:, 1]
    best_before = np.concatenate([[inf], np.minimum.accumulate(y)[:-1]])
    mask: np.ndarray = (y < best_before)[place.ravel()]
    return mask


def _columns(results: Results) -> Iterator[Column]:
    """The columns that the study has measured."""
    every = "+".join(sorted(results.modalities))
    if results.last.get(results.objective):
        yield Column("objective", results.objective.label, (results.objective,))
    for further in results.objectives[1:]:
        if results.last.get(further):
            yield Column(further.metric, further.label, (further,))
    for key, title, quantity in (
        ("probe", "joint probe accuracy", results.find("probe_accuracy", every)),
        ("attributes", "joint probe precision", results.find("mean_probe_average_precision", every)),
        ("random", "random coherence", results.find("random_coherence")),
    ):
        if quantity and quantity.metric not in {each.metric for each in results.objectives}:
            yield Column(key, title, (quantity,))
    targets = [Quantity("reconstruction", target=name) for name in results.modalities]
    reconstructions = tuple(quantity for quantity in targets if quantity in results.last)
    if reconstructions:
        yield Column("reconstruction", "reconstruction", reconstructions)
    loss = results.find("loss")
    if loss and results.objective.metric != "loss":
        yield Column("loss", "loss", (loss,))


def _ties(results: Results, objective: Mapping[str, list[float]], noise: Noise) -> dict[str, bool | None]:
    if not results.configs or results.configs[0].validation is None or not objective:
        return {}
    best, *others = (config.config_hash for config in results.configs)
    return dict(
        zip(others, tied_with_best(objective[best], [objective[name] for name in others], noise), strict=True)
    )


def _factor_findings(
    results: Results, objective: Mapping[str, list[float]], noise: Noise
) -> tuple[FactorFinding, ...]:
    """Effects and correlations; looked at twice, because their number decides their correction."""

    def look(num_factors: int) -> list[FactorFinding]:
        found = []
        for factor in results.factors:
            measured = [
                config
                for config in results.configs
                if objective.get(config.config_hash) and factor.value(config) is not None
            ]
            effect, correlation = None, None
            if factor.levels:
                cells = _cells(factor, measured, objective)
                effect = level_effect(
                    cells, noise, lower_is_better=results.lower_is_better, num_factors=num_factors
                )
            else:
                x = [float(factor.value(config)) for config in measured]
                y = [mean(objective[config.config_hash]) for config in measured]
                correlation = rank_correlation(x, y, num_factors)
            found.append(FactorFinding(factor, effect, correlation))
        return found

    return tuple(look(max(1, sum(bool(each.effect or each.correlation) for each in look(1)))))


def _cells(factor: Factor, configs: Sequence[Config], objective: Mapping[str, list[float]]) -> Cells:
    """Values by level and by the setting of all other swept fields."""
    cells: Cells = {level: {} for level in factor.levels}
    for config in configs:
        row = cells[factor.value(config)]
        row.setdefault(setting_of(config, factor), []).extend(objective[config.config_hash])
    return cells


def setting_of(config: Config, *factors: Factor) -> Hashable:
    """Of all swept fields but those of the factors."""
    paths = {factor.path for factor in factors}
    return tuple(value for path, value in sorted(config.params.items()) if path not in paths)


def _interaction(results: Results, objective: Mapping[str, list[float]], noise: Noise) -> Interaction | None:
    """Of all factors together, where all have levels and always apply."""
    factors = [factor for factor in results.factors if len(factor.levels) > 1]
    if len(factors) < 2 or any(not factor.levels for factor in results.factors):
        return None
    cells: dict[tuple[Hashable, ...], list[float]] = {}
    for config in results.configs:
        levels = tuple(factor.value(config) for factor in factors)
        if any(level is None for level in levels):
            return None
        cells.setdefault(levels, []).extend(objective.get(config.config_hash, ()))
    return interaction(cells, noise)


def _crossing(
    results: Results, findings: Sequence[FactorFinding], objective: Mapping[str, list[float]], noise: Noise
) -> Crossing | None:
    """The two factors of the largest effects on a grid; the one with more levels goes along the axis."""
    matched = [finding for finding in findings if finding.effect and finding.effect.matched]
    largest = sorted(matched, key=lambda finding: -abs(finding.effect.difference) if finding.effect else 0)[
        :2
    ]
    if len(largest) < 2:
        return None
    along, lines = sorted((finding.factor for finding in largest), key=lambda factor: -len(factor.levels))
    cells: dict[tuple[Hashable, Hashable], dict[Hashable, list[Config]]] = {}
    for config in results.configs:
        pair = along.value(config), lines.value(config)
        if objective.get(config.config_hash) and None not in pair:
            cells.setdefault(pair, {}).setdefault(setting_of(config, along, lines), []).append(config)
    shared = set.intersection(*map(set, cells.values())) if cells else set()
    if not shared:
        return None
    configs = {
        pair: [config for setting, group in row.items() if setting in shared for config in group]
        for pair, row in cells.items()
    }
    means = {
        pair: estimate_mean_of_configs([objective[config.config_hash] for config in group], noise)
        for pair, group in configs.items()
    }
    return Crossing(along, lines, means, configs)
