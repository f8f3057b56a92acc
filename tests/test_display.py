"""The live view of a study ..."""

from pathlib import Path
from types import SimpleNamespace

from rich.progress import Progress

from study import display
from study.config import TrialConfig
from study.display import Display
from study.record import Trial


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


def test_epochs_that_will_not_be_trained_take_no_time(monkeypatch):
    """Of three trials of ten epochs one goes on from its seventh, and one is stopped after its third."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(display, "time", clock)
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
