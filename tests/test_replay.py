"""Which trials are replayed, and which are refused with one sentence; test_study.py replays a real one."""

import json
from types import SimpleNamespace

import pytest
import torch

from mmjsd.metrics import Score
from study import store
from study.config import TrialConfig
from study.record import num_threads
from study.replay import replay
from study.run import main
from tests.studies import trial


def write(out, **changes):
    config = json.dumps(TrialConfig().to_dict())
    store.write_trial(out, trial(**{"config": config, "device": "cpu x 1 threads", **changes}), {})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trial_id": "def-r0"}, "no trial 'abc-r0' has ended in"),
        ({"state": "FAILED"}, "abc-r0 failed, so there is nothing to compare; --resume --retry failed tries"),
        ({"workers": 2}, "abc-r0 was trained by 2 workers; a replay has but one"),
        ({"device": "NVIDIA H1000"}, "abc-r0 was trained on NVIDIA H1000, this machine has"),
        ({"device": ""}, "abc-r0 was trained on an unknown device, this machine has"),
    ],
)
def test_refuses_in_one_sentence(tmp_path, changes, sentence):
    write(tmp_path, **changes)
    with pytest.raises(ValueError, match=sentence):
        replay(tmp_path / "abc-r0")


def test_refuses_a_folder_without_study(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no study; give --replay RUN/TRIAL_ID"):
        replay(tmp_path / "abc-r0")
    with pytest.raises(ValueError, match=r"^s3://bucket/run holds no study"):
        replay(tmp_path / "abc-r0", "s3://bucket/run")


def test_finds_the_threads_that_a_trial_had():
    assert [num_threads(each) for each in ("cpu x 12 threads", "NVIDIA H100", "")] == [12, None, None]


def test_a_trial_that_diverged_is_to_diverge_again(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    wild = TrialConfig().with_fields({"training.epochs": 1})
    seen = []

    def diverge(config, device, objectives):
        seen.append((config, device, objectives, torch.get_num_threads()))
        yield from ()
        raise store_error

    from mmjsd.train import DivergedError

    store_error = DivergedError("loss is nan")
    monkeypatch.setattr("study.replay.run_trial", diverge)
    changes = {"state": "DIVERGED", "config": json.dumps(wild.to_dict()), "device": "cpu x 2 threads"}
    write(tmp_path, **changes, error="loss is nan")
    assert replay(tmp_path / "abc-r0").differences == ()
    assert seen == [(wild, "cpu", ["mean_coherence"], 2)]
    assert torch.get_num_threads() == 1
    assert main(["--replay", str(tmp_path / "abc-r0")]) == 0
    assert caplog.messages == ["diverged as before, with the same error: loss is nan"]
    write(tmp_path, **changes, error="loss is inf")
    assert replay(tmp_path / "abc-r0").differences == ("ended with 'loss is inf', now with 'loss is nan'",)
    assert main(["--replay", str(tmp_path / "abc-r0")]) == 1
    assert caplog.messages[-1] == "0 values equal, 1 difference"


def test_values_of_attributes_are_compared_one_by_one(tmp_path, monkeypatch):
    def score(attribute: str, value: float) -> Score:
        return Score("average_precision", value, 0.1, 20, "", "a", "b", attribute)

    scores = [score("bald", 0.25), score("smiling", 0.5), Score("mean_average_precision", 0.375, 0.1, 20)]
    write(tmp_path)
    identity = {"study": "s", "trial_id": "abc-r0", "config_hash": "abc", "replicate": 0}
    rows = [
        identity | vars(each) | {"epoch": 1, "split": "test", "attribute": each.attribute or None}
        for each in scores
    ]
    store.write_measurements(tmp_path, "abc-r0", rows)

    def again(config, device, objectives):
        yield SimpleNamespace(epoch=1, scores={"test": [scores[0], score("smiling", 0.625), scores[2]]})

    monkeypatch.setattr("study.replay.run_trial", again)
    found = replay(tmp_path / "abc-r0")
    assert found.num_equal == 2
    (difference,) = found.differences
    assert difference.startswith("epoch 1 test average_precision a b smiling: 0.5 (")
