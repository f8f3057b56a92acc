"""What a trained model is worth: terms of the bound, and for every subset what it tells and generates."""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from mmjsd.batches import Batch, PairedSamples, Pairs, Workers
from mmjsd.classifiers import Classifier
from mmjsd.config import EvaluationConfig, Fusion
from mmjsd.gaussian import Gaussian, Mixture, stack, standard_like
from mmjsd.inception import Inception
from mmjsd.likelihood import log_importance_weights, log_likelihood, log_likelihood_as_released
from mmjsd.model import MultimodalVae, Posterior, subsets
from mmjsd.objective import Draws, draw, draw_latents, elbo
from mmjsd.quality import NormalFit, frechet_distance, precision_recall
from mmjsd.ranking import average_precision
from mmjsd.sharing import draw_together

_CHUNK = 250
_PAIRS_SEED, _DRAWS_SEED = 1, 2
_TOGETHER = 16
"""Posteriors whose samples are in memory at a time; of Inception's large features those of one."""

_QUALITY = " quality"
"""After a modality's name: its features by Inception."""

_RELEASED_MODALITIES = 3
"""As many as the code of the paper's authors is for; its own formulas are named `..._as_released`."""


Extra = Literal["likelihood", "quality"]
"""Metrics that an evaluation has on request alone."""


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
    attribute: str = ""


@dataclass(frozen=True)
class Representation:
    """A subset of modalities and the joint posterior that stands for it; one modality has but one."""

    subset: tuple[str, ...]
    posterior: Fusion | None

    @property
    def given(self) -> str:
        """The subset as the tables write it: sorted, joined by "+"."""
        return "+".join(sorted(self.subset))

    @property
    def fusion(self) -> Fusion:
        """How the subset's posteriors become one; the product of a single one is itself."""
        return self.posterior or "product"

    def joint(self, model: MultimodalVae, posteriors: Mapping[str, Posterior]) -> Mixture:
        """The subset's joint posterior."""
        return model.joint({name: posteriors[name] for name in self.subset}, self.fusion)


def representations(modalities: tuple[str, ...], per_size: int) -> list[Representation]:
    """Of each size at most `per_size` subsets, those of several modalities as mixture and as product."""
    return [
        Representation(subset, posterior)
        for subset in subsets(modalities, per_size)
        for posterior in (get_args(Fusion) if len(subset) > 1 else (None,))
    ]


@dataclass(frozen=True)
class _Encoded:
    """This worker's share of drawn pairs with their posteriors, in chunks that fit into memory."""

    samples: PairedSamples
    workers: Workers
    rows: list[slice]
    posteriors: list[dict[str, Posterior]]

    def chunks(self) -> Iterator[tuple[slice, Batch, dict[str, Posterior]]]:
        """Which of all samples a chunk holds, the samples, and their posteriors."""
        for rows, posteriors in zip(self.rows, self.posteriors, strict=True):
            yield rows, self.samples.batch(rows), posteriors

    def gather(self, parts: Iterable[Tensor]) -> Tensor:
        """One row for each of all samples, from the rows of this worker's chunks."""
        return self.workers.gather(torch.cat(list(parts)))

    def gather_all(self, parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """By name one row for each of all samples, from the rows of this worker's chunks."""
        chunks = list(parts)
        return {name: self.gather(chunk[name] for chunk in chunks) for name in chunks[0]}


@dataclass(frozen=True)
class _Judges:
    """Whose features of samples are taken: the classifiers', which tell the class, and those of quality."""

    classifiers: Mapping[str, Classifier]
    inception: Inception | None
    """None: quality is judged by the classifiers' features too."""

    images: tuple[str, ...]
    """The modalities whose quality is judged."""

    def features(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A row for each sample: for the class by modality, for quality by modality and `_QUALITY`."""
        found = {name: self.classifiers[name].features(x) for name, x in values.items()}
        if self.inception:
            found |= {name + _QUALITY: self.inception.features(values[name]) for name in self.images}
        return found

    def of_quality(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features by which the quality of images is judged."""
        return {name: features[name + _QUALITY if self.inception else name] for name in self.images}

    def logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How likely each class or attribute of each sample is, by modality."""
        return {name: each.logits(features[name]) for name, each in self.classifiers.items()}


@dataclass(frozen=True)
class _Truth:
    """What is known of samples, and what guesses at it are worth.

    Classes are judged by the share that is right, attributes by average precision.
    """

    labels: Int[Tensor, "sample *attribute"]
    attributes: Mapping[str, int]
    """Those that are judged, with their columns; none: the labels are classes."""

    def columns(self, guesses: Tensor) -> Tensor:
        """The columns of the attributes that are judged."""
        return guesses[:, list(self.attributes.values())]

    def worth(self, guesses: Float[Tensor, "sample output"]) -> Float[Tensor, "sample *attribute"]:
        """Values of which the mean over samples is what the guesses are worth."""
        if self.attributes:
            return average_precision(*(self.columns(each).cpu() for each in (guesses, self.labels)))
        return (guesses.argmax(-1) == self.labels.to(guesses.device)).double()

    def scores(
        self,
        worth: Float[Tensor, "sample *attribute"],
        metric: str,
        posterior: str = "",
        given: str = "",
        target: str = "",
    ) -> Iterator[Score]:
        """One score, or one for each attribute and their mean."""
        if not self.attributes:
            yield _mean(worth, metric, posterior, given, target)
            return
        for attribute, each in zip(self.attributes, worth.T, strict=True):
            yield _mean(each, metric, posterior, given, target, attribute)
        yield _mean(worth.mean(1), f"mean_{metric}", posterior, given, target)


@torch.no_grad()
def evaluate(
    model: MultimodalVae,
    split: Pairs,
    train: Pairs,
    classifiers: Mapping[str, Classifier],
    evaluation: EvaluationConfig,
    extras: Collection[Extra] = (),
    inception: Inception | None = None,
    attributes: Sequence[str] = (),
) -> list[Score]:
    """All metrics of one split, on pairs that are the same for every trial.

    So are the draws, among trials whose latents have equal sizes.

    Given every modality alone, all together, and at most `evaluation.subsets_per_size` subsets of each size
    between (`mmjsd.model.subsets`), each several once as mixture and once as product.

    Probe accuracy: a linear classifier (scikit-learn's logistic regression) fitted on the content
    means of `evaluation.probe_samples` training pairs, its accuracy on the split; style probe accuracy
    likewise from the means of one modality's own subspace. Coherence: the share of samples generated
    given a subset whose class, by the target modality's classifier, is that of the subset; content is
    drawn from the subset's posterior, styles from the prior. Mean coherence: over all these conditional
    generations, that is targets that are not given. Random coherence: the share of unconditional
    samples in which the classes of all modalities agree.

    Where samples have `attributes` in place of classes, probe and classifiers tell each attribute, and the
    average precision of each (`mmjsd.ranking`) takes the place of the share that is right: metrics
    `probe_average_precision`, `style_probe_average_precision` and `average_precision`, each also with
    `mean_` before it, the mean over attributes. `mean_average_precision` given and of nothing is over the
    conditional generations. Base rate: the share p of the n samples that have an attribute, which scores that
    know nothing of it exceed on average by some (1 - p) log(n) / n. Left out is an attribute that all samples
    or none have.

    The extras cost more and change no other number: log-likelihood by `evaluation.importance_samples` draws
    (`mmjsd.likelihood`), and as quality precision, recall and Fréchet distance of the same generated images
    (`mmjsd.quality`) by the features of `inception`, or without it of their modality's classifier.

    Under torch.distributed each worker takes its rows, and all workers return the same scores.

    Raises:
        FloatingPointError: if the model's content or style means are not finite.
    """
    model.eval()
    generator = torch.Generator(model.device).manual_seed(_PAIRS_SEED)
    pairs = split.draw(min(evaluation.num_samples, split.num_examples), generator)
    probe_pairs = train.draw(evaluation.probe_samples, generator)
    found, seen = _encode(model, pairs), _encode(model, probe_pairs)
    truth = _Truth(pairs.labels, _judged(attributes, pairs.labels, probe_pairs.labels))
    scores = [*_bound_scores(model, found, generator)]  # how many numbers it draws depends on the objective
    generator.manual_seed(_DRAWS_SEED)
    images = tuple(spec.name for spec in model.specs if spec.kind == "image" and "quality" in extras)
    judges = _Judges(classifiers, inception, images)
    evaluated = representations(model.modalities, evaluation.subsets_per_size)
    if truth.attributes:
        scores += truth.scores(truth.columns(truth.labels).double(), "base_rate")
    scores += [
        *_probe_scores(model, evaluated, found, seen, truth, generator),
        *_sample_scores(model, evaluated, found, judges, truth, generator),
    ]
    if "likelihood" in extras and evaluation.importance_samples:
        scores += _likelihood_scores(model, evaluated, found, evaluation.importance_samples, generator)
    return scores


def classifier_scores(classifiers: Mapping[str, Classifier]) -> list[Score]:
    """How good the classifiers themselves are, on the original test examples of their modality."""
    scores = []
    for name, each in classifiers.items():
        for attribute, (value, error) in each.quality.items():
            metric = "classifier_accuracy"
            if len(each.quality) > 1:
                metric = "classifier_average_precision" if attribute else "mean_classifier_average_precision"
            scores.append(Score(metric, value, error, each.num_samples, target=name, attribute=attribute))
    return scores


def _judged(attributes: Sequence[str], *labels: Tensor) -> dict[str, int]:
    """The attributes, with their columns, that some samples but not all have, in each of the labels."""
    return {
        name: column
        for column, name in enumerate(attributes)
        if all(0 < int(each[:, column].sum()) < len(each) for each in labels)
    }


def _encode(model: MultimodalVae, samples: PairedSamples) -> _Encoded:
    workers = Workers.current()
    rows = samples.chunks(_CHUNK, workers)
    return _Encoded(samples, workers, rows, [model.posteriors(samples.batch(each).x) for each in rows])


def _bound_scores(model: MultimodalVae, found: _Encoded, generator: torch.Generator) -> Iterator[Score]:
    draws = draw(model, len(found.samples), generator)
    parts: dict[tuple[str, str], list[Tensor]] = {}
    for rows, batch, _ in found.chunks():
        terms = elbo(model, batch.x, draws.rows(rows), batch.present)
        values = {("loss", ""): terms.loss, ("content_divergence", ""): terms.content_divergence}
        values |= {("reconstruction", name): value for name, value in terms.reconstruction.items()}
        values |= {("style_divergence", name): value for name, value in terms.style_divergence.items()}
        for key, value in values.items():
            parts.setdefault(key, []).append(value)
    for (metric, target), each in parts.items():
        yield _mean(found.gather(each), metric, target=target)


def _probe_scores(
    model: MultimodalVae,
    evaluated: Sequence[Representation],
    found: _Encoded,
    seen: _Encoded,
    truth: _Truth,
    generator: torch.Generator,
) -> Iterator[Score]:
    metric = "probe_average_precision" if truth.attributes else "probe_accuracy"

    def content(encoded: _Encoded, each: Representation) -> Tensor:
        choice = torch.rand(len(encoded.samples), generator=generator, device=generator.device)
        return encoded.gather(
            each.joint(model, posteriors).choose(choice[rows]).mu for rows, _, posteriors in encoded.chunks()
        )

    def style(encoded: _Encoded, name: str) -> Tensor:
        return encoded.gather(posteriors[name].style.mu for posteriors in encoded.posteriors)

    def worth(judged_on: Tensor, fitted_on: Tensor, what: str) -> Tensor:
        known = seen.samples.labels.cpu()
        return truth.worth(_linear_guesses(fitted_on.cpu(), known, judged_on.cpu(), what, truth.attributes))

    for each in evaluated:
        means = content(found, each), content(seen, each)
        probed = worth(*means, f"content means given {each.given}")
        yield from truth.scores(probed, metric, each.posterior or "", each.given)
    for name, size in model.style_dims.items():
        if size > 0:
            probed = worth(style(found, name), style(seen, name), f"style means of {name}")
            yield from truth.scores(probed, f"style_{metric}", target=name)


def _linear_guesses(
    fitted_on: Tensor, known: Tensor, judged_on: Tensor, what: str, attributes: Mapping[str, int]
) -> Float[Tensor, "sample output"]:
    """How likely classes, or attributes, of latents are by linear classifiers that were fitted on others."""
    if not (fitted_on.isfinite().all() and judged_on.isfinite().all()):
        raise FloatingPointError(f"{what} are not finite")
    # Several threads would wait for each other at each of thousands of short steps: long, on a busy machine.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(max_iter=1000)
        if not attributes:
            classes = probe.fit(fitted_on.numpy(), known.numpy()).predict(judged_on.numpy())
            return F.one_hot(torch.from_numpy(classes).long()).float()
        guesses = torch.zeros(len(judged_on), known.shape[1], dtype=torch.float64)
        for column in attributes.values():
            probe.fit(fitted_on.numpy(), known[:, column].numpy())
            guesses[:, column] = torch.from_numpy(probe.decision_function(judged_on.numpy()))
    return guesses


def _sample_scores(
    model: MultimodalVae,
    evaluated: Sequence[Representation],
    found: _Encoded,
    judges: _Judges,
    truth: _Truth,
    generator: torch.Generator,
) -> Iterator[Score]:
    """Coherence or average precision of what is generated and, where images are to be judged, its quality."""
    metric = "average_precision" if truth.attributes else "coherence"
    real = {}
    if judges.images:
        features = found.gather_all(judges.features(batch.x) for _, batch, _ in found.chunks())
        real = {name: NormalFit(_array(each)) for name, each in judges.of_quality(features).items()}
    conditional: dict[Fusion, list[Tensor]] = {posterior: [] for posterior in get_args(Fusion)}
    generated = _generated_features(model, evaluated, found, judges, generator)
    for each, features in zip(evaluated, generated, strict=False):
        posterior = each.posterior or ""
        for target, logits in judges.logits(features).items():
            worth = truth.worth(logits)
            yield from truth.scores(worth, metric, posterior, each.given, target)
            if target not in each.subset:
                for fused in [each.posterior] if each.posterior else get_args(Fusion):
                    conditional[fused].append(worth.mean(1) if truth.attributes else worth)
        yield from _quality_scores(model, real, judges.of_quality(features), posterior, each.given)
    for fused, parts in conditional.items():
        if parts:
            yield _mean(torch.stack(parts).mean(0), f"mean_{metric}", fused)
    unconditional = next(generated)
    if not truth.attributes:
        logits = torch.stack(list(judges.logits(unconditional).values()))
        yield from _random_coherence_scores(logits.argmax(-1))
    yield from _quality_scores(model, real, judges.of_quality(unconditional))


def _random_coherence_scores(classes: Int[Tensor, "modality sample"]) -> Iterator[Score]:
    agrees = classes[1:] == classes[0]
    yield _mean(agrees.all(0), "random_coherence")
    if len(classes) == _RELEASED_MODALITIES:
        # That two comparisons agree is counted, so that a sample on which both fail is coherent.
        yield _mean(agrees[0] == agrees[1], "random_coherence_as_released")


def _generated_features(
    model: MultimodalVae,
    evaluated: Sequence[Representation],
    found: _Encoded,
    judges: _Judges,
    generator: torch.Generator,
) -> Iterator[dict[str, Tensor]]:
    """Features of one generated sample of every modality for each of all samples: given each of the subsets,
    and at last of the prior's. All use the same draws.
    """
    draws = draw_latents(model, len(found.samples), generator)
    asked = [*evaluated, None]
    together = 1 if judges.inception else _TOGETHER
    for some in (asked[start : start + together] for start in range(0, len(asked), together)):
        parts = []
        for rows, _, posteriors in found.chunks():
            noise = draws.rows(rows)
            joints = [each.joint(model, posteriors) if each else _prior(noise.content) for each in some]

            def features(
                content: Tensor, sample: Tensor, _: Tensor, noise: Draws = noise
            ) -> dict[str, Tensor]:
                styles = {name: each[sample] for name, each in noise.style.items()}
                return judges.features(model.means(content, styles))

            parts.append(draw_together(joints, noise.content, noise.choice).compute(features))
        for index in range(len(some)):
            yield found.gather_all({name: each[index] for name, each in part.items()} for part in parts)


def _prior(like: Float[Tensor, "batch content"]) -> Mixture:
    """p(c), as the posterior given nothing."""
    prior = standard_like(Gaussian(like, like))
    return Mixture(stack([prior]), torch.ones_like(like[None, :, 0]), ((),))


def _array(features: Tensor) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = features.cpu().numpy()
    return values


def _quality_scores(
    model: MultimodalVae,
    real: Mapping[str, NormalFit],
    generated: Mapping[str, Tensor],
    posterior: str = "",
    given: str = "",
) -> Iterator[Score]:
    for name, reference in real.items():
        features = _array(generated[name])
        if not np.isfinite(features).all():
            raise FloatingPointError(f"features of generated {name} are not finite")
        shares = precision_recall(reference.features, features)
        values = {"precision": shares.precision, "recall": shares.recall}
        if len(model.modalities) == _RELEASED_MODALITIES:
            values["precision_as_released"] = shares.mean
        values["frechet_distance"] = frechet_distance(reference, NormalFit(features))
        for metric, value in values.items():
            yield Score(metric, value, None, len(features), posterior, given, name)


def _likelihood_scores(
    model: MultimodalVae,
    evaluated: Sequence[Representation],
    found: _Encoded,
    num_samples: int,
    generator: torch.Generator,
) -> Iterator[Score]:
    estimates = {"log_likelihood": log_likelihood}
    if len(model.modalities) == _RELEASED_MODALITIES:
        estimates["log_likelihood_as_released"] = log_likelihood_as_released
    draws = [draw_latents(model, len(found.samples), generator) for _ in range(num_samples)]
    proposals = [(each.subset, each.fusion) for each in evaluated]
    parts = [
        log_importance_weights(model, batch.x, posteriors, proposals, [noise.rows(rows) for noise in draws])
        for rows, batch, posteriors in found.chunks()
    ]
    for index, each in enumerate(evaluated):
        for target in parts[0][index]:
            log_weights = found.gather(part[index][target] for part in parts)
            for metric, estimate in estimates.items():
                yield _mean(estimate(log_weights), metric, each.posterior or "", each.given, target)


def _mean(
    values: Float[Tensor, " sample"] | Bool[Tensor, " sample"],
    metric: str,
    posterior: str = "",
    given: str = "",
    target: str = "",
    attribute: str = "",
) -> Score:
    """The mean over samples and its standard error, s / sqrt(n)."""
    values = values.double()
    error = float(values.std()) / len(values) ** 0.5
    return Score(metric, float(values.mean()), error, len(values), posterior, given, target, attribute)
