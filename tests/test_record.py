"""A trial that goes wrong, its training played: its state, what the sampler hears and the report says."""

import dataclasses
import errno
import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from analysis.report import main as report
from mmjsd.config import ModelConfig
from mmjsd.data import DATASETS
from mmjsd.metrics import Score
from mmjsd.model import MultimodalVae
from mmjsd.train import DivergedError, TrainingState, save_checkpoint
from study import record, store
from study.search import Search
from study.trial import Measurement, Rescue
from tests.studies import optuna_trials, study

DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def played(trouble, metric="mean_coherence"):
    """A trial of two epochs; the first replicate meets its trouble in the second."""

    def run_pack(configs, resumes, device, objectives, is_warned):
        for epoch in (1, 2):
            if epoch == 2 and isinstance(trouble, DivergedError):
                yield [trouble]
                return
            if epoch == 2 and isinstance(trouble, Exception):
                raise trouble
            shown = Measurement(
                epoch=epoch,
                scores={
                    "train": [Score("loss", 3.0, None, 9)],
                    "validation": [Score(metric, 0.5, 0.1, 9, "product")],
                },
                losses=torch.ones(2),
                wall_s=1.0,
                evaluation_s=0.1,
                num_samples=9,
                save=lambda folder, notes: folder.mkdir(parents=True, exist_ok=True),
                draw=dict,
            )
            yield [shown]

    return run_pack


@pytest.mark.parametrize(
    ("trouble", "state", "reason"),
    [
        (
            DivergedError("loss is inf at epoch 2, step 7 of 9"),
            "DIVERGED",
            "loss is inf at epoch 2, step 7 of 9",
        ),
        (
            DivergedError("recall is nan on the validation split"),
            "DIVERGED",
            "recall is nan on the validation",
        ),
        (ZeroDivisionError("division by zero"), "FAILED", "ZeroDivisionError: division by zero"),
        (MemoryError("cannot allocate 9 GiB"), "FAILED", "MemoryError: cannot allocate 9 GiB"),
        (
            "unmeasured",
            "FAILED",
            "the last epoch's validation lacks mean_coherence, which the study maximises",
        ),
    ],
)
def test_has_its_state_the_sampler_hears_of_it_and_the_report_says_why(
    tmp_path, monkeypatch, trouble, state, reason
):
    search = Search(study(tmp_path, sampler="random", trials=2, replicates=1))
    reports = []
    for metric, problem in (("recall" if trouble == "unmeasured" else "mean_coherence", trouble), ("", None)):
        monkeypatch.setattr(record, "run_pack", played(problem, metric or "mean_coherence"))
        trial = search.next()
        record.record([trial], "cpu", reports.append)
        search.ended(trial)
    rows = store.ended_trials(tmp_path)
    assert sorted(row["state"] for row in rows) == sorted(["COMPLETE", state])
    (row,) = [row for row in rows if row["state"] == state]
    assert reason in row["error"]
    assert row["objective_value"] is None
    assert row["epochs"] == (2 if trouble == "unmeasured" else 1)
    assert [each.state.name for each in optuna_trials(tmp_path)] == ["FAIL", "COMPLETE"]
    assert report([str(tmp_path)]) == 0
    said = (tmp_path / "report" / "report.md").read_text()
    assert f"{state}: {row['trial_id']}" in said
    assert reason in said


def test_that_finds_the_disk_full_has_not_ended(tmp_path, monkeypatch):
    search = Search(study(tmp_path, trials=1, replicates=1))
    monkeypatch.setattr(record, "run_pack", played(DISK_FULL))
    with pytest.raises(OSError, match="No space left"):
        record.record([search.next()], "cpu", lambda values: None)
    assert store.ended_trials(tmp_path) == []
    assert search.num_missing == 1


@pytest.mark.parametrize("damage", ["none", "checkpoint", "notes", "measurements", "epoch", "device"])
def test_goes_on_from_its_checkpoint_unless_that_or_what_it_measured_is_damaged_or_a_gpus(
    tmp_path, monkeypatch, damage
):
    trial = Search(study(tmp_path, trials=1, replicates=1)).next()
    model = MultimodalVae(DATASETS["digits"].modalities, ModelConfig(width=0.1), trial.config.objective)
    columns = ("study", "trial_id", "config_hash", "replicate")
    known = {name: value for name, value in record.identity(trial).items() if name in columns}
    score = {**vars(Score("loss", 3.0, None, 9)), "split": "train"}
    epochs = (1, 2) if damage != "epoch" else (2,)
    store.write_measurements(tmp_path, trial.trial_id, [{**known, **score, "epoch": each} for each in epochs])
    device = "NVIDIA H100" if damage == "device" else "cpu x 8 threads"
    notes = {"epoch": 2, "wall_s": 4.0, "device": device}
    path = save_checkpoint(model, TrainingState(2, {}), trial.checkpoints, notes)
    files = {
        "checkpoint": path / "model.safetensors",
        "notes": path / "epoch.json",
        "measurements": tmp_path / "results" / "measurements" / f"{trial.trial_id}.parquet",
    }
    if damage in files:
        files[damage].write_bytes(files[damage].read_bytes()[:-9])
    asked = []

    def run_pack(configs, resumes, device, objectives, is_warned):
        asked.extend(resumes)
        return iter(())

    monkeypatch.setattr(record, "run_pack", run_pack)
    record.record([trial], "cpu", lambda values: None)
    assert asked == [path if damage == "none" else None]
    row = store.read_trial(tmp_path, trial.trial_id)
    assert row["epochs"] == (2 if damage == "none" else 0)


class Gone(BaseException):
    """The node, with all its processes."""


def played_pack(diverging=(), warned_at=None, epochs=4, fails_at=None):
    """A pack's training: an epoch an hour; some diverge in the second, a warning comes within another.

    Losses count the steps, ten an epoch. Before `fails_at` an error is raised.
    """

    def run_pack(configs, resumes, device, objectives, is_warned):
        begun = json.loads((resumes[0] / "epoch.json").read_text())["epoch"] if resumes[0] else 0
        for epoch in range(begun + 1, epochs + 1):
            record.time.now += 3600.0
            if epoch == fails_at:
                raise MemoryError("CUDA out of memory")
            if epoch == warned_at and is_warned and is_warned():
                yield [Rescue(partial(saved, epoch - 1)) for _ in configs]
                raise Gone
            yield [
                DivergedError("loss is inf")
                if epoch > 1 and config.seed in diverging
                else Measurement(
                    epoch=epoch,
                    scores={"validation": [Score("mean_coherence", 0.5, 0.1, 9, "product")]},
                    losses=torch.arange(10.0) + 10 * (epoch - 1),
                    wall_s=3600.0,
                    evaluation_s=0.0,
                    num_samples=9,
                    save=partial(saved, epoch),
                    draw=dict,
                )
                for config in configs
            ]

    return run_pack


def saved(epoch, folder, notes):
    path = folder / f"epoch-{epoch:06d}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "epoch.json").write_text(json.dumps({"epoch": epoch, "notes": notes}))


@pytest.fixture
def hours(monkeypatch):
    """A clock that only training moves; checkpoints are their notes."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    clock.time = lambda: 1e9 + clock.now
    monkeypatch.setattr(record, "time", clock)

    def load(path):
        return None, SimpleNamespace(epoch=json.loads((path / "epoch.json").read_text())["epoch"])

    monkeypatch.setattr(record, "load_checkpoint", load)
    return clock


def test_device_time_is_shared_by_those_that_go_on(tmp_path, monkeypatch, hours):
    trials = Search(study(tmp_path, trials=1, replicates=4, pack=4)).next_pack(4)
    diverging = {trial.config.seed for trial in trials[:3]}
    monkeypatch.setattr(record, "run_pack", played_pack(diverging))
    record.record(trials, "cpu", lambda values: None)
    rows = [store.read_trial(tmp_path, trial.trial_id) for trial in trials]
    assert [row["state"] for row in rows] == ["DIVERGED"] * 3 + ["COMPLETE"]
    assert [row["device_s"] / 3600 for row in rows] == [0.5, 0.5, 0.5, 2.5]
    assert [row["wall_s"] / 3600 for row in rows] == [2, 2, 2, 4]


def test_one_that_diverged_is_neither_saved_at_a_warning_nor_trained_again(tmp_path, monkeypatch, hours):
    one, other = Search(study(tmp_path, trials=1, replicates=2, pack=2)).next_pack(2)
    monkeypatch.setattr(record, "run_pack", played_pack({one.config.seed}, warned_at=4))
    with pytest.raises(Gone):
        record.record([one, other], "cpu", lambda values: None, is_warned=lambda: True)
    assert store.read_trial(tmp_path, one.trial_id)["state"] == "DIVERGED"
    assert [path.name for path in one.checkpoints.iterdir()] == ["epoch-000001"]
    before = hours.now
    record.record([one, other], "cpu", lambda values: None)
    assert (hours.now - before) / 3600 == 1
    assert store.read_trial(tmp_path, other.trial_id)["state"] == "COMPLETE"


def test_goes_on_with_the_threads_that_it_had(tmp_path, monkeypatch, hours):
    """Those of a pack apart, if they had other numbers of threads; more than there are cores help nobody."""
    monkeypatch.setattr(record.os, "cpu_count", lambda: 4)
    pack = Search(study(tmp_path, trials=1, replicates=4, pack=4)).next_pack(4)
    monkeypatch.setattr(record, "run_pack", played_pack(warned_at=3))
    for threads, trials in ((2, pack[:2]), (3, pack[2:3]), (5, pack[3:])):
        with record.limited_threads(threads), pytest.raises(Gone):
            record.record(trials, "cpu", lambda values: None, is_warned=lambda: True)
    before, seen = torch.get_num_threads(), []

    def run_pack(configs, *rest):
        seen.append((len(configs), torch.get_num_threads()))
        return played_pack()(configs, *rest)

    monkeypatch.setattr(record, "run_pack", run_pack)
    record.record(pack, "cpu", lambda values: None)
    assert seen == [(1, before), (2, 2), (1, 3)]
    assert torch.get_num_threads() == before
    rows = [store.read_trial(tmp_path, trial.trial_id) for trial in pack]
    assert [row["device"] for row in rows] == [f"cpu x {threads} threads" for threads in (2, 2, 3, before)]
    assert {row["state"] for row in rows} == {"COMPLETE"}


def retried(made, run_pack, monkeypatch):
    """How a study's only trial ends when it is tried again, all hours that went into it, epochs measured."""
    search = Search(dataclasses.replace(made, retry=("failed", "diverged")))
    trial = search.next()
    monkeypatch.setattr(record, "run_pack", run_pack)
    record.record([trial], "cpu", lambda values: None)
    search.ended(trial)
    row = store.read_trial(made.out, trial.trial_id)
    measured = sorted({each["epoch"] for each in store.read_measurements(made.out, trial.trial_id)})
    assert search.device_s == Search(made).device_s == row["device_s"] + (row["lost_s"] or 0)
    return row["state"], search.device_s / 3600, measured


def test_that_failed_goes_on_from_its_last_checkpoint_unless_it_came_no_further(tmp_path, monkeypatch, hours):
    made = study(tmp_path, trials=1, replicates=1)
    for run_pack, shown in (
        (played_pack(fails_at=3), ("FAILED", 3.0, [1, 2])),
        (played_pack(fails_at=3), ("FAILED", 4.0, [1, 2])),
        (played_pack(fails_at=1), ("FAILED", 5.0, [])),
        (played_pack(fails_at=2), ("FAILED", 7.0, [1])),
        (played_pack(), ("COMPLETE", 10.0, [1, 2, 3, 4])),
    ):
        assert retried(made, run_pack, monkeypatch) == shown


def test_that_diverged_and_fails_at_once_has_measured_nothing(tmp_path, monkeypatch, hours):
    made = study(tmp_path, trials=1, replicates=1)
    diverging = {Search(made).next().config.seed}
    assert retried(made, played_pack(diverging), monkeypatch) == ("DIVERGED", 2.0, [1])
    assert retried(made, played_pack(fails_at=1), monkeypatch) == ("FAILED", 3.0, [])


@pytest.mark.parametrize("goes_on", [True, False])
def test_has_all_its_steps_in_tensorboard_once(tmp_path, monkeypatch, hours, goes_on):
    """Though its process is gone after three epochs, and has closed no file."""
    trial = Search(study(tmp_path, trials=1, replicates=1)).next()
    monkeypatch.setattr(record, "run_pack", played_pack(warned_at=4))
    with pytest.raises(Gone) as gone:
        record.record([trial], "cpu", lambda values: None, is_warned=lambda: True)
    if not goes_on:
        shutil.rmtree(trial.checkpoints)
    monkeypatch.setattr(record, "run_pack", played_pack())
    record.record([trial], "cpu", lambda values: None)
    events = EventAccumulator(str(tmp_path / "tensorboard" / trial.trial_id), {"scalars": 0}).Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss/step")] == [(n, n) for n in range(40)]
    assert [each.step for each in events.Scalars("validation/mean_coherence/product")] == [1, 2, 3, 4]
    del gone  # whose frames had the file open


@pytest.mark.parametrize(
    ("goes_on", "expected"),
    [(False, {"device_s": 1.0, "lost_s": 4.0}), (True, {"device_s": 4.0, "lost_s": 1.0})],
)
def test_a_retried_trial_has_the_time_of_its_earlier_try(tmp_path, hours, goes_on, expected):
    """Once: within its own, if it has gone on from there."""
    made = study(tmp_path, trials=1, replicates=1)
    search = Search(made)
    trial = search.next()
    notes = {"epoch": 1, "wall_s": 3.0, "device_s": 3.0, "started_at": 5.0, "num_samples": 9, "train_s": 1.0}
    saved(1, trial.checkpoints, notes)
    record.record_end(trial, "FAILED", "it vanished")
    store.write_lost(tmp_path, trial.trial_id, 1.0)
    search.ended(trial)
    assert search.device_s == 4.0
    again = Search(dataclasses.replace(made, retry=("failed",)))
    assert again.device_s == 4.0
    trial = again.next()
    assert again.device_s == Search(made).device_s == 4.0  # also if this session should end now
    took = (
        {"wall_s": 4.0, "device_s": 4.0} if goes_on else {"wall_s": 1.0, "device_s": 1.0, "started_at": 9.0}
    )
    saved(1, trial.checkpoints, notes | took)
    record.record_end(trial, "STOPPED")
    again.ended(trial)
    row = store.read_trial(tmp_path, trial.trial_id)
    assert {name: row[name] for name in expected} == expected
    assert again.device_s == Search(made).device_s == 5.0


def test_that_another_node_trained_has_what_its_notes_tell(tmp_path):
    """Of which the study's process has neither measurements nor model."""
    trial = Search(study(tmp_path, trials=1, replicates=1)).next()
    path = trial.checkpoints / "epoch-000003"
    path.mkdir(parents=True)
    notes = {"epoch": 3, "wall_s": 4.0, "train_s": 3.0, "num_samples": 9, "started_at": 1.0, "host": "there"}
    (path / "epoch.json").write_text(json.dumps({"epoch": 3, "notes": notes}))
    record.record_end(trial, "STOPPED")
    row = store.read_trial(tmp_path, trial.trial_id)
    assert (row["epochs"], row["device_s"], row["samples_per_s"], row["host"]) == (3, 4.0, 3.0, "there")
    (path / "epoch.json").write_text("{")
    record.record_end(trial, "FAILED", "it vanished")
    row = store.read_trial(tmp_path, trial.trial_id)
    assert (row["state"], row["epochs"], row["device_s"]) == ("FAILED", 0, 0.0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DISK_FULL, True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("unable to open file"), False),
    ],
)
def test_knows_a_full_disk_whatever_library_meets_it(error, expected):
    assert record.is_disk_full(error) is expected
