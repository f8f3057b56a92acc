"""One trial as a plain generator: data, model and classifiers from a config, then epochs with scores."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmjsd import data as datasets
from mmjsd.batches import Pairs
from mmjsd.classifiers import Classifier, load_classifiers
from mmjsd.config import require
from mmjsd.figures import draw_figures
from mmjsd.inception import Inception, find_weights
from mmjsd.metrics import Extra, Score, classifier_scores, evaluate
from mmjsd.model import MultimodalVae
from mmjsd.pack import fit_together
from mmjsd.pictures import Picture
from mmjsd.train import (
    DivergedError,
    Epoch,
    Interim,
    Member,
    TrainingState,
    fit_pack,
    load_checkpoint,
    save_checkpoint,
)
from study.config import LATE_OBJECTIVES, Objective, TrialConfig


@dataclass(frozen=True)
class Measurement:
    """What one epoch has shown, and the means to go on after it."""

    epoch: int
    scores: Mapping[str, list[Score]]
    """By split; validation where the epoch was evaluated, test after the last."""

    losses: Tensor
    """Of each step, nats per sample."""

    wall_s: float
    """Training alone, without evaluation."""

    evaluation_s: float
    """Evaluation alone."""

    num_samples: int
    save: Callable[[Path, Mapping[str, Any]], Path]
    """Writes this epoch's checkpoint into a folder, with notes of the caller's."""

    draw: Callable[[], Mapping[str, Picture]]
    """Pictures of what the model generates, by name."""


@dataclass(frozen=True)
class Rescue:
    """The means to go on from within an epoch, for one whose machine is about to go."""

    save: Callable[[Path, Mapping[str, Any]], Path]
    """As of a measurement."""


@dataclass(frozen=True)
class _Material:
    data: datasets.Data
    splits: Mapping[str, Pairs]
    classifiers: Mapping[str, Classifier]


def run_trial(
    config: TrialConfig,
    resume: Path | None = None,
    device: torch.device | str = "cpu",
    objectives: Collection[Objective] = (),
) -> Iterator[Measurement]:
    """Train and evaluate one config with its seed, one measurement an epoch.

    Knows no Ray; under torch.distributed it is one of several workers. Resumed from a checkpoint it
    yields the epochs that are left, with the numbers that they would have had.

    Args:
        config: with its seed set.
        resume: a checkpoint folder that `Measurement.save` returned; none: from the start.
        device: where to train.
        objectives: what the last epoch's validation is to have, also where it costs much.

    Raises:
        DivergedError: when the loss or a metric is not finite.
        ValueError: for a damaged checkpoint.
    """
    for (measurement,) in run_pack([config], [resume], device, objectives):
        if isinstance(measurement, DivergedError):
            raise measurement
        assert isinstance(measurement, Measurement)
        yield measurement


def can_pack(first: TrialConfig, second: TrialConfig) -> bool:
    """Whether two trials can be trained as one: equal but for seed, step size, subspaces and weights."""
    one, other = first.resolved(), second.resolved()
    rate = one.training.learning_rate
    return (one.data, one.evaluation, one.training) == (
        other.data,
        other.evaluation,
        replace(other.training, learning_rate=rate),
    ) and fit_together((one.model, one.objective), (other.model, other.objective))


def run_pack(
    configs: Sequence[TrialConfig],
    resumes: Sequence[Path | None],
    device: torch.device | str = "cpu",
    objectives: Collection[Objective] = (),
    is_warned: Callable[[], bool] | None = None,
) -> Iterator[list[Measurement | DivergedError] | list[Rescue]]:
    """Train several configs as one (`mmjsd.train.fit_pack`) and evaluate each, once an epoch.

    Args:
        configs: of which `can_pack` says that they fit together.
        resumes: for each a checkpoint, all of one place, or none.
        device, objectives: as in `run_trial`.
        is_warned: as in `fit_pack`.

    Yields:
        What each config shows, in order, until the last epoch or until all have diverged; from the epoch in
        which one diverges on, its error. At a warning, what can be saved of each.

    Raises:
        ValueError: for a damaged checkpoint, or configs that do not fit together.
    """
    config = configs[0]
    for other in configs[1:]:
        require(
            can_pack(config, other),
            "configs of one pack must be equal but for seed, step size, subspaces' sizes and weights",
        )
    material = _material(config.data.name, config.data.dir, str(device))
    train = Pairs(material.data.splits["train"], device, config.data.missing)
    members = [_member(*each, device) for each in zip(configs, resumes, strict=True)]
    errors: dict[int, DivergedError] = {}
    for epochs in fit_pack(members, train, config.data.samples_per_epoch, is_warned):
        shown: list[Measurement | DivergedError] = []
        rescues: list[Rescue] = []
        for number, (member, epoch) in enumerate(zip(members, epochs, strict=True)):
            if isinstance(epoch, Interim):
                rescues.append(Rescue(partial(save_checkpoint, member.model, epoch.state)))
                continue
            if isinstance(epoch, DivergedError):
                errors.setdefault(number, epoch)
            if number not in errors:
                assert isinstance(epoch, Epoch)
                try:
                    shown.append(_measure(member.model, epoch, material, configs[number], objectives))
                    continue
                except DivergedError as error:
                    errors[number] = error
            shown.append(errors[number])
        yield rescues or shown
        if len(errors) == len(members):
            return


def _member(config: TrialConfig, resume: Path | None, device: torch.device | str) -> Member:
    state: TrainingState | None = None
    if resume is not None:
        model, state = load_checkpoint(resume)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = MultimodalVae(config.spec.modalities, config.model, config.objective)
    return Member(model.to(device), config.training, config.seed, state)


def _measure(
    model: MultimodalVae,
    epoch: Epoch,
    material: _Material,
    config: TrialConfig,
    objectives: Collection[Objective],
) -> Measurement:
    last = config.training.epochs
    started = time.perf_counter()
    scores = {"train": [Score("loss", epoch.loss, None, epoch.num_samples)]}
    splits = {"validation"} if epoch.number % config.evaluation.every == 0 else set()
    for split in sorted({"validation", "test"} if epoch.number == last else splits):
        is_late = epoch.number == last and not LATE_OBJECTIVES.isdisjoint(objectives)
        extras: set[Extra] = set()
        if is_late or split == "test":
            extras.add("likelihood")
        if split == "test":
            extras.add("quality")
        scores[split] = _scores(model, material, split, config, extras)
    if "test" in scores:
        scores["test"] += classifier_scores(material.classifiers)
    return Measurement(
        epoch=epoch.number,
        scores=scores,
        losses=epoch.losses,
        wall_s=epoch.wall_s,
        evaluation_s=time.perf_counter() - started,
        num_samples=epoch.num_samples,
        save=partial(save_checkpoint, model, epoch.state),
        draw=partial(draw_figures, model, material.splits["test"]),
    )


def _scores(
    model: MultimodalVae, material: _Material, split: str, config: TrialConfig, extras: Collection[Extra]
) -> list[Score]:
    by_inception = "quality" in extras and config.evaluation.features == "inception"
    try:
        scores = evaluate(
            model,
            material.splits[split],
            material.splits["train"],
            material.classifiers,
            config.evaluation,
            extras,
            _inception(config.data.dir, str(model.device)) if by_inception else None,
            material.data.spec.attributes,
        )
    except FloatingPointError as error:
        raise DivergedError(str(error)) from error
    for score in scores:
        if not isfinite(score.value):
            raise DivergedError(f"{score.metric} is {score.value} on the {split} split")
    return scores


@lru_cache(maxsize=2)
def _material(name: str, folder: Path | None, device: str) -> _Material:
    """What all trials on a data set share; kept, since one process runs many trials."""
    data = datasets.load(name, folder)
    splits = {split: Pairs(examples, device) for split, examples in data.splits.items()}
    return _Material(data, splits, load_classifiers(data, device))


@lru_cache(maxsize=1)
def _inception(folder: Path | None, device: str) -> Inception:
    """Inception's network; kept, as what trials share."""
    return Inception(find_weights(folder), device)
