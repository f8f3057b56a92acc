"""A trial that goes wrong, its training played: its state, what the sampler hears and the report says."""

import errno

import pytest
import torch

from analysis.report import main as report
from mmjsd.metrics import Score
from mmjsd.train import DivergedError
from study import record, store
from study.search import Search
from study.trial import Measurement
from tests.test_search import optuna_trials, study

DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def played(trouble, metric="mean_coherence"):
    """A trial of two epochs; the first replicate meets its trouble in the second."""

    def run_pack(configs, resumes, device, objectives):
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
