"""Trains one ended trial of a study alone, without Ray: does it give the numbers that the tables hold?"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmjsd.config import require
from mmjsd.train import DivergedError
from study import store
from study.config import TrialConfig
from study.record import limited_threads, num_threads
from study.trial import run_trial

_log = logging.getLogger(__name__)

_KEY = ("epoch", "split", "metric", "posterior", "given", "target", "attribute")
_VALUES = ("value", "standard_error", "num_samples")

Measured = dict[tuple[Any, ...], tuple[Any, ...]]
"""Value, standard error and number of samples of everything that was measured, by what it is."""


@dataclass(frozen=True)
class Replay:
    """What a replay has shown."""

    num_equal: int
    differences: tuple[str, ...]
    """A line for each value that differs or stands on one side only."""

    error: str
    """With which the trial has diverged both times; empty if it has not."""


def replay(path: Path, run: str = "") -> Replay:
    """Train one trial again, from its start and with as many threads, and compare all that it measures.

    Writes nothing. Numbers are equal on the same kind of device with the same code and packages.

    Args:
        path: RUN/TRIAL_ID, a study's folder and a trial that has ended in it.
        run: the study's folder by the name that the user knows, if that is another.

    Raises:
        ValueError: with one sentence, if there is no such trial or it cannot be trained here.
    """
    out, name = path.parent, path.name
    row = _row(out, name, run or str(out))
    device = _device(row, path)
    config = TrialConfig.from_dict(json.loads(row["config"]))
    stored = _by_key(store.read_measurements(out, name))
    last = max((key[0] for key in stored), default=0)
    found: Measured = {}
    error = ""
    try:
        with limited_threads(num_threads(row["device"]) or torch.get_num_threads()):
            for measurement in run_trial(config, device=device, objectives=_objectives(row)):
                _log.info("epoch %d of %d", measurement.epoch, config.training.epochs)
                for split, scores in measurement.scores.items():
                    scored = ({**vars(score), "split": split, "epoch": measurement.epoch} for score in scores)
                    found |= _by_key(list(scored))
                if row["state"] == "STOPPED" and measurement.epoch >= last:
                    break
    except DivergedError as diverged:
        error = str(diverged)
    differences = _differences(stored, found)
    if error != row["error"]:
        differences.append(f"ended with {row['error'] or 'no error'!r}, now with {error or 'no error'!r}")
    equal = sum(stored[key] == found.get(key) for key in stored)
    return Replay(equal, tuple(differences), error if error == row["error"] else "")


def _row(out: Path, name: str, where: str) -> Mapping[str, Any]:
    """The row of a trial that can be replayed, of the study that the user knows as `where`."""
    require((out / "results").is_dir(), f"{where} holds no study; give --replay RUN/TRIAL_ID")
    row = store.read_trial(out, name)
    if row is None:
        raise ValueError(f"no trial {name!r} has ended in {where}; results/trials there has a file for each")
    require(
        row["state"] != "FAILED",
        f"{name} failed, so there is nothing to compare; --resume --retry failed tries it again",
    )
    workers = row["workers"]
    require(workers == 1, f"{name} was trained by {workers} workers; a replay has but one, and so other sums")
    return row


def _objectives(row: Mapping[str, Any]) -> list[Any]:
    """What the trial's study maximised, and so what was measured on validation."""
    several = [name.removeprefix("objective.") for name in row if name.startswith("objective.")]
    return several or [row["objective_metric"]]


def _device(row: Mapping[str, Any], path: Path) -> str:
    """Where to train: on the kind of device that the trial had."""
    if row["device"].startswith("cpu"):
        return "cpu"
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    require(
        here == row["device"],
        f"{path.name} was trained on {row['device'] or 'an unknown device'}, this machine has {here}; "
        "replay it on such a machine",
    )
    return "cuda"


def _by_key(rows: list[dict[str, Any]]) -> Measured:
    """Keys in which what a row does not say is empty, as the table has it null or empty."""
    return {
        tuple("" if row[name] is None else row[name] for name in _KEY): tuple(row[name] for name in _VALUES)
        for row in rows
    }


def _differences(stored: Measured, found: Measured) -> list[str]:
    lines = []
    for key in sorted({**stored, **found}):
        old, new = stored.get(key), found.get(key)
        if old != new:
            epoch, *names = key
            what = " ".join(name for name in names if name)
            lines.append(f"epoch {epoch} {what}: {_shown(old)}, now {_shown(new)}")
    return lines


def _shown(values: tuple[Any, ...] | None) -> str:
    if values is None:
        return "not measured"
    value, error, num_samples = values
    return f"{value!r} (standard error {error!r}, {num_samples} samples)"
