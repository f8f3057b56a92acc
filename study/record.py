"""Runs one trial and keeps everything it shows: Parquet, checkpoints, TensorBoard, pictures."""

import errno
import json
import math
import os
import re
import resource
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import threadpoolctl
import torch
from PIL import Image
from tensorboard.plugins.hparams import summary_v2 as hparams
from torch.utils.tensorboard import SummaryWriter

from mmjsd.batches import Workers
from mmjsd.metrics import Score
from mmjsd.train import latest_checkpoint, load_checkpoint, read_notes
from study import manifest, store
from study.config import Objective, Phase, TrialConfig, curve_name, objective_curve, own_objective, trial_id
from study.files import FilesError, whole_file
from study.trial import Measurement, Rescue, run_pack


@dataclass(frozen=True)
class Trial:
    """One training of a study, as it travels to the process that runs it."""

    study: str
    space: str
    out: Path
    config: TrialConfig
    params: Mapping[str, Any]
    """The swept fields' values, by dotted path."""

    replicate: int
    phase: Phase
    objectives: tuple[Objective, ...]
    """Validation metrics that the study maximises; the first ranks."""

    workers: int
    commit: str
    dirty: bool
    versions: str
    swept: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Values of all fields that the study sweeps, also of those that do not apply here."""

    @property
    def config_hash(self) -> str:
        """Of the config without its seed."""
        return self.config.config_hash()

    @property
    def trial_id(self) -> str:
        """Config hash and replicate."""
        return trial_id(self.config_hash, self.replicate)

    @property
    def checkpoints(self) -> Path:
        """Folder of this trial's checkpoints."""
        return self.out / "checkpoints" / self.trial_id


def record(
    trials: Sequence[Trial],
    device: torch.device | str,
    report: Callable[[dict[str, Any]], None],
    bring: Callable[[], None] = lambda: None,
    is_warned: Callable[[], bool] | None = None,
) -> None:
    """Run a trial, or several as one pack, from their last checkpoints to their end.

    Each epoch's numbers are safe before its checkpoint is, and a trial's row is written last: a
    process killed anywhere repeats at most the epoch it was in, and one that was warned less.
    Divergence, and whatever else trials alone in their process raise, becomes their state with the
    reason, so that one bad config does not stop a study. Among several workers an error may be
    another's death: it is raised, as is that of a full disk, which is no trial's fault.

    Args:
        trials: what to train; several must fit together, as replicates of one config do. Those whose
            checkpoints are of different places, after a crash, or of other numbers of threads go on one after
            the other; those that have a row, as diverged before it, have ended.
        device: where.
        report: called after each epoch with "epoch", for each trial "shown/<its id>" (the first objective, or
            none where it was not evaluated) and all objectives by name, means over the trials. It may end
            this thread, when a scheduler stops the trials. Called with nothing when trials were saved within
            an epoch.
        bring: called when files were written, before they are reported: to where the study is kept.
        is_warned: whether this machine is about to go, as in `mmjsd.train.fit_pack`.
    """
    left = [trial for trial in trials if store.read_trial(trial.out, trial.trial_id) is None]
    recorders = [_Recorder(trial, device) for trial in left]
    for place, threads in sorted({(recorder.place, recorder.threads) for recorder in recorders}):
        of_place = [each for each in recorders if (each.place, each.threads) == (place, threads)]
        with limited_threads(threads):
            _record_pack(of_place, report, bring, is_warned)
        bring()


def _record_pack(
    recorders: Sequence["_Recorder"],
    report: Callable[[dict[str, Any]], None],
    bring: Callable[[], None],
    is_warned: Callable[[], bool] | None,
) -> None:
    first = recorders[0]
    going = list(recorders)
    for recorder in going:
        recorder.begin()
    try:
        for measurements in run_pack(
            [recorder.trial.config for recorder in recorders],
            [recorder.resume for recorder in recorders],
            first.device,
            first.trial.objectives,
            is_warned,
        ):
            for recorder in going:
                recorder.charge(len(going))
            for recorder, measurement in zip(recorders, measurements, strict=True):
                if recorder not in going:
                    continue
                if isinstance(measurement, Measurement):
                    recorder.keep(measurement)
                elif isinstance(measurement, Rescue):
                    recorder.save(measurement)
                else:
                    going.remove(recorder)
                    recorder.close("DIVERGED", str(measurement))
            bring()
            if going:
                report({} if isinstance(measurements[0], Rescue) else _shown(going))
        state, error = "COMPLETE", ""
    except FilesError:  # no trial's fault: they go on from what is safe
        raise
    except Exception as failed:
        if first.trial.workers > 1 or is_disk_full(failed):
            raise
        state, error = "FAILED", traceback.format_exc(limit=-8)
    for recorder in going:
        recorder.charge(len(going))
    for recorder in going:
        if state == "COMPLETE" and recorder.lacking:
            lacking = ", ".join(recorder.lacking)
            recorder.close(
                "FAILED", f"the last epoch's validation lacks {lacking}, which the study maximises"
            )
        else:
            recorder.close(state, error)


def _shown(recorders: Sequence["_Recorder"]) -> dict[str, Any]:
    """What a pack's trials have measured after this epoch, for the scheduler and the display."""
    epoch, first = recorders[0].epoch, recorders[0].trial.objectives[0]
    values = {recorder.trial.trial_id: recorder.objectives(epoch) for recorder in recorders}
    columns = {
        name: [each[name] for each in values.values() if name in each]
        for name in recorders[0].trial.objectives
    }
    means: dict[str, Any] = {name: sum(each) / len(each) for name, each in columns.items() if each}
    return {"epoch": epoch, **{f"shown/{key}": each.get(first) for key, each in values.items()}, **means}


def is_disk_full(error: BaseException | str) -> bool:
    """Whether something could not be written for want of space, in the words of whatever library."""
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))


def _usable_checkpoint(trial: Trial, device: torch.device) -> Path | None:
    """The trial's last checkpoint; none, so that it starts anew, if that or what it measured is damaged.

    Nor can a trial go on where its random numbers are others: on a GPU after a CPU, or on a CPU after a GPU.
    """
    path = latest_checkpoint(trial.checkpoints)
    if path is None:
        return None
    try:
        _, state = load_checkpoint(path)
        before = read_notes(path).get("device")
        rows = store.read_measurements(trial.out, trial.trial_id)
    except ValueError:
        return None
    if before is not None and (num_threads(before) is not None) != (device.type == "cpu"):
        return None
    return path if len({row["epoch"] for row in rows if row["epoch"] <= state.epoch}) == state.epoch else None


class _Recorder:
    """The files of one trial; under several workers only the first writes."""

    def __init__(self, trial: Trial, device: torch.device | str) -> None:
        self.trial, self.device = trial, torch.device(device)
        self.leads = Workers.current().rank == 0
        self.resume = _usable_checkpoint(trial, self.device)
        notes = read_notes(self.resume) if self.resume else {}
        self.place = self.resume.name if self.resume else ""
        noted = num_threads(notes.get("device", "")) or 0
        self.threads = noted if 0 < noted <= (os.cpu_count() or 1) else torch.get_num_threads()
        self.epoch = int(notes.get("epoch", 0))
        self.train_s, self.num_samples = notes.get("train_s", 0.0), int(notes.get("num_samples", 0))
        self.evaluation_s = notes.get("evaluation_s", math.nan if notes else 0.0)  # older notes lack it
        self.earlier_s: float = notes.get("wall_s", 0.0)
        self.device_s = _device_s(trial, notes)
        """Device-seconds: its share of the time that several were trained as one."""

        self.first_started_at = notes.get("started_at", time.time())
        self.started = self.charged = time.perf_counter()
        rows = store.read_measurements(trial.out, trial.trial_id) if self.leads and self.resume else []
        self.rows = [row for row in rows if row["epoch"] <= self.epoch]
        self.has_advanced = False
        """Whether there is a checkpoint of its own."""

        self.board: SummaryWriter | None = None
        if self.leads:
            folder = trial.out / "tensorboard" / trial.trial_id
            self.board = SummaryWriter(str(folder), purge_step=None if self.resume else 0)
            if trial.params and not self.epoch:
                writer: Any = self.board.file_writer
                for summary in _hparams(trial):
                    writer.add_summary(summary)

    def begin(self) -> None:
        """Its training begins, perhaps after that of others; what an earlier try has measured goes."""
        self.started = self.charged = time.perf_counter()
        earlier = self.trial.out / "results" / "measurements" / f"{self.trial.trial_id}.parquet"
        if self.leads and not self.resume and earlier.exists():
            store.write_measurements(self.trial.out, self.trial.trial_id, [])

    def charge(self, sharing: int) -> None:
        """Count the device's time since this was called last, which so many trials have shared."""
        now = time.perf_counter()
        self.device_s += (now - self.charged) * self.trial.workers / sharing
        self.charged = now

    def keep(self, measurement: Measurement) -> None:
        """Make one epoch's numbers safe, then its checkpoint."""
        self.epoch = measurement.epoch
        self.train_s += measurement.wall_s
        self.evaluation_s += measurement.evaluation_s
        self.num_samples += measurement.num_samples
        for split, scores in measurement.scores.items():
            self.rows += [self._row(split, score) for score in scores]
        if self.leads:
            store.write_measurements(self.trial.out, self.trial.trial_id, self.rows)
            self._draw(measurement)
        self.save(measurement)

    @property
    def notes(self) -> dict[str, Any]:
        """How far the trial is, where, and what it has cost so far: what a checkpoint keeps of it."""
        return {
            "epoch": self.epoch,
            "train_s": self.train_s,
            "evaluation_s": self.evaluation_s,
            "num_samples": self.num_samples,
            "wall_s": self.wall_s,
            "device_s": self.device_s,
            "started_at": self.first_started_at,
            "device": _device_name(self.device),
            "host": socket.gethostname(),
        }

    def save(self, reached: Measurement | Rescue) -> None:
        """Write a checkpoint, with its notes."""
        if not self.leads:
            return
        reached.save(self.trial.checkpoints, self.notes)
        self.has_advanced = True

    def close(self, state: str, error: str) -> None:
        """Write the trial's row; one that has failed goes on from its last checkpoint when it is tried again.

        It starts anew if it has come no further than the one it went on from, or has no epoch left.
        """
        if not self.leads:
            return
        assert self.board is not None
        self.board.close()
        values = self.objectives(self.epoch) if state == "COMPLETE" else {}
        own = {"peak_memory_gib": self._peak_memory_gib(), "versions": _versions()}
        _write_row(self.trial, state, error, self.notes, values, own)
        can_go_on = self.has_advanced and self.epoch < self.trial.config.training.epochs
        if state == "FAILED" and not can_go_on:
            shutil.rmtree(self.trial.checkpoints, ignore_errors=True)

    def objectives(self, epoch: int) -> dict[str, float]:
        """The objectives that this epoch has, by name."""
        curves = {name: objective_curve(self.rows, name) for name in self.trial.objectives}
        return {name: curve[epoch] for name, curve in curves.items() if epoch in curve}

    @property
    def lacking(self) -> list[str]:
        """The study's objectives that the last epoch lacks; the leader alone knows."""
        found = self.objectives(self.epoch)
        return [name for name in self.trial.objectives if self.leads and name not in found]

    @property
    def wall_s(self) -> float:
        """Seconds that the trial has taken, over all its processes."""
        return self.earlier_s + time.perf_counter() - self.started

    def _row(self, split: str, score: Score) -> dict[str, Any]:
        trial = self.trial
        return {
            "study": trial.study,
            "trial_id": trial.trial_id,
            "config_hash": trial.config_hash,
            "replicate": trial.replicate,
            "epoch": self.epoch,
            "split": split,
            **vars(score),
            "attribute": score.attribute or None,
        }

    def _draw(self, measurement: Measurement) -> None:
        assert self.board is not None
        first_step = (measurement.epoch - 1) * len(measurement.losses)
        for step, loss in enumerate(measurement.losses.tolist()):
            self.board.add_scalar("loss/step", loss, first_step + step)
        for split, scores in measurement.scores.items():
            for score in (each for each in scores if not each.attribute):
                name = curve_name({**vars(score), "split": split})
                self.board.add_scalar(name, score.value, measurement.epoch)
        if "test" in measurement.scores:
            folder = self.trial.out / "samples" / self.trial.trial_id
            folder.mkdir(parents=True, exist_ok=True)
            for name, picture in measurement.draw().items():
                self.board.add_image(f"samples/{name}", picture, measurement.epoch, dataformats="HWC")
                with whole_file(folder / f"{name}.png") as temporary:
                    Image.fromarray(picture).save(temporary, format="PNG")
        self.board.flush()  # before the checkpoint, as what comes before that is not drawn again

    def _peak_memory_gib(self) -> float:
        """On a CPU of its process, which trials before it have shared and which keeps what they freed."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _hparams(trial: Trial) -> Iterator[Any]:
    """What TensorBoard's HPARAMS tab needs: the swept fields, with a config's replicates as one group."""
    values: dict[str, float | str | bool] = {}
    for path, value in trial.params.items():
        if isinstance(value, (tuple, list)):
            values |= {f"{path}[{index}]": each for index, each in enumerate(value)}
        else:
            values[path] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    generated = (f"{own_objective(trial.config)}/product", "random_coherence")
    tags = [*(f"{split}/{metric}" for split in ("validation", "test") for metric in generated), "test/loss"]
    metrics = [hparams.Metric(tag, display_name=tag) for tag in tags]
    yield hparams.hparams_config_pb([hparams.HParam(name) for name in values], metrics)
    yield hparams.hparams_pb(values, trial_id=trial.config_hash)


def record_end(trial: Trial, state: store.State, error: str = "") -> None:
    """The row of a trial that could not write one: it was stopped, or its process vanished."""
    _write_row(trial, state, error, _last_notes(trial))


def begun_try(trial: Trial) -> dict[str, Any] | None:
    """By its last checkpoint, what a trial that has not ended has taken, when it began, and where."""
    notes = _last_notes(trial)
    if "started_at" not in notes:
        return None
    began = datetime.fromtimestamp(notes["started_at"], UTC).isoformat()
    return {"device_s": _device_s(trial, notes), "started_at": began, "device": notes.get("device")}


def _last_notes(trial: Trial) -> dict[str, Any]:
    """Of the last checkpoint, of which a node that trained none of it may have the notes alone."""
    checkpoint = latest_checkpoint(trial.checkpoints)
    with suppress(ValueError):
        return read_notes(checkpoint) if checkpoint else {}
    return {}


def _device_s(trial: Trial, notes: Mapping[str, Any]) -> float:
    """Device-seconds by a checkpoint's notes; older ones have the pack's size."""
    whole = notes.get("wall_s", 0.0) * trial.workers / notes.get("packed", 1)
    return float(notes.get("device_s", whole))


def _write_row(
    trial: Trial,
    state: str,
    error: str,
    notes: Mapping[str, Any],
    values: Mapping[str, float] = MappingProxyType({}),
    own: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write an ended trial's row, by the notes of its end or else of its last checkpoint.

    Args:
        values: its objectives, as far as it has them.
        own: further columns, which its process alone knows.
    """
    now = datetime.now(UTC)
    train_s = notes.get("train_s", 0.0)
    first, *others = trial.objectives
    row = {
        **identity(trial),
        "state": state,
        "error": error,
        "epochs": int(notes.get("epoch", 0)),
        "started_at": datetime.fromtimestamp(notes["started_at"], UTC) if notes else now,
        "finished_at": now,
        "wall_s": notes.get("wall_s", 0.0),
        "device_s": _device_s(trial, notes),
        "evaluation_s": _known(notes.get("evaluation_s", math.nan)),
        "samples_per_s": notes["num_samples"] / train_s if train_s else None,
        "device": notes.get("device", ""),
        "host": notes.get("host", ""),
        "objective_metric": first,
        "objective_value": values.get(first),
        **own,
    }
    further: dict[str, float | None] = {name: values.get(name) for name in trial.objectives if others}
    store.write_trial(trial.out, row, trial.params, further, trial.swept)


def identity(trial: Trial) -> dict[str, Any]:
    """The columns of the table `trials` that are known before a trial starts."""
    return {
        "study": trial.study,
        "space": trial.space,
        "trial_id": trial.trial_id,
        "config_hash": trial.config_hash,
        "replicate": trial.replicate,
        "phase": trial.phase,
        "seed": trial.config.seed,
        "workers": trial.workers,
        "commit": trial.commit,
        "dirty": trial.dirty,
        "versions": trial.versions,
        "config": json.dumps(trial.config.resolved().to_dict(), sort_keys=True),
    }


@cache
def _versions() -> str:
    """Of the packages that this process has; on another node they may be others than the study's."""
    return json.dumps(manifest.versions())


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu x {torch.get_num_threads()} threads"


def num_threads(device: str) -> int | None:
    """How many threads a trial had, by the device that its row names; they decide how sums are rounded."""
    found = re.fullmatch(r"cpu x (\d+) threads", device)
    return int(found[1]) if found else None


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """So many threads for PyTorch and the libraries beside it, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpoolctl.threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)
