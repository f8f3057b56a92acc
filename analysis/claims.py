"""What the paper claims, judged by a study's own replicates.

Each claim is a list of cases: the mean of some columns of one model against that of another, or of the
same model. A claim of more is judged by whether the difference's interval excludes zero, a claim of
equality by whether the interval lies within `MARGIN`. All intervals hold together (Bonferroni).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

from analysis.estimates import Estimate, Noise, differences, estimate_difference, estimate_mean, pool
from analysis.paper import DEFINITIONS, Comparison, own_posterior
from analysis.published import HARDER_IMAGE, TABLES, TITLES, Column, Model, printed
from analysis.results import Config

Verdict = Literal["holds", "undecided", "does not hold here"]
VERDICTS = get_args(Verdict)

MARGIN = 0.02
"""Shares that differ by no more are called equal: twice what the paper's own numbers differ by."""

CLAIMS = {
    "several modalities": "Given several modalities, mmJSD is better than MMVAE.",
    "missing modalities": "Where modalities are missing, MVAE generates less coherently than the others.",
    "sample quality": "Subspaces improve the quality of generated images.",
    "harder image": f"Subspaces make images of the harder kind ({HARDER_IMAGE} in the tables) more coherent.",
    "mean of single ones": "MMVAE given several modalities is as good as the mean over each of them alone.",
}
"""By short names, in the order of the text."""

_PROBE, _COHERENCE, _QUALITY = TABLES[0].columns, TABLES[1].columns[1:], TABLES[2].columns
_QUALITIES = (*(_QUALITY[0].metric, *DEFINITIONS[_QUALITY[0].metric]), "frechet_distance")


@dataclass(frozen=True)
class Side:
    """The mean of some columns of a model, with what stands for several given modalities."""

    model: Model
    posterior: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Case:
    """What is claimed to be better, or equal, and what it is compared with."""

    claim: str
    label: str
    first: Side
    second: Side

    @property
    def is_equality(self) -> bool:
        """Whether no difference is claimed."""
        return self.first.model == self.second.model


@dataclass(frozen=True)
class Judgement:
    """A case and what the study says of it."""

    case: Case
    difference: Estimate
    """First minus second, positive where the first is better; the interval is corrected for all cases."""

    published: float | None
    """The same of the paper's numbers; None where it has none."""

    decimals: int
    verdict: Verdict


def judge(comparison: Comparison) -> list[Judgement]:
    """The cases of all claims for which the study holds the models and the metrics."""
    cases = sorted(_cases(), key=lambda case: list(CLAIMS).index(case.claim))
    found = [(case, measured) for case in cases if (measured := _measure(comparison, case))]
    judged = []
    for case, (first, second, noise) in found:
        difference = (
            estimate_difference(first, second, noise, len(found))
            if second
            else estimate_mean(first, noise, len(found))
        )
        assert difference is not None
        decimals = comparison.quantity(case.first.columns[0], "").decimals
        verdict = _verdict(difference, is_equality=case.is_equality)
        judged.append(Judgement(case, difference, _published(case), decimals, verdict))
    return judged


def _cases() -> Iterator[Case]:
    for has_subspaces in (False, True):
        yield from _fusion_cases(has_subspaces)
    for objective, title in TITLES.items():
        without, within = Model(objective, False), Model(objective, True)
        for metric in _QUALITIES:
            columns = [column._replace(metric=metric) for column in _QUALITY]
            label = f"{title}: {metric.replace('_', ' ').replace('frechet', 'Fréchet')}"
            yield Case("sample quality", label, _side(within, columns), _side(without, columns))
        if objective != "mvae":
            columns = [column for column in _COHERENCE if column.target == HARDER_IMAGE]
            yield Case("harder image", title, _side(within, columns), _side(without, columns))


def _fusion_cases(has_subspaces: bool) -> Iterator[Case]:
    """What is claimed of one modality, of several, and of missing ones."""
    where = "with subspaces" if has_subspaces else "without subspaces"
    mvae, mmvae, mmjsd = (Model(objective, has_subspaces) for objective in TITLES)
    for word, columns in (("probe accuracy", _PROBE), ("coherence", _COHERENCE)):
        several = [column for column in columns if "," in column.given]
        single = [column for column in columns if "," not in column.given]
        for posterior, label in ((own_posterior(mmvae), ""), (own_posterior(mmjsd), ", both as product")):
            other = Side(mmvae, posterior, tuple(several))
            yield Case("several modalities", f"{word} {where}{label}", _side(mmjsd, several), other)
        first, second = _side(mmvae, several), _side(mmvae, single)
        yield Case("mean of single ones", f"{word} {where}", first, second)
    for better in (mmvae, mmjsd):
        label = f"{better.title} against {mvae.title}"
        yield Case("missing modalities", label, _side(better, _COHERENCE), _side(mvae, _COHERENCE))


def _side(model: Model, columns: Sequence[Column]) -> Side:
    """With the posterior that the paper's numbers are by."""
    return Side(model, own_posterior(model), tuple(columns))


def _measure(
    comparison: Comparison, case: Case
) -> tuple[Sequence[float], Sequence[float] | None, Noise] | None:
    """The replicates of both sides, or their differences within trials where both are one config's; and the
    noise, pooled over all configs of the paper's models. None where the study lacks something."""
    sign = -1 if comparison.quantity(case.first.columns[0], "").lower_is_better else 1

    def replicates(model: Model, config: Config) -> list[float]:
        posteriors = {side.model: side.posterior for side in (case.second, case.first)}
        posterior = posteriors.get(model, own_posterior(model))
        values = comparison.averages(config, case.first.columns, posterior)
        if not case.is_equality:
            return [sign * value for value in values.values()]
        others = comparison.averages(config, case.second.columns, posterior)
        return [sign * each for each in differences(values, others)]

    groups = {
        config.config_hash: replicates(model, config)
        for model, configs in comparison.configs.items()
        for _, config in configs
    }
    best = [
        groups[comparison.configs[side.model][0][1].config_hash]
        for side in ((case.first,) if case.is_equality else (case.first, case.second))
        if side.model in comparison.configs
    ]
    if not all(best) or len(best) < (1 if case.is_equality else 2):
        return None
    return best[0], None if case.is_equality else best[1], pool(groups.values())


def _published(case: Case) -> float | None:
    """The difference of the paper's numbers."""
    means = []
    for side in (case.first, case.second):
        texts = [printed(side.model, column) for column in side.columns]
        if side.posterior != own_posterior(side.model) or None in texts:
            return None
        means.append(fmean(float(text) for text in texts if text))
    return means[0] - means[1]


def _verdict(difference: Estimate, *, is_equality: bool) -> Verdict:
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "undecided"
    if is_equality:
        if low >= -MARGIN and high <= MARGIN:
            return "holds"
        return "does not hold here" if low > MARGIN or high < -MARGIN else "undecided"
    if low > 0:
        return "holds"
    return "does not hold here" if high < 0 else "undecided"
