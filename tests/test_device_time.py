"""Device time of a study: counted once over sessions, tries and kills."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from study import store
from study.record import record_end
from study.search import Search
from tests.studies import end, run, study


def test_device_seconds_are_summed_over_sessions(tmp_path):
    search = Search(study(tmp_path))
    run(search, limit=3)
    assert search.device_s == 3
    again = Search(study(tmp_path))
    assert again.device_s == 3
    run(again, limit=1)
    assert again.device_s == 4


def begun(trial, device_s, started_at=1.5, device="cpu x 1 threads"):
    """The checkpoint of a trial that has not ended."""
    path = trial.checkpoints / "epoch-000003"
    path.mkdir(parents=True, exist_ok=True)
    notes = {"epoch": 3, "wall_s": device_s, "device_s": device_s, "started_at": started_at, "device": device}
    (path / "epoch.json").write_text(json.dumps({"epoch": 3, "notes": notes}))


@pytest.mark.parametrize(("anew", "lost_s"), [(False, None), (True, 50.0)])
def test_what_an_interrupted_trial_has_taken_counts_once(tmp_path, anew, lost_s):
    """Before it has ended, and then in its row, if it starts anew as lost."""
    made = study(tmp_path, trials=1, replicates=1)
    begun(Search(made).next(), 30.0)
    assert Search(made).device_s == 30
    begun(Search(made).next(), 50.0)  # a second session, from where the first was
    search = Search(made)
    assert search.device_s == 50
    trial = search.next()
    begun(trial, 70.0, started_at=9.5 if anew else 1.5)
    record_end(trial, "STOPPED")
    search.ended(trial)
    assert store.read_trial(tmp_path, trial.trial_id)["lost_s"] == lost_s
    assert search.device_s == Search(made).device_s == 70 + (lost_s or 0)


def test_what_an_earlier_try_has_taken_is_kept_by_a_kill_after_the_row(tmp_path):
    made = study(tmp_path, trials=1, replicates=1)
    search = Search(made)
    end(search, search.next(), None, "FAILED")
    trial = Search(dataclasses.replace(made, retry=("failed",))).next()
    end(SimpleNamespace(ended=lambda trial: None), trial, 0.5)  # of which the study takes no note
    for _ in range(2):
        assert Search(made).device_s == 2
        assert store.read_trial(tmp_path, trial.trial_id)["lost_s"] == 1


@pytest.mark.parametrize(("device", "is_told"), [("cpu x 1 threads", False), ("NVIDIA L4", True)])
def test_a_trial_that_another_kind_of_device_has_begun_is_told_to_start_anew(
    tmp_path, caplog, device, is_told
):
    made = study(tmp_path, trials=1, replicates=1)
    trial = Search(made).next()
    begun(trial, 30.0, device=device)
    Search(made)
    told = f"trial {trial.trial_id} starts anew, as its checkpoint is of another kind of device ({device})"
    assert caplog.messages == [told] * is_told


@pytest.mark.parametrize("is_told", [False, True])
def test_a_kill_while_a_row_is_told_of_an_earlier_try_counts_that_once(tmp_path, monkeypatch, is_told):
    made = study(tmp_path, trials=1, replicates=1)
    search = Search(made)
    end(search, search.next(), None, "FAILED")
    search = Search(dataclasses.replace(made, retry=("failed",)))
    trial = search.next()
    write = store.write_lost

    def killed(*told):
        if is_told:
            write(*told)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_lost", killed)
    with pytest.raises(KeyboardInterrupt):
        end(search, trial, 0.5)
    monkeypatch.setattr(store, "write_lost", write)
    for _ in range(2):
        assert Search(made).device_s == 2
        assert store.read_trial(tmp_path, trial.trial_id)["lost_s"] == 1


def test_a_kill_before_the_row_of_an_earlier_try_is_removed_counts_it_once(tmp_path):
    made = study(tmp_path, trials=1, replicates=1)
    search = Search(made)
    trial = search.next()
    end(search, trial, None, "FAILED")
    (file,) = (tmp_path / "results" / "trials").iterdir()
    row = file.read_bytes()
    Search(dataclasses.replace(made, retry=("failed",))).next()
    file.write_bytes(row)
    for _ in range(2):
        assert Search(made).device_s == 1
        assert store.read_trial(tmp_path, trial.trial_id)["lost_s"] is None
