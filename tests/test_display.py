"""The live view of a study ..."""

from pathlib import Path

from rich.progress import Progress

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


def test_a_trial_that_was_interrupted_has_not_failed(tmp_path, capsys):
    trial = Trial("", "", tmp_path, TrialConfig(), {}, 0, "search", ("mean_coherence",), 1, "", False, "{}")
    with Display("study", 1, 1, "mean_coherence") as display:
        display.started(trial)
        display.ended(trial)
    assert "FAILED" not in "".join(capsys.readouterr())
