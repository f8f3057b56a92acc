"""What a trained model is worth: terms of the bound, probe accuracy and coherence of every subset."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mmjsd.batches import Batch, Pairs, Workers
from mmjsd.classifiers import Classifier
from mmjsd.config import EvaluationConfig, Fusion
from mmjsd.gaussian import Gaussian
from mmjsd.model import MultimodalVae, Posterior
from mmjsd.objective import draw, elbo

_CHUNK = 500
_PAIRS_SEED, _DRAWS_SEED = 1, 2


@dataclass(frozen=True)
class Score:
    """One number: a metric of `target` given a subset, and how sure it is."""

    metric: str
    value: float
    standard_error: float | None
    """Of the mean over samples; none where it is not a mean."""

    num_samples: int
    posterior: str = ""
    given: str = ""
    target: str = ""


@dataclass(frozen=True)
class Representation:
    """A subset of modalities and the joint posterior that stands for it; one modality has but one."""

    subset: tuple[str, ...]
    posterior: Fusion | None

    @property
    def given(self) -> str:
        """The subset as the tables write it: sorted, joined by "+"."""
        return "+".join(sorted(self.subset))


def representations(modalities: tuple[str, ...]) -> list[Representation]:
    """Every non-empty subset, those of several modalities once as mixture and once as product."""
    subsets = [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]
    return [
        Representation(subset, posterior)
        for subset in subsets
        for posterior in (get_args(Fusion) if len(subset) > 1 else (None,))
    ]


@dataclass
class _Collected:
    """Per-sample results of one split, appended chunk by chunk."""

    labels: list[Tensor] = field(default_factory=list)
    terms: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    latents: dict[Representation, list[Tensor]] = field(default_factory=dict)
    coherent: dict[tuple[Representation, str], list[Tensor]] = field(default_factory=dict)
    random_coherent: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def evaluate(
    model: MultimodalVae,
    split: Pairs,
    train: Pairs,
    classifiers: Mapping[str, Classifier],
    evaluation: EvaluationConfig,
) -> list[Score]:
    """All metrics of one split, on pairs and draws that are the same for every trial.

    Probe accuracy: a linear classifier (scikit-learn's logistic regression) fitted on the content
    means of `evaluation.probe_samples` training pairs, its accuracy on the split. Coherence: the
    share of samples generated given a subset whose class, by the target modality's classifier, is
    that of the subset; content is drawn from the subset's posterior, styles from the prior. Mean
    coherence: over all conditional generations, that is targets that are not given. Random
    coherence: the share of unconditional samples in which the classes of all modalities agree.

    Under torch.distributed each worker takes its rows, and all workers return the same scores.

    Raises:
        FloatingPointError: if the model's content means are not finite.
    """
    workers = Workers.current()
    model.eval()
    generator = torch.Generator(model.device).manual_seed(_PAIRS_SEED)
    pairs = split.draw(min(evaluation.num_samples, split.num_examples), generator)
    probe_pairs = train.draw(evaluation.probe_samples, generator)
    generator.manual_seed(_DRAWS_SEED)

    found, seen = _Collected(), _Collected()
    for count, rows, batch in pairs.chunks(_CHUNK, workers):
        posteriors = model.posteriors(batch.x)
        found.labels.append(batch.labels)
        _collect_terms(model, batch, count, rows, generator, found)
        _collect_latents(model, posteriors, count, rows, generator, found)
        _collect_coherence(model, posteriors, batch, count, rows, generator, classifiers, found)
    for count, rows, batch in probe_pairs.chunks(_CHUNK, workers):
        seen.labels.append(batch.labels)
        _collect_latents(model, model.posteriors(batch.x), count, rows, generator, seen)
    return [
        *_bound_scores(found, workers),
        *_probe_scores(found, seen, workers),
        *_coherence_scores(found, workers),
    ]


def classifier_scores(classifiers: Mapping[str, Classifier]) -> list[Score]:
    """How good the classifiers themselves are, on the original test examples of their modality."""
    return [
        Score(
            "classifier_accuracy",
            each.accuracy,
            (each.accuracy * (1 - each.accuracy) / each.num_samples) ** 0.5,
            each.num_samples,
            target=name,
        )
        for name, each in classifiers.items()
    ]


def _collect_terms(
    model: MultimodalVae, batch: Batch, count: int, rows: slice, generator: torch.Generator, into: _Collected
) -> None:
    terms = elbo(model, batch.x, draw(model, count, generator).rows(rows), batch.present)
    values = {("loss", ""): terms.loss, ("content_divergence", ""): terms.content_divergence}
    values |= {("reconstruction", name): value for name, value in terms.reconstruction.items()}
    values |= {("style_divergence", name): value for name, value in terms.style_divergence.items()}
    for key, value in values.items():
        into.terms.setdefault(key, []).append(value)


def _joints(
    model: MultimodalVae,
    posteriors: Mapping[str, Posterior],
    count: int,
    rows: slice,
    generator: torch.Generator,
) -> Iterator[tuple[Representation, Gaussian]]:
    for each in representations(model.modalities):
        choice = torch.rand(count, generator=generator, device=model.device)[rows]
        given = {name: posteriors[name] for name in each.subset}
        yield each, model.fuse(given, each.posterior or "product", choice)


def _collect_latents(
    model: MultimodalVae,
    posteriors: Mapping[str, Posterior],
    count: int,
    rows: slice,
    generator: torch.Generator,
    into: _Collected,
) -> None:
    for each, joint in _joints(model, posteriors, count, rows, generator):
        into.latents.setdefault(each, []).append(joint.mu)


def _collect_coherence(
    model: MultimodalVae,
    posteriors: Mapping[str, Posterior],
    batch: Batch,
    count: int,
    rows: slice,
    generator: torch.Generator,
    classifiers: Mapping[str, Classifier],
    into: _Collected,
) -> None:
    def normal(size: int) -> Tensor:
        return torch.randn(count, size, generator=generator, device=model.device)[rows]

    def classes(content: Tensor) -> dict[str, Tensor]:
        style = {name: normal(size) for name, size in model.style_dims.items()}
        return {name: classifiers[name].classes(mean) for name, mean in model.means(content, style).items()}

    for each, joint in _joints(model, posteriors, count, rows, generator):
        for name, found in classes(joint.sample(normal(model.config.content_dim))).items():
            into.coherent.setdefault((each, name), []).append(found == batch.labels)
    unconditional = torch.stack(list(classes(normal(model.config.content_dim)).values()))
    into.random_coherent.append((unconditional == unconditional[0]).all(0))


def _bound_scores(found: _Collected, workers: Workers) -> Iterator[Score]:
    for (metric, target), parts in found.terms.items():
        yield _mean(workers.gather(torch.cat(parts)), metric, target=target)


def _probe_scores(found: _Collected, seen: _Collected, workers: Workers) -> Iterator[Score]:
    known, truth = workers.gather(torch.cat(seen.labels)).cpu(), workers.gather(torch.cat(found.labels)).cpu()
    for each, parts in found.latents.items():
        fitted_on = workers.gather(torch.cat(seen.latents[each])).cpu().numpy()
        judged_on = workers.gather(torch.cat(parts)).cpu().numpy()
        if not (np.isfinite(fitted_on).all() and np.isfinite(judged_on).all()):
            raise FloatingPointError(f"content means given {each.given} are not finite")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe = LogisticRegression(max_iter=1000).fit(fitted_on, known.numpy())
        right = torch.from_numpy(probe.predict(judged_on)) == truth
        yield _mean(right, "probe_accuracy", each.posterior or "", each.given)


def _coherence_scores(found: _Collected, workers: Workers) -> Iterator[Score]:
    conditional: dict[Fusion, list[Tensor]] = {posterior: [] for posterior in get_args(Fusion)}
    for (each, target), parts in found.coherent.items():
        coherent = workers.gather(torch.cat(parts))
        yield _mean(coherent, "coherence", each.posterior or "", each.given, target)
        if target not in each.subset:
            for posterior in [each.posterior] if each.posterior else get_args(Fusion):
                conditional[posterior].append(coherent)
    for posterior, parts in conditional.items():
        if parts:
            yield _mean(torch.stack(parts).float().mean(0), "mean_coherence", posterior)
    yield _mean(workers.gather(torch.cat(found.random_coherent)), "random_coherence")


def _mean(
    values: Float[Tensor, " sample"] | Bool[Tensor, " sample"],
    metric: str,
    posterior: str = "",
    given: str = "",
    target: str = "",
) -> Score:
    """The mean over samples and its standard error, s / sqrt(n)."""
    values = values.double()
    error = float(values.std()) / len(values) ** 0.5
    return Score(metric, float(values.mean()), error, len(values), posterior, given, target)
