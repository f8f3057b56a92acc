"""What the subspaces know of class or attributes: a leak, since these are what the modalities share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.figure import Figure
from scipy import stats

from analysis.drawing import (
    MARKERS,
    PALETTE,
    Drawing,
    draw_chance,
    hint,
    plot_estimates,
    save,
    what_bars_are,
    what_dashes_are,
)
from analysis.estimates import CONFIDENCE, Estimate, estimate_mean_of_configs, pool, rank_correlation
from analysis.findings import Findings
from analysis.results import Config, Quantity, Results
from analysis.wording import code, fixed, p_text, plural, plus_minus


@dataclass(frozen=True)
class Leak:
    """How well a linear probe reads class or attributes from one modality's subspace."""

    modality: str
    mean: Estimate
    """Over all configs in which it has a subspace; the intervals of all modalities hold together."""

    luck: float
    """By how much a guess may exceed chance on the pairs by which all trials are judged."""

    is_no_guess: bool
    """Whether a trial's own score exceeds chance by more than a guess does in any trial."""

    num_configs: int
    by_size: Mapping[int, Estimate]
    """Over the configs in which the subspace has a size, by the sizes in order."""


def leak_quantity(results: Results, modality: str) -> Quantity:
    """What the probe on a modality's subspace reaches."""
    of_attributes = Quantity("mean_style_probe_average_precision", target=modality)
    return (
        of_attributes if of_attributes in results.last else Quantity("style_probe_accuracy", target=modality)
    )


def what_is_read(results: Results) -> tuple[str, str]:
    """What a probe reads, and by which measure it is judged."""
    if results.find("mean_base_rate"):
        return "the attributes", "mean average precision"
    return "the class", "accuracy"


def find_leaks(results: Results) -> list[Leak]:
    """One for each modality that has a subspace in some config."""
    found = []
    quantities = [leak_quantity(results, modality) for modality in results.modalities]
    num_compared = sum(bool(results.last.get(quantity)) for quantity in quantities)
    for modality, quantity in zip(results.modalities, quantities, strict=True):
        measured = [(each, values) for each in results.configs if (values := results.values(each, quantity))]
        if measured:
            noise = pool([values for _, values in measured], quantity.bounds)
            by_size: dict[int, list[list[float]]] = {}
            for config, values in measured:
                by_size.setdefault(_size(config, modality), []).append(values)
            means = {
                size: estimate_mean_of_configs(group, noise)
                for size, group in sorted(by_size.items())
                if size
            }
            mean = estimate_mean_of_configs([values for _, values in measured], noise, num_compared)
            luck, is_no_guess = _luck(results, quantity, num_compared)
            found.append(Leak(modality, mean, luck, is_no_guess, len(measured), means))
    return found


def _luck(results: Results, quantity: Quantity, num_compared: int) -> tuple[float, bool]:
    """By how much a guess may exceed chance in the mean over trials, and whether a trial exceeds what it may.

    What the pairs do to a guess is the same in all trials at worst, so the mean has a score's own standard
    error, times the normal quantile by Bonferroni over modalities; for each trial, over all their trials.

    Scores that know nothing have on average an average precision above the base rate p, too: of n samples by
    (1 - p) (H_n - 1) / (n - 1), where H_n is the sum of 1 / k for k up to n.
    """
    rows = results.measurements
    for name, value in quantity._asdict().items():
        rows = rows[rows[name] == value]
    errors, lift = rows["standard_error"], 0.0
    if quantity.metric != "style_probe_accuracy" and results.chance is not None:
        num_samples = int(rows["num_samples"].min())
        harmonic = sum(1 / rank for rank in range(1, num_samples + 1))
        lift = (1 - results.chance) * (harmonic - 1) / max(1, num_samples - 1)
    of_mean, of_trials = (
        lift + errors * float(stats.norm.isf((1 - CONFIDENCE) / count))
        for count in (num_compared, num_compared * len(rows))
    )
    is_no_guess = results.chance is not None and (rows["value"] > results.chance + of_trials).any()
    return float(of_mean.mean()), bool(is_no_guess)


def leak_sentences(findings: Findings, leaks: Sequence[Leak]) -> list[str]:
    """What the probe reads; what that means, and how it goes with the objective. Paragraphs of Markdown."""
    if not leaks:
        return []
    results = findings.results
    chance, (what, measure) = results.chance, what_is_read(results)
    read = ", ".join(f"{code(each.modality)} **{plus_minus(each.mean, 3)}**" for each in leaks)
    few, most = (choose(each.num_configs for each in leaks) for choose in (min, max))
    configs = f"{few} to " * (few < most) + plural(most, "config")
    sentence = (
        f"A linear probe reads {what} from the subspace alone ({measure}, mean over {configs}): {read}."
    )
    if chance is not None:
        sentence += f" Chance is {fixed(chance, 3)}{_verdict(leaks, chance, what)}."
    meaning = (
        f"Whatever a decoder finds of {what} in the style, it need not take from the content; the style of "
        "a modality that is not given is drawn at random, and so is then that part of what is generated."
    )
    return [sentence, meaning + _correlation_sentence(findings, leaks)]


def leak_drawing(results: Results, leaks: Sequence[Leak]) -> Drawing | None:
    """Leak against the size of the subspace, a line a modality; None unless a size varies."""
    sizes = sorted({size for each in leaks for size in each.by_size})
    if len(sizes) < 2:
        return None
    places = {size: position for position, size in enumerate(sizes)}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for index, each in enumerate(leaks):
            shift = 0.06 * (index - (len(leaks) - 1) / 2)
            x = [places[size] + shift for size in each.by_size]
            colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            estimates = list(each.by_size.values())
            drawn = plot_estimates(axes, x, estimates, colour, marker, "-", each.modality)
            hint(
                drawn,
                [
                    f"{each.modality}, {plural(size, 'dimension')}: {plus_minus(estimate, 3)}"
                    for size, estimate in each.by_size.items()
                ],
            )
        draw_chance(axes, results.chance)
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_xlim(-0.5, len(sizes) - 0.5)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("dimensions of the subspace")
        axes.set_ylabel(f"{measure} of a linear probe")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5)

    what, measure = what_is_read(results)
    bars = what_bars_are(known=any(each.mean.half_width is not None for each in leaks))
    caption = (
        f"How well a linear probe reads {what} from each modality's own subspace, against its size, "
        f"averaged over the other factors; test split. {bars}{what_dashes_are(results.chance)}"
    )
    return save("leak", f"How much of {what} leaks into the subspaces", caption, 3.3, paint)


def _verdict(leaks: Sequence[Leak], chance: float, what: str) -> str:
    """What exceeds chance by more than a guess may: in one trial, or in the mean and beyond noise."""
    certain, undecided = [], []
    for each in leaks:
        if each.is_no_guess or (each.mean.low is not None and each.mean.low > chance + each.luck):
            certain.append(code(each.modality))
        elif each.mean.value > chance + each.luck:
            undecided.append(code(each.modality))
    told = []
    if certain:
        told.append(f"**{what} leak{'s' * (what == 'the class')} into the subspace of {', '.join(certain)}**")
    if undecided:
        told.append(f"whether more than luck is undecided for {', '.join(undecided)}")
    return f": {'; '.join(told) or '**no leak shows**'}"


def _correlation_sentence(findings: Findings, leaks: Sequence[Leak]) -> str:
    """Whether configs that leak more are judged otherwise."""
    results, x, y = findings.results, [], []
    for config in results.configs:
        measured = [results.values(config, leak_quantity(results, each.modality)) for each in leaks]
        objective = results.values(config, results.objective)
        if all(measured) and objective:
            x.append(fmean(fmean(values) for values in measured))
            y.append(fmean(objective))
    found = rank_correlation(x, y)
    if found is None:
        return ""
    numbers = (
        f"Spearman's ρ = {fixed(found.rho, 2)} over {found.num_configs} configs, {p_text(found.p_value)}"
    )
    label = results.objective.label
    if not found.is_significant:
        return f" Leak and {label} do not go together significantly ({numbers})."
    return f" Configs that leak more have a {'lower' if found.rho < 0 else 'higher'} {label} ({numbers})."


def _size(config: Config, modality: str) -> int:
    """Of the modality's subspace, zero if the config does not tell."""
    sizes = config.style_dims
    return sizes.get(modality, sizes.get("", 0))
