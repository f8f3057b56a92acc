"""What a study found: configs with their estimates, and effects of the factors."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.estimates import (
    Correlation,
    Effect,
    Estimate,
    Interaction,
    Noise,
    estimate_mean,
    estimate_mean_of_configs,
    interaction,
    level_effect,
    pool,
    rank_correlation,
    tied_with_best,
)
from analysis.results import Config, Factor, Quantity, Results

Cells = dict[Hashable, dict[Hashable, list[float]]]


@dataclass(frozen=True)
class Column:
    """A number that the table of configs shows of each config's test split."""

    key: str
    title: str
    decimals: int
    lower_is_better: bool


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


@dataclass(frozen=True)
class FactorFinding:
    """A factor and its effect, if it has levels, or its rank correlation with the objective."""

    factor: Factor
    effect: Effect | None
    correlation: Correlation | None


@dataclass(frozen=True)
class Crossing:
    """Mean objective for each pair of levels of two factors."""

    along: Factor
    lines: Factor
    means: Mapping[tuple[Hashable, Hashable], Estimate]
    configs: Mapping[tuple[Hashable, Hashable], Sequence[Config]]


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

    @property
    def best(self) -> ConfigFinding | None:
        """The config with the best validation objective, if any trial completed."""
        return next((finding for finding in self.configs if finding.is_best), None)

    @property
    def effects(self) -> list[FactorFinding]:
        """Factors with levels that can be compared, largest effect first."""
        found = [finding for finding in self.factors if finding.effect]
        return sorted(found, key=lambda finding: -abs(finding.effect.difference) if finding.effect else 0)

    @property
    def correlations(self) -> list[FactorFinding]:
        """Continuous factors, strongest correlation first."""
        found = [finding for finding in self.factors if finding.correlation]
        return sorted(found, key=lambda finding: -abs(finding.correlation.rho) if finding.correlation else 0)

    @property
    def num_compared(self) -> int:
        """Factors whose effects were looked at, for which intervals and p-values are corrected."""
        return len(self.effects) + len(self.correlations)


def find(results: Results) -> Findings:
    """Estimate everything that the report shows."""
    table = _columns(results)
    noises = {
        column.key: pool(values[config.config_hash] for config in results.configs) for column, values in table
    }
    objective = next((values for column, values in table if column.key == "objective"), {})
    noise = noises.get("objective", pool([]))
    ties = _ties(results, objective, noise)
    configs = tuple(
        ConfigFinding(
            number=index + 1,
            config=config,
            estimates={
                column.key: estimate_mean(values[config.config_hash], noises[column.key])
                for column, values in table
            },
            is_best=index == 0 and config.validation is not None,
            tied=ties.get(config.config_hash),
        )
        for index, config in enumerate(results.configs)
    )
    factors = _factor_findings(results, objective, noise)
    return Findings(
        results=results,
        columns=tuple(column for column, _ in table),
        configs=configs,
        factors=factors,
        noise=noise,
        interaction=_interaction(results, objective, noise),
        crossing=_crossing(results, factors, objective, noise),
    )


def _columns(results: Results) -> list[tuple[Column, dict[str, list[float]]]]:
    """The columns that the study has measured, each with its values by config hash."""
    every = "+".join(sorted(results.modalities))
    probe, random, loss = (
        results.find("probe_accuracy", every),
        results.find("random_coherence"),
        results.find("loss"),
    )
    found: list[tuple[Column, Sequence[Quantity]]] = []
    if results.last.get(results.objective):
        title = results.objective.label
        lower = results.lower_is_better
        found.append((Column("objective", title, results.objective.decimals, lower), (results.objective,)))
    for key, title, quantity in (
        ("probe", "joint probe accuracy", probe),
        ("random", "random coherence", random),
    ):
        if quantity:
            found.append((Column(key, title, quantity.decimals, lower_is_better=False), (quantity,)))
    targets = [Quantity("reconstruction", target=name) for name in results.modalities]
    reconstructions = [quantity for quantity in targets if quantity in results.last]
    if reconstructions:
        found.append((Column("reconstruction", "reconstruction", 1, lower_is_better=True), reconstructions))
    if loss and results.objective.metric != "loss":
        found.append((Column("loss", "loss", loss.decimals, lower_is_better=True), (loss,)))
    return [
        (column, {config.config_hash: results.total(config, quantities) for config in results.configs})
        for column, quantities in found
    ]


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
                y = [fmean(objective[config.config_hash]) for config in measured]
                correlation = rank_correlation(x, y, num_factors)
            found.append(FactorFinding(factor, effect, correlation))
        return found

    return tuple(look(max(1, sum(bool(each.effect or each.correlation) for each in look(1)))))


def _cells(factor: Factor, configs: Sequence[Config], objective: Mapping[str, list[float]]) -> Cells:
    """Values by level and by the setting of all other swept fields."""
    cells: Cells = {level: {} for level in factor.levels}
    for config in configs:
        setting = tuple(value for path, value in sorted(config.params.items()) if path != factor.path)
        cells[factor.value(config)].setdefault(setting, []).extend(objective[config.config_hash])
    return cells


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
    configs: dict[tuple[Hashable, Hashable], list[Config]] = {}
    for config in results.configs:
        if objective.get(config.config_hash):
            configs.setdefault((along.value(config), lines.value(config)), []).append(config)
    means = {
        pair: estimate_mean_of_configs([objective[config.config_hash] for config in group], noise)
        for pair, group in configs.items()
    }
    return Crossing(along, lines, means, configs)
