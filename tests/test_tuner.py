"""The tuner decides, without starting Ray: when a budget is spent, and whether there is anything to await."""

import dataclasses
import math
import pickle
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.tune.search import Searcher
from ray.tune.utils.callback import _create_default_callbacks
from ray.tune.utils.util import flatten_dict

from study import tuner
from study.config import ClusterError
from study.files import FilesError
from study.mirror import Mirror
from study.search import Search
from tests.studies import end, study


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
        num_ready=99,
        served=0,
        ended=lambda trial: None,
        is_stopped=lambda trial: False,
    )

    def serve(limit):
        search.served += 1
        return [SimpleNamespace(number=search.served) for _ in range(limit)]

    search.next_pack = serve
    return tuner._StudySearcher(search, Mirror(Path("unused"), None)), search


def trial_of(out, replicate=0):
    """A trial of four epochs."""
    config = SimpleNamespace(training=SimpleNamespace(epochs=4))
    return SimpleNamespace(out=out, trial_id=f"abc-r{replicate}", config=config)


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
    made.started("a")
    clock.now = 15.0  # two workers
    assert made.suggest("b")["trials"][0].number == 2
    made.started("b")
    clock.now = 17.5  # 60 + 2 x 17.5 + 2 x 2.5
    assert made.suggest("c") == Searcher.FINISHED
    clock.now, search.device_s = 0.0, 0.0  # ended sooner than they looked
    assert made.budget_is_spent


@pytest.fixture
def played(monkeypatch):
    """Runs studies without Ray: what its tuner does is played by a function of searcher and scheduler."""

    def run(study, play):
        class Tuner:
            def __init__(self, trainable, *, tune_config, run_config):
                self.config = tune_config

            def fit(self):
                play(self.config.search_alg, self.config.scheduler)

        monkeypatch.setattr(tuner, "join_or_start", lambda study: False)
        monkeypatch.setattr(tuner, "_concurrency", lambda study: 1)
        monkeypatch.setattr(tuner, "_cpus_of_a_node", lambda: 1)
        monkeypatch.setattr(tuner, "_available", lambda resource: 1)
        monkeypatch.setattr(tuner.tune, "Tuner", Tuner)
        return tuner.run_study(study)

    return run


@pytest.mark.parametrize("ends", [True, False])
def test_a_study_that_is_interrupted_after_its_budget_is_not_done(tmp_path, clock, played, ends):
    def play(searcher, _):
        (trial,) = searcher.suggest("a")["trials"]
        clock.now = 11.0
        assert searcher.suggest("b") == Searcher.FINISHED
        if ends:
            end(SimpleNamespace(ended=lambda trial: None), trial, 0.5)
            searcher.on_trial_complete("a", {"done": True})

    outcome = played(study(tmp_path, budget_s=10.0), play)
    assert (outcome.missing, outcome.budget_is_spent) == ((11, True) if ends else (12, False))


def in_database(out, options="timeout=0.01"):
    """A study whose database, which another has made, waits for no lock."""
    url = f"sqlite:///file:{out}/study.db?uri=true"
    made = study(out / "test", replicates=1, storage=url)
    Search(dataclasses.replace(made, name="other"))
    return dataclasses.replace(made, storage=f"{url}&{options}")


def test_a_database_that_goes_silent_ends_the_study_with_a_sentence_and_loses_nothing(tmp_path, played):
    made = in_database(tmp_path)
    other = sqlite3.connect(tmp_path / "study.db")

    def play(searcher, scheduler):
        (trial,) = searcher.suggest("a")["trials"]
        other.execute("begin exclusive")
        result = flatten_dict({"epoch": 1, "shown": {trial.trial_id: 0.5}})
        told = scheduler.on_trial_result(None, SimpleNamespace(config={"trials": [trial]}), result)
        assert told == scheduler.CONTINUE
        end(SimpleNamespace(ended=lambda trial: None), trial, 0.5)
        searcher.on_trial_complete("a", {"done": True})  # left to another time
        assert searcher.suggest("b") == Searcher.FINISHED

    with pytest.raises(FilesError, match=r"^the database of --storage does not answer, or refuses$"):
        played(made, play)
    other.rollback()
    assert Search(made).num_missing == 5


def test_a_database_that_refuses_when_the_study_opens_it_is_told_in_a_sentence(tmp_path, played):
    with pytest.raises(FilesError, match=r"^the database of --storage does not answer, or refuses$"):
        played(in_database(tmp_path, "mode=ro"), None)


@pytest.mark.parametrize(
    ("met", "kind", "sentence"),
    [
        ({"broken": KeyError("x"), "unshared": "node 7 does not see it"}, KeyError, "'x'"),
        (
            {"unshared": "node 7 does not see it", "disk_is_full": True},
            ClusterError,
            "^node 7 does not see it$",
        ),
        ({"disk_is_full": True}, OSError, "No space left on device: '.*/run'"),
        ({"broken": OSError(28, "No space left on device")}, OSError, "No space left on device: '.*/run'"),
    ],
)
def test_a_study_ends_with_what_was_no_trials_fault(tmp_path, played, met, kind, sentence):
    with pytest.raises(kind, match=sentence):
        played(study(tmp_path / "run"), lambda searcher, _: vars(searcher).update(met))


@pytest.mark.parametrize(
    ("ready", "slots", "sizes"),
    [(8, 2, [4, 4]), (8, 1, [5, 3]), (7, 3, [3, 2, 2]), (1, 4, [1]), (99, 4, [5, 5, 5])],
)
def test_what_is_ready_is_shared_among_the_slots(clock, ready, slots, sizes):
    made, search = searcher(pack=5)
    made.slots, search.num_ready = slots, ready
    for name, size in enumerate(sizes):
        assert len(made.suggest(str(name))["trials"]) == size
        search.num_ready -= size


def test_what_vanishes_with_a_process_is_counted_from_what_was_heard_of_it_last(clock, tmp_path, monkeypatch):
    made, search = searcher(workers=1)
    pack = [trial_of(tmp_path, replicate) for replicate in range(2)]
    search.next_pack = lambda limit: pack
    made.suggest("a")
    made.started("a")
    clock.now = 10.0
    made.heard("a")
    clock.now = 14.0
    made.vanished("a")  # four seconds
    clock.now = 15.0
    made.vanished("a")  # it had only waited
    lost = []
    monkeypatch.setattr(tuner.store, "read_trial", lambda out, trial_id: {"trial_id": trial_id})
    monkeypatch.setattr(tuner.store, "write_lost", lambda out, trial_id, lost_s: lost.append(lost_s))
    clock.now = 20.0
    made.on_trial_complete("a", {"lost_s": 3.0})  # of workers that it watched itself
    assert lost == [3.5, 3.5]


def test_waits_while_a_confirmation_may_follow(clock):
    made, search = searcher()
    search.next_pack = lambda limit: []
    search.is_waiting = True
    assert made.suggest("a") is None
    search.is_waiting = False
    assert made.suggest("a") == Searcher.FINISHED


def test_no_trial_starts_once_one_found_the_disk_full(clock, tmp_path):
    made, _ = searcher()
    trial = trial_of(tmp_path)
    made._search.next_pack = lambda size: [trial]
    assert made.suggest("a") == {"trials": [trial]}
    made._search.is_stopped = lambda trial: False
    made.on_trial_complete("a", {"disk_is_full": True})
    assert made.disk_is_full
    assert made.suggest("b") == Searcher.FINISHED


def test_no_trial_starts_once_a_node_did_not_see_the_studys_folder(clock, tmp_path):
    made, search = searcher()
    search.is_waiting = True
    trial = trial_of(tmp_path)
    search.next_pack = lambda size: [trial]
    search.is_stopped = lambda trial: False
    made.suggest("a")
    made.on_trial_complete("a", {"unshared": "node 7 does not see it"})
    assert made.unshared == "node 7 does not see it"
    assert made.suggest("b") == Searcher.FINISHED


def test_what_is_met_here_ends_the_study_and_no_trial(clock, tmp_path, monkeypatch):
    """Ray would hide it in an error of its own, or try the trial again."""
    made, search = searcher()
    lost = FilesError("cannot write s3://studies/x")

    def ended(trial):
        raise lost

    search.ended, search.is_stopped = ended, lambda trial: False
    search.next_pack = lambda size: [trial_of(tmp_path)]
    stopper = tuner._Stopper(made)
    assert not stopper.stop_all()
    for name in ("a", "b"):
        made.suggest(name)
        made.started(name)
    monkeypatch.setattr(tuner.store, "read_trial", lambda out, trial_id: {"trial_id": trial_id})
    made.on_trial_complete("a", {"done": True})
    assert made.broken is lost
    made.on_trial_complete("b", {"done": True})  # left to another time
    assert stopper.stop_all()
    assert made.suggest("c") == Searcher.FINISHED
    scheduler = tuner._Scheduler(search, made, Mirror(Path("unused"), None))
    search.reported = ended
    result = flatten_dict({"epoch": 1, "shown": {"abc-r0": 0.5}})
    ray_trial = SimpleNamespace(config={"trials": [SimpleNamespace(trial_id="abc-r0")]})
    assert scheduler.on_trial_result(None, ray_trial, result) == scheduler.CONTINUE


@pytest.mark.parametrize(("seconds", "state"), [(0, "COMPLETE"), (20, "COMPLETE"), (100, "FAILED")])
def test_a_row_that_a_network_folder_shows_late_is_waited_for(clock, tmp_path, monkeypatch, seconds, state):
    made, search = searcher()
    trial = trial_of(tmp_path)
    rows, ended = {}, []
    search.next_pack, search.is_stopped = lambda size: [trial], lambda trial: False
    search.ended = lambda trial: ended.append(read(None, "abc-r0")["state"])

    def read(out, trial_id):
        return rows.get(trial_id) or ({"state": "COMPLETE"} if clock.now >= seconds else None)

    clock.sleep = lambda duration: setattr(clock, "now", clock.now + duration)
    monkeypatch.setattr(tuner.store, "read_trial", read)
    monkeypatch.setattr(
        tuner, "record_end", lambda trial, state, error: rows.update({"abc-r0": {"state": state}})
    )
    made.suggest("a")
    made.started("a")
    made.on_trial_complete("a", {"done": True})
    assert made.broken is None
    assert ended == [state]


@pytest.mark.parametrize(("epoch", "ends"), [(3, [("STOPPED",)]), (4, [])])
def test_a_replicate_that_is_ahead_ends_by_itself_though_its_config_is_stopped(
    clock, tmp_path, monkeypatch, epoch, ends
):
    made, search = searcher()
    search.next_pack, search.is_stopped = lambda size: [trial_of(tmp_path)], lambda trial: True
    rows, told = {}, []

    def record_end(trial, *end):
        told.append(end)
        rows[trial.trial_id] = {}

    def late(out, trial_id):
        return rows.get(trial_id, {} if clock.now > 5 else None)

    clock.sleep = lambda duration: setattr(clock, "now", clock.now + duration)
    monkeypatch.setattr(tuner.store, "read_trial", late)
    monkeypatch.setattr(tuner, "record_end", record_end)
    made.suggest("a")
    made.on_trial_complete("a", {"done": True, "epoch": epoch})
    assert made.broken is None
    assert told == ends


def test_the_last_crash_of_a_trial_is_lost_time_too(clock, tmp_path, monkeypatch):
    made, search = searcher(workers=1)
    search.next_pack = lambda size: [trial_of(tmp_path)]
    rows, lost = {}, []
    monkeypatch.setattr(tuner.store, "read_trial", lambda out, trial_id: rows.get(trial_id))
    monkeypatch.setattr(tuner, "record_end", lambda trial, *end: rows.update({trial.trial_id: end}))
    monkeypatch.setattr(tuner.store, "write_lost", lambda out, trial_id, lost_s: lost.append(lost_s))
    made.suggest("a")
    clock.now = 500.0  # until a node is there
    made.started("a")
    for crash in range(3):
        clock.now += 10.0
        if crash < 2:
            made.vanished("a")
            made.started("a")
    made.on_trial_complete("a", error=True)
    assert lost == [30.0]


@pytest.mark.parametrize(
    ("error", "report"),
    [
        (OSError(28, "No space left on device"), {"disk_is_full": True}),
        (ClusterError("node 7 does not see it"), {"unshared": "node 7 does not see it"}),
    ],
)
def test_what_is_no_trials_fault_is_told_and_anything_else_raised(monkeypatch, error, report):
    told = []
    monkeypatch.setattr(tuner.tune, "report", told.append)
    with tuner._halt_told():
        raise error
    assert told == [report]
    with pytest.raises(KeyError), tuner._halt_told():
        raise KeyError("x")


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        ({"a": "KeyError: 'x'"}, "KeyError: 'x'"),
        ({}, "its process vanished 3 times; memory may be short"),
    ],
)
def test_a_trial_that_could_not_say_why_it_failed_has_its_reason(
    clock, tmp_path, monkeypatch, raised, reason
):
    made, _ = searcher()
    trial = trial_of(tmp_path)
    made._search.next_pack = lambda size: [trial]
    made.suggest("a")
    made.raised |= raised
    ends = []
    monkeypatch.setattr(tuner, "record_end", lambda *end: ends.append(end))
    made.on_trial_complete("a", error=True)
    assert ends == [(trial, "FAILED", reason)]


def test_what_a_process_raised_is_kept_for_the_tables(clock, tmp_path):
    made, search = searcher()
    scheduler = tuner._Scheduler(search, made, Mirror(Path("unused"), None))
    file = tmp_path / "error.pkl"
    file.write_bytes(pickle.dumps(RayTaskError("train", "Traceback ...\nKeyError: 'x'", KeyError("x"))))
    scheduler.on_trial_error(None, SimpleNamespace(trial_id="a", pickled_error_file=str(file)))
    file.write_bytes(pickle.dumps(OutOfMemoryError("gone")))
    scheduler.on_trial_error(None, SimpleNamespace(trial_id="b", pickled_error_file=str(file)))
    scheduler.on_trial_error(None, SimpleNamespace(trial_id="c", pickled_error_file=None))
    assert list(made.raised) == ["a"]
    assert "KeyError: 'x'" in made.raised["a"]


def test_every_trial_of_a_pack_is_reported_to_the_search(clock):
    made, search = searcher()
    heard = []
    search.reported = lambda *told: heard.append(told)
    pack = [SimpleNamespace(trial_id=f"abc-r{replicate}") for replicate in range(3)]
    result = flatten_dict({"epoch": 2, "shown": {"abc-r0": 0.5, "abc-r1": None}, "config": {"trials": pack}})
    scheduler = tuner._Scheduler(search, made, Mirror(Path("unused"), None))
    ray_trial = SimpleNamespace(config={"trials": pack})
    assert scheduler.on_trial_result(None, ray_trial, result) == scheduler.CONTINUE
    assert heard == [(pack[0], 2, 0.5)]  # the second was not evaluated, the third has diverged


def test_ray_adds_no_word_of_its_own_about_trials(monkeypatch):
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    follow = tuner._Follow(None, None, None, starts_at_once=True)
    assert _create_default_callbacks([follow]) == [follow]


def test_the_display_learns_how_many_trials_have_yet_to_end():
    expected = []
    display, (made, search) = SimpleNamespace(expect=expected.append), searcher()
    search.num_missing = 3
    tuner._Follow(display, None, made, starts_at_once=True).on_step_end()
    assert expected == [3]
