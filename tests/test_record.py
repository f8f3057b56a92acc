"""A trial that goes wrong, its training played: its state, what the sampler hears and the report says."""

import errno
import json

import pytest
import torch

from analysis.report import main as report
from mmjsd.config import ModelConfig
from mmjsd.data import DATASETS
from mmjsd.metrics import Score
from mmjsd.model import MultimodalVae
from mmjsd.train import DivergedError, TrainingState, save_checkpoint
from study import record, store
from study.search import Search
from study.trial import Measurement
from tests.test_search import optuna_trials, study

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


@pytest.mark.parametrize("damage", ["none", "checkpoint", "notes", "measurements", "epoch"])
def test_goes_on_from_its_checkpoint_unless_that_or_what_it_measured_is_damaged(
    tmp_path, monkeypatch, damage
):
    trial = Search(study(tmp_path, trials=1, replicates=1)).next()
    model = MultimodalVae(DATASETS["digits"].modalities, ModelConfig(width=0.1), trial.config.objective)
    columns = ("study", "trial_id", "config_hash", "replicate")
    known = {name: value for name, value in record.identity(trial).items() if name in columns}
    score = {**vars(Score("loss", 3.0, None, 9)), "split": "train"}
    epochs = (1, 2) if damage != "epoch" else (2,)
    store.write_measurements(tmp_path, trial.trial_id, [{**known, **score, "epoch": each} for each in epochs])
    path = save_checkpoint(model, TrainingState(2, {}), trial.checkpoints, {"epoch": 2, "wall_s": 4.0})
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
