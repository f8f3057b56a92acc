"""The tuner decides, without starting Ray: when a budget is spent, and whether there is anything to await."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.search import Searcher

from study import tuner
from study.mirror import Mirror


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(tuner, "time", clock)
    return clock


def searcher(**changes):
    study = {
        "objectives": ("mean_coherence",),
        "workers": 2,
        "pack": 1,
        "budget_s": math.inf,
        "budget_device_s": math.inf,
    }
    search = SimpleNamespace(
        study=SimpleNamespace(**study | changes),
        device_s=0.0,
        is_waiting=False,
        served=0,
        ended=lambda trial: None,
    )

    def serve(limit):
        search.served += 1
        return [SimpleNamespace(number=search.served)]

    search.next_pack = serve
    return tuner._StudySearcher(search, Mirror(Path("unused"), None)), search


def test_no_trial_starts_after_the_time(clock):
    made, search = searcher(budget_s=10.0)
    clock.now = 9.9
    assert made.suggest("a")["trials"][0].number == 1
    clock.now = 10.0
    assert made.suggest("b") == Searcher.FINISHED
    assert (made.budget_is_spent, search.served) == (True, 1)


def test_no_trial_starts_once_ended_and_running_trials_have_taken_the_device_seconds(clock):
    made, search = searcher(budget_device_s=100.0)
    search.device_s = 60.0  # of earlier sessions
    assert made.suggest("a")["trials"][0].number == 1
    clock.now = 15.0  # two workers
    assert made.suggest("b")["trials"][0].number == 2
    clock.now = 17.5  # 60 + 2 x 17.5 + 2 x 2.5
    assert made.suggest("c") == Searcher.FINISHED
    clock.now, search.device_s = 0.0, 0.0  # ended sooner than they looked
    assert made.budget_is_spent


def test_waits_while_a_confirmation_may_follow(clock):
    made, search = searcher()
    search.next_pack = lambda limit: []
    search.is_waiting = True
    assert made.suggest("a") is None
    search.is_waiting = False
    assert made.suggest("a") == Searcher.FINISHED
