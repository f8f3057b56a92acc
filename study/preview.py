"""What a dry run prints: the size of a study, what it may cost, and its configs. Imports nothing heavy."""

from math import ceil
from operator import attrgetter
from typing import Any

import numpy as np

from mmjsd.data import DATASETS
from study.config import Study, TrialConfig
from study.mirror import local_run
from study.questions import Question

_SIZES = (
    "data.name",
    "data.samples_per_epoch",
    "training.epochs",
    "training.batch_size",
    "evaluation.every",
    "evaluation.num_samples",
)
"""Fields that decide how long a trial takes."""

_WIDTHS = (0.1, 0.25, 0.5, 1.0)
_TRAINING_S = (0.00045, 0.00049, 0.00069, 0.00123)
"""Seconds that a training sample takes at these widths; measured like all below on one core of an AMD EPYC at
batch size 32, objective mmjsd and the modalities of the data set digits."""

_CHECKPOINT_MB = (0.95, 2.6, 6.3, 17.0)
"""At these widths."""

_PROBES_S, _PAIR_S, _FINAL_PAIR_S, _DRAW_S = 0.4, 0.003, 0.0045, 0.001
"""Of an evaluation; of each of its pairs; what a final one adds for each pair, and for each draw of it."""

_FILES_MB = 2.1
"""What a trial leaves besides its checkpoint, most of it pictures, as files and once more in TensorBoard."""


def describe(study: Study, question: Question) -> str:
    """The size of the study and its cost, then its configs, or its domains if they are drawn."""
    varied = study.space.domains
    count = f"{plural(study.trials, 'config')} x {plural(study.replicates, 'replicate')}"
    total = study.trials * study.replicates
    if study.confirm:
        confirmed = study.confirm + 1  # with the base config
        count += f" + {confirmed} to confirm x {plural(study.confirm_replicates, 'replicate')}"
        total += confirmed * study.confirm_replicates
    facts: dict[str, Any] = {
        "objectives": study.objectives,
        "sampler": study.sampler,
        "scheduler": study.scheduler,
        "seed": study.seed,
    }
    facts |= {path: attrgetter(path)(study.base) for path in _SIZES if path not in study.space.varied}
    facts |= {"workers": study.workers, "GPUs per worker": study.gpus_per_worker, "folder": study.where}
    facts |= {"cost": _cost(study, total), "disk": _disk(study, total)}
    lines = [f"{study.name}: {question.title}", f"{count} = {total} trials", ""]
    lines += [f"{name:<{max(map(len, facts))}}  {shown(value)}" for name, value in facts.items()]
    if varied:
        lines.append("")
    if study.sampler != "grid":
        lines += [f"{path}  {domain}" for path, domain in varied.items()]
    elif varied:
        grid = study.space.grid()[: study.trials]
        paths = dict.fromkeys(path for params in grid for path in params)
        columns = [[path, *(shown(params.get(path, "")) for params in grid)] for path in paths]
        widths = [max(map(len, column)) for column in columns]
        for row in zip(*columns, strict=True):
            lines.append("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A field's value as the command line takes it."""
    if isinstance(value, (tuple, list)):
        return " ".join(shown(each) for each in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def plural(number: float, noun: str) -> str:
    """A count and its noun."""
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


def trial_s(config: TrialConfig) -> float:
    """Seconds of one core that a trial takes, by what was measured; good to a factor of two."""
    evaluation, epochs = config.evaluation, config.training.epochs
    per_sample = float(np.interp(config.model.width, _WIDTHS, _TRAINING_S))
    training_s = epochs * config.data.samples_per_epoch * per_sample
    evaluations = ceil(epochs / evaluation.every) + 1  # the last epoch's on the test split too
    evaluation_s = evaluations * (_PROBES_S + _PAIR_S * evaluation.num_samples)
    final_s = evaluation.num_samples * (_FINAL_PAIR_S + _DRAW_S * evaluation.importance_samples)
    return training_s + evaluation_s + final_s


def _cost(study: Study, total: int) -> str:
    """Device time, by the trials that have ended in the folder or else by the rule, and which of both."""
    rows = _ended(study)
    ended = [row["device_s"] for row in rows if row["state"] == "COMPLETE"]
    if ended:
        left = max(0, total - sum(row["state"].lower() not in study.retry for row in rows))
        mean_s = sum(ended) / len(ended)
        return (
            f"about {_duration(left * mean_s)} of device time for {plural(left, 'trial')} to come, like the "
            f"{len(ended)} complete here, which took {mean_s:.3g} s each"
        )
    if study.gpus_per_worker > 0:
        return "unknown before a trial has ended: there is no rule for GPUs"
    if study.base.spec.modalities != DATASETS["digits"].modalities:
        return f"unknown before a trial has ended: there is no rule for {study.base.data.name}"
    return (
        f"about {_duration(total * trial_s(study.base))} of device time for the base config, by a rule "
        "measured on one core of an AMD EPYC; expect a factor of two"
    )


def _ended(study: Study) -> list[dict[str, Any]]:
    """The rows of all trials of the study that have ended, but for those whose measurements were deleted."""
    if study.is_new:
        return []
    from study import store  # here, because pyarrow takes a while to import

    folder = local_run(study.where, ("results/",))
    measured = store.measured_trials(folder)
    needed = ("COMPLETE", "STOPPED")
    rows = store.ended_trials(folder)
    return [row for row in rows if row["state"] not in needed or row["trial_id"] in measured]


def _disk(study: Study, total: int) -> str:
    """Of checkpoints, as many as are kept and one a trial that may be running, and of everything else."""
    if study.base.spec.attributes:
        return f"unknown before a trial has ended: there is no rule for {study.base.data.name}"
    checkpoint_mb = float(np.interp(study.base.model.width, _WIDTHS, _CHECKPOINT_MB))
    kept = min(total, study.keep_checkpoints + (study.max_concurrent or 1))
    size_mb = total * _FILES_MB + kept * checkpoint_mb
    return (
        f"about {size_mb:.3g} MB: {_FILES_MB:g} MB a trial, and {plural(kept, 'checkpoint')} of "
        f"{checkpoint_mb:.2g} MB as measured with the data set digits"
    )


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.3g} hours"
