"""The search serves a confirmation once it has ended: its best configs and the base, with fresh seeds."""

import dataclasses

import pytest

from study.config import Study, TrialConfig
from study.search import Search
from study.space import Choice, SearchSpace
from tests.studies import end, measured, optuna_trials, run, study


def confirming(out, **changes) -> Study:
    """Six configs of which the base config, beta 2.5 and four dimensions, is none."""
    return study(out, confirm=2, confirm_replicates=3, **changes)


def test_the_best_configs_and_the_base_are_confirmed_with_fresh_seeds(tmp_path):
    search = Search(confirming(tmp_path))
    assert search.num_missing == 12 + 3 * 3
    served = run(search)  # the larger beta, the better
    first, fresh = served[:12], served[12:]
    assert {trial.phase for trial in first} == {"search"}
    assert {trial.phase for trial in fresh} == {"confirm"}
    assert [trial.params for trial in fresh[::3]] == [
        {"model.style_dim": 4, "objective.beta": 2.5},
        *sorted(
            ({"model.style_dim": size, "objective.beta": 4.0} for size in (0, 2)),
            key=lambda params: TrialConfig().with_fields(params).config_hash(),
        ),
    ]
    assert fresh[0].config_hash == TrialConfig().config_hash()
    assert {trial.replicate for trial in fresh} == {1000, 1001, 1002}
    assert len({trial.config.seed for trial in served}) == 21
    assert len(optuna_trials(tmp_path)) == 6
    assert (search.num_missing, search.is_waiting) == (0, False)


def test_the_base_is_not_confirmed_against_itself_by_another_name(tmp_path):
    each = {"mnist": 4, "svhn": 4, "text": 4}
    space = SearchSpace({"model.style_dim": Choice((each, {**each, "text": 2}, 2))})
    made = study(tmp_path, space, trials=3, confirm=3, confirm_replicates=1)
    fresh = [trial for trial in run(Search(made)) if trial.phase == "confirm"]
    assert len({trial.config_hash for trial in fresh}) == len(fresh) == 3


def test_a_confirmation_waits_for_the_search_to_end(tmp_path):
    search = Search(confirming(tmp_path))
    *_, last = (search.next() for _ in range(12))
    assert (search.next(), search.is_waiting) == (None, True)
    search = Search(confirming(tmp_path))
    run(search, limit=11)
    last = search.next()
    assert (search.next(), search.is_waiting, search.num_missing) == (None, True, 10)
    assert not search.reported(last, 1, 0.5)
    end(search, last, 0.5)
    fresh = search.next()
    assert not search.is_waiting
    assert fresh.phase == "confirm"
    assert not search.reported(fresh, 1, 0.0)
    assert not search.is_stopped(fresh)


@pytest.mark.parametrize("ended", [3, 12, 13, 20])
def test_a_confirmation_goes_on_where_it_was_killed(tmp_path, ended):
    whole = [trial.trial_id for trial in run(Search(confirming(tmp_path / "whole")))]
    before = run(Search(confirming(tmp_path / "killed")), limit=ended)
    resumed = Search(confirming(tmp_path / "killed"))
    assert resumed.num_missing == 21 - ended
    after = run(resumed)
    assert [trial.trial_id for trial in (*before, *after)] == whole
    assert Search(confirming(tmp_path / "killed")).num_missing == 0


def test_what_has_begun_of_a_config_that_is_no_longer_the_best_is_finished(tmp_path):
    """The second best of four configs is the third of six; one fresh trial failed, one was cut off."""

    def value(trial):
        return trial.config.objective.beta + trial.params["model.style_dim"] / 10

    made = confirming(tmp_path, trials=4)
    search = Search(made)
    while (trial := search.next()) is not None:
        is_second = trial.phase == "confirm" and trial.params == {"model.style_dim": 0, "objective.beta": 2.0}
        if is_second and trial.replicate == 1001:
            measured(trial, 0.5)
        elif is_second and trial.replicate == 1002:
            end(search, trial, None, "FAILED")
        else:
            end(search, trial, value(trial))
    extended = dataclasses.replace(made, trials=6)
    fresh = [trial for trial in run(Search(extended), value) if trial.phase == "confirm"]
    assert [(trial.params["objective.beta"], trial.replicate) for trial in fresh] == [
        *((4.0, replicate) for replicate in (1000, 1001, 1002)),
        (2.0, 1001),
    ]
    assert Search(extended).num_missing == 0
    retried = run(Search(dataclasses.replace(extended, retry=("failed",))), value)
    assert [(trial.params["objective.beta"], trial.replicate) for trial in retried] == [(2.0, 1002)]


def test_a_finished_study_is_confirmed_afterwards(tmp_path):
    run(Search(study(tmp_path)))
    assert len(run(Search(confirming(tmp_path)))) == 9


def test_configs_that_did_not_complete_are_not_confirmed(tmp_path, caplog):
    def value(trial):
        return None if trial.config.objective.beta > 1 else 0.5

    served = run(Search(confirming(tmp_path, trials=5)), value)
    fresh = [trial for trial in served if trial.phase == "confirm"]
    assert {trial.params["objective.beta"] for trial in fresh} == {1.0, 2.5}
    assert len(fresh) == 9
    assert caplog.messages == []
    assert run(Search(confirming(tmp_path / "none")), lambda trial: None)[-1].phase == "search"
    run(Search(confirming(tmp_path / "one", trials=3)), value)
    reason = "no further config has all its replicates complete"
    assert caplog.messages == [f"--confirm 2 is cut to {number}: {reason}" for number in (0, 1)]
