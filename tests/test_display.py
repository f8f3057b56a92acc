"""The live view of a study ..."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.progress import Progress

from study import display
from study.config import TrialConfig
from study.display import Display
from study.record import Trial
from study.run import Notes


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(display, "time", clock)
    return clock


def trial_of(params, epochs=4):
    config = TrialConfig().with_fields({"training.epochs": epochs})
    return Trial("", "", Path(), config, params, 0, "search", ("loss",), 1, "", False, "{}")


def lines_of(shown):
    with shown._console.capture() as captured:
        shown._console.print(shown._render())
    return captured.get().splitlines()


def complete(value):
    """A table in which each trial is complete."""
    row = {"state": "COMPLETE", "objective_value": value, "error": ""}
    return SimpleNamespace(read_trial=lambda out, trial_id: row)


def test_names_a_trial_by_its_fields_and_cases(monkeypatch):
    monkeypatch.setattr(Progress, "add_task", lambda self, text, **rest: texts.append(text) or len(texts))
    texts: list[str] = []
    params = {"subspaces": "4 each", "model.style_dim": 4, "objective.beta": 2.5}
    objectives = ("mean_coherence",)
    trial = Trial("", "", Path(), TrialConfig(), params, 0, "search", objectives, 1, "", False, "{}")
    Display("study", 1, 1, "mean_coherence").started(trial)
    assert texts[-1].strip() == "subspaces 4 each, style_dim 4, beta 2.5, replicate 1"


def test_names_the_replicates_of_a_confirmation_from_one(monkeypatch):
    monkeypatch.setattr(Progress, "add_task", lambda self, text, **rest: texts.append(text) or len(texts))
    texts: list[str] = []
    trial = Trial("", "", Path(), TrialConfig(), {}, 1001, "confirm", ("loss",), 1, "", False, "{}")
    Display("study", 1, 1, "loss").started(trial)
    assert texts[-1].strip() == "base config, fresh replicate 2"


def test_epochs_that_will_not_be_trained_take_no_time(monkeypatch, clock):
    """Of three trials of ten epochs one goes on from its seventh, and one is stopped after its third."""
    row = {"state": "STOPPED", "objective_value": None, "error": ""}
    monkeypatch.setattr(display.store, "read_trial", lambda out, trial_id: row)
    first, second, _ = (
        Trial("", "", Path(), TrialConfig(), {}, number, "search", ("loss",), 1, "", False, "{}")
        for number in range(3)
    )
    shown = Display("study", 3, 10, "loss")
    for trial, epochs in ((first, (8, 9, 10)), (second, (1, 2, 3))):
        shown.started(trial)
        for epoch in epochs:
            clock.now += 60.0
            shown.progressed(trial, epoch, None)
        shown.ended(trial)
    assert shown._left() == ", about 10 min 00 s left"


def test_a_trial_that_was_interrupted_has_not_failed(tmp_path, capsys):
    trial = Trial("", "", tmp_path, TrialConfig(), {}, 0, "search", ("mean_coherence",), 1, "", False, "{}")
    with Display("study", 1, 1, "mean_coherence") as shown:
        shown.started(trial)
        shown.ended(trial)
    assert "FAILED" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("is_terminal", [True, False])
def test_lets_notes_stand_above_it_and_leaves_them_to_a_file(monkeypatch, capsys, is_terminal):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # of standard error
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    notes = Notes()
    with Display("study", 1, 1, "loss"):
        notes.emit(logging.makeLogRecord({"msg": "config 2 is refused"}))
    where = ["config 2 is refused" in text for text in capsys.readouterr()]
    assert where == [not is_terminal, is_terminal]


@pytest.mark.parametrize("case", ["4 [each]", "4 [/each]", "[bold]4", ":warning: 4", "{4}"])
def test_shows_names_as_they_are(monkeypatch, case):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(display, "store", complete(0.5))
    shown = Display("a study [b]", 2, 1, "loss")
    trial = trial_of({"what": case})
    shown.started(trial)
    study, running, *_ = lines_of(shown)
    assert "a study [b] " in study
    assert f"  what {case}, replicate 1 " in running
    shown.ended(trial)
    assert f"on validation with what {case}" in "\n".join(lines_of(shown))


def test_counts_each_trials_own_epochs(monkeypatch, clock):
    """Where the space varies them: of trials of 6, 2 and, by the base config, 4 epochs, one is left."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(display, "store", complete(0.5))
    shown = Display("study", 3, 4, "loss")
    for name, epochs in (("a", 6), ("b", 2)):
        trial = trial_of({"what": name}, epochs)
        shown.started(trial)
        for epoch in range(1, epochs + 1):
            clock.now += 60.0
            shown.progressed(trial, epoch, None)
            assert f" {epoch}/{epochs} " in lines_of(shown)[1]
        shown.ended(trial)
    assert shown._left() == ", about 4 min 00 s left"


def test_expects_fewer_trials_where_a_config_is_repeated(monkeypatch, clock):
    """Of 4 trials of 3 epochs one has ended, one of those left is another's config: two are left."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(display, "store", complete(0.5))
    shown, trial = Display("study", 4, 3, "loss"), trial_of({}, 3)
    shown.started(trial)
    for epoch in (1, 2, 3):
        clock.now += 60.0
        shown.progressed(trial, epoch, None)
    shown.ended(trial)
    shown.expect(3)
    assert " 1/4 " in lines_of(shown)[0]
    shown.expect(2)
    assert " 1/3 " in lines_of(shown)[0]
    assert shown._left() == ", about 6 min 00 s left"
    shown.expect(0)
    assert " 1/1 " in lines_of(shown)[0]
    assert shown._left() == ""


def test_knows_no_time_left_where_nothing_was_measured_and_nothing_runs(monkeypatch):
    row = {"state": "DIVERGED", "objective_value": None, "error": "loss is nan"}
    monkeypatch.setattr(display, "store", SimpleNamespace(read_trial=lambda out, trial_id: row))
    shown, trial = Display("study", 4, 4, "loss"), trial_of({})
    shown.started(trial)
    assert shown._left() == ", time left not known yet"
    shown.ended(trial)
    assert shown._left() == ""


def test_names_no_fields_where_none_vary(monkeypatch):
    monkeypatch.setattr(display, "store", complete(0.5))
    shown, trial = Display("study", 1, 1, "loss"), trial_of({})
    shown.started(trial)
    shown.ended(trial)
    assert any(line.rstrip().endswith("loss 0.500 on validation") for line in lines_of(shown))


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_leaves_numbers_whole_on_a_narrow_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown, trial = Display("study", 30, 50, "mean_coherence"), trial_of({"model.style_dim": 16}, 50)
    shown.started(trial)
    shown.progressed(trial, 30, 0.3)
    study, running, *_ = lines_of(shown)
    assert " 0/30 " in study
    assert running.rstrip().endswith(" 30/50 mean_coherence 0.300")
    assert len(running) <= columns
