"""Fields that change together between the runs that are compared, so that effects are of one or the other."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations

from analysis.findings import FactorFinding
from analysis.results import Config, Factor, Results


def confounded(results: Results) -> dict[str, tuple[str, ...]]:
    """Paths of the fields in which runs differ with another one that tells them apart, by its path.

    They differ alike, or as that one determines (`Results.aliases`), or are swept over other values.
    """
    differing = _fields_that_differ(results)
    found: dict[str, tuple[str, ...]] = {}
    for factor in results.factors:
        if factor.path in differing:
            later = differing[differing.index(factor.path) + 1 :]
            together = _change_with(results, factor, factor.levels, later)
            if not any({factor.path, *together} <= {*told} for told in found.values()):
                found[factor.path] = (*results.aliases.get(factor.path, ()), *together)
    return found


def rivals(results: Results, finding: FactorFinding) -> list[str]:
    """Paths of the fields to which what is found of a factor may be due as well: between the runs they change
    with it, with its best and its worst level if it has levels."""
    factor, effect, differing = finding.factor, finding.effect, _fields_that_differ(results)
    if effect:
        found = _change_with(results, factor, (effect.best.level, effect.worst.level), differing)
    else:
        others = [each for each in results.factors if factor.path in differing and each.path in differing]
        found = [each.path for each in others if _change_with(results, each, each.levels, [factor.path])]
    alike = [alias for path in (factor.path, *found) for alias in results.aliases.get(path, ())]
    return [*found, *alike]


def _fields_that_differ(results: Results) -> list[str]:
    """Paths of the swept fields, and of what tells the runs apart, of which some two runs share no value."""
    configs = _complete(results)
    by_run = [[config for config in configs if config.run == run.label] for run in results.runs]
    pairs = list(combinations(by_run, 2))
    return [
        path
        for path in results.swept
        if path in results.aliases or any(_is_apart(results, path, *pair) for pair in pairs)
    ]


def _change_with(
    results: Results, factor: Factor, levels: Sequence[Hashable], paths: Iterable[str]
) -> list[str]:
    """Those of the fields of which some two of the factor's levels, in other runs, share no value."""
    configs = _complete(results)
    groups = [[config for config in configs if factor.value(config) == level] for level in levels]
    pairs = [
        (first, second)
        for first, second in combinations(groups, 2)
        if {config.run for config in first}.isdisjoint(config.run for config in second)
    ]
    others = [path for path in paths if path != factor.path]
    return [path for path in others if any(_is_apart(results, path, *pair) for pair in pairs)]


def _complete(results: Results) -> list[Config]:
    return [config for config in results.configs if config.complete]


def _is_apart(results: Results, path: str, first: Sequence[Config], second: Sequence[Config]) -> bool:
    """Whether configs have no level of a field in common, or numbers in ranges that do not overlap."""

    def is_apart(factor: Factor) -> bool:
        one, other = (
            {value for config in configs if (value := factor.value(config)) is not None}
            for configs in (first, second)
        )
        if not (one and other):
            return False
        return one.isdisjoint(other) if factor.levels else max(one) < min(other) or max(other) < min(one)

    return all(is_apart(factor) for factor in results.factors if factor.path == path)
