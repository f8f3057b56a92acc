"""What confirmations say: a run's best configs and its base config, judged on seeds that chose nothing."""

from dataclasses import dataclass

from analysis.estimates import Estimate, differs_from_zero, estimate_difference, estimate_mean, pool
from analysis.results import Config, Results


@dataclass(frozen=True)
class Confirmed:
    """One config on fresh seeds."""

    config: Config
    """With the trials of the confirmation alone."""

    number: int | None
    """Its rank in the search; none if it was not searched."""

    searched: Estimate | None
    """The objective on the test split over the search's replicates, high for having been chosen."""

    fresh: Estimate | None
    """The same over fresh seeds."""

    advantage: Estimate | None
    """By how much it exceeds its run's base config on fresh seeds; none for the base config itself."""

    p_value: float | None


def confirmed(results: Results) -> tuple[Confirmed, ...]:
    """The configs that were confirmed, best first by the validation objective over fresh seeds.

    Intervals and p-values of the advantage are corrected for the number of configs (Bonferroni), since the
    best of them is picked by looking.
    """
    quantity = results.objective
    groups = {config.config_hash: results.values(config, quantity) for config in results.confirmed}
    noise = pool(groups.values(), quantity.bounds)
    earlier = results.by_config(quantity)
    earlier_noise = pool(earlier.values(), quantity.bounds)
    bases = {config.run: groups[config.config_hash] for config in results.confirmed if config.is_base}
    rivals = sum(bool(groups[config.config_hash]) and not config.is_base for config in results.confirmed)
    rows = []
    for config in results.confirmed:
        values, base = groups[config.config_hash], bases.get(config.run)
        advantage, p_value = None, None
        if values and base and not config.is_base:
            advantage = estimate_difference(values, base, noise, rivals)
            p_value = differs_from_zero(advantage, noise, rivals)
        rows.append(
            Confirmed(
                config=config,
                number=results.numbers.get(config.config_hash),
                searched=estimate_mean(earlier.get(config.config_hash, ()), earlier_noise),
                fresh=estimate_mean(values, noise),
                advantage=advantage,
                p_value=p_value,
            )
        )
    return tuple(rows)
