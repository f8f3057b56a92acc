"""The study's search: serves every (config, replicate) once, whatever happened before."""

import dataclasses
import json
import logging

import pandas as pd
import pytest

from study import store
from study.config import Study, TrialConfig
from study.search import Search
from study.space import Cases, Choice, Integer, SearchSpace, Simplex, Uniform
from tests.studies import GRID, LINE, PLANE, end, measured, optuna_trials, run, study


def packs(search, limit):
    """All packs of a study, each as how many trials of each config it has, in order."""
    found = []
    while pack := search.next_pack(limit):
        hashes = [trial.config_hash for trial in pack]
        found.append([hashes.count(each) for each in dict.fromkeys(hashes)])
    return found


def test_a_pack_takes_replicates_and_then_configs_that_can_be_trained_with_them(tmp_path):
    fields = {"objective.name": Choice(("mmjsd", "mvae")), "model.style_dim": Choice((0, 2, 4))}
    of_two_kinds = study(tmp_path / "a", space=SearchSpace(fields))
    assert packs(Search(of_two_kinds), 4) == [[2, 2], [2], [2, 2], [2]]
    assert packs(Search(study(tmp_path / "b")), 5) == [[2, 2, 1], [1, 2, 2], [2]]


def test_every_trial_knows_all_that_the_study_sweeps(tmp_path):
    cases = Cases({"no": {"model.style_dim": 0}, "yes": {"model.style_dim": Integer(1, 16)}})
    space = SearchSpace({"subspaces": cases, "objective.beta": Choice((1, 2.5))})
    search = Search(study(tmp_path, space=space, sampler="random", confirm=1, confirm_replicates=1))
    served = run(search)
    assert {trial.phase for trial in served} == {"search", "confirm"}
    assert {len(trial.params) for trial in served} == {2, 3}
    swept = {"subspaces": {"no", "yes"}, "model.style_dim": {1, 4, 16}, "objective.beta": {1, 2.5}}
    for trial in served:
        assert {path: set(values) for path, values in trial.swept.items()} == swept


@pytest.mark.parametrize(
    ("domain", "sampler"),
    [(Choice((1, 2, 4)), "grid"), (Uniform(1, 8), "grid"), (Integer(1, 30), "random")],
    ids=["choice", "uniform", "integer"],
)
def test_all_trials_have_columns_of_one_type(tmp_path, domain, sampler):
    """Though the base config, which is confirmed, has a beta of 2.5."""
    made = study(
        tmp_path, space=SearchSpace({"objective.beta": domain}), sampler=sampler, trials=3, confirm=1
    )
    served = run(Search(dataclasses.replace(made, confirm_replicates=2)))
    assert {trial.phase for trial in served} == {"search", "confirm"}
    for trial in served:
        row = store.read_trial(tmp_path, trial.trial_id)
        store.write_trial(tmp_path, row, trial.params, swept=trial.swept)
    frame = pd.read_parquet(tmp_path / "results" / "trials")
    found = dict(zip(frame["trial_id"], frame["param.objective.beta"], strict=True))
    assert found == {trial.trial_id: trial.config.objective.beta for trial in served}


def test_under_a_scheduler_a_pack_is_of_one_config(tmp_path):
    assert packs(Search(study(tmp_path, scheduler="median")), 5) == [[2]] * 6


def test_a_grid_is_served_whole_in_order_each_replicate_once(tmp_path):
    search = Search(study(tmp_path))
    assert search.num_missing == 12
    served = run(search)
    shown = [(t.params["model.style_dim"], t.params["objective.beta"], t.replicate) for t in served]
    assert shown == [(size, beta, r) for size in (0, 2) for beta in (1.0, 2.0, 4.0) for r in (0, 1)]
    assert len({trial.trial_id for trial in served}) == 12
    assert len({trial.config.seed for trial in served}) == 12
    assert search.num_missing == 0


def test_the_sampler_is_told_the_mean_over_replicates_under_the_fields_names(tmp_path):
    run(Search(study(tmp_path)))
    trials = optuna_trials(tmp_path)
    assert [trial.value for trial in trials] == [1.5, 2.5, 4.5] * 2
    assert [trial.user_attrs["standard_error.mean_coherence"] for trial in trials] == [pytest.approx(0.5)] * 6
    assert trials[4].params == {"model.style_dim": 2, "objective.beta": 2.0}


def test_the_standard_error_of_a_retried_config_is_told_and_of_one_replicate_there_is_none(tmp_path):
    name = "standard_error.mean_coherence"
    search = Search(study(tmp_path / "a", trials=1))
    for value in (0.5, None):
        end(search, search.next(), value, "COMPLETE" if value else "FAILED")
    run(Search(study(tmp_path / "a", trials=1, retry=("failed",))), lambda trial: 0.7)
    assert [trial.user_attrs.get(name) for trial in optuna_trials(tmp_path / "a")] == [
        None,
        pytest.approx(0.1),
    ]
    run(Search(study(tmp_path / "b", replicates=1)))
    assert all(name not in trial.user_attrs for trial in optuna_trials(tmp_path / "b"))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_config_with_a_diverged_replicate_has_failed_for_the_sampler(tmp_path, value):
    search = Search(study(tmp_path, trials=1))
    first, second = search.next(), search.next()
    end(search, first, 0.5)
    end(search, second, value, "DIVERGED")
    assert [trial.state.name for trial in optuna_trials(tmp_path)] == ["FAIL"]
    assert Search(study(tmp_path, trials=1)).next() is None


def test_packages_that_only_a_trials_process_has_are_told_once(tmp_path, caplog):
    own = {"ray": "2.60.0", "torch": "2.14.1"}
    search = Search(study(tmp_path, trials=2, versions=json.dumps(own)))
    for found in (own, {**own, "torch": "2.13.0"}, {**own, "torch": "2.12.0"}):
        end(search, search.next(), 0.5, versions=json.dumps(found), host="node-7")
    (told,) = caplog.messages
    assert told.endswith("on node-7 with torch 2.13.0, not 2.14.1; give all nodes the same packages")


def test_weights_can_be_read_in_optuna(tmp_path):
    space = SearchSpace({"objective.weights": Simplex(4)})
    trial = Search(study(tmp_path, space, "random", trials=1)).next()
    (told,) = optuna_trials(tmp_path)
    names = ("mnist", "svhn", "text", "prior")
    weights = tuple(told.user_attrs[f"objective.weights.{name}"] for name in names)
    assert weights == trial.params["objective.weights"] == trial.config.objective.weights


@pytest.mark.parametrize(("space", "sampler"), [(GRID, "grid"), (LINE, "random"), (LINE, "tpe")])
@pytest.mark.parametrize("ended", [0, 1, 5])
def test_a_study_that_was_killed_serves_what_is_missing_and_nothing_else(tmp_path, space, sampler, ended):
    whole = [trial.trial_id for trial in run(Search(study(tmp_path / "whole", space, sampler)))]
    killed = Search(study(tmp_path / "killed", space, sampler))
    before = [trial.trial_id for trial in run(killed, limit=ended)]
    killed.next()  # running when the process dies
    after = [trial.trial_id for trial in run(Search(study(tmp_path / "killed", space, sampler)))]
    assert before + after == whole
    assert len(optuna_trials(tmp_path / "killed")) == 6
    assert all(trial.state.name == "COMPLETE" for trial in optuna_trials(tmp_path / "killed"))


def test_a_kill_between_asking_and_noting_the_answer_shifts_nothing(tmp_path):
    search = Search(study(tmp_path))
    run(search, limit=2)
    search._optuna.ask()  # noted nowhere
    assert len(run(Search(study(tmp_path)))) == 10
    states = [trial.state.name for trial in optuna_trials(tmp_path)]
    assert sorted(states) == ["COMPLETE"] * 6 + ["FAIL"]


@pytest.mark.parametrize(
    ("retry", "again"), [((), ""), (("failed",), "F"), (("diverged",), "D"), (("diverged", "failed"), "FD")]
)
def test_ended_trials_are_tried_again_on_request_alone(tmp_path, retry, again):
    search = Search(study(tmp_path, trials=1, replicates=3))
    for letter, state in (("F", "FAILED"), ("D", "DIVERGED"), ("C", "COMPLETE")):
        trial = search.next()
        trial.checkpoints.mkdir(parents=True)
        (trial.checkpoints / letter).touch()
        end(search, trial, 0.5 if letter == "C" else None, state)
    more = Search(study(tmp_path, trials=1, replicates=3, retry=retry))
    assert more.num_missing == len(again)
    served = [more.next() for _ in again]
    assert more.next() is None
    assert {trial.replicate for trial in served} == {"FDC".index(letter) for letter in again}
    for trial in served:  # where it may go on, and where it would only diverge once more
        assert trial.checkpoints.exists() == (trial.replicate == 0)
        assert store.read_trial(tmp_path, trial.trial_id) is None


def test_a_retried_config_is_told_to_the_sampler_once(tmp_path):
    search = Search(study(tmp_path, LINE, "tpe", trials=3, replicates=1))
    for value in (0.1, None, 0.3):
        end(search, search.next(), value, "COMPLETE" if value else "FAILED")
    assert Search(study(tmp_path, LINE, "tpe", trials=3, replicates=1)).next() is None
    retrying = Search(study(tmp_path, LINE, "tpe", trials=3, replicates=1, retry=("failed",)))
    end(retrying, retrying.next(), 0.9)
    for _ in range(2):
        more = Search(study(tmp_path, LINE, "tpe", trials=3, replicates=1, retry=("failed",)))
        assert (more.num_missing, more.next()) == (0, None)
    told = optuna_trials(tmp_path)
    assert [(trial.state.name, trial.value) for trial in told] == [
        ("COMPLETE", 0.1),
        ("FAIL", None),
        ("COMPLETE", 0.3),
        ("COMPLETE", 0.9),
    ]
    assert told[3].params == told[1].params


def test_raised_trials_and_replicates_extend_a_finished_study(tmp_path):
    first = run(Search(study(tmp_path, LINE, "tpe", trials=3)))
    more = run(Search(study(tmp_path, LINE, "tpe", trials=5)))
    again = run(Search(study(tmp_path, LINE, "tpe", trials=5, replicates=3)))
    names = [trial.trial_id for trial in (*first, *more, *again)]
    assert (len(first), len(more), len(again)) == (6, 4, 5)
    assert len(set(names)) == 15
    assert {trial.replicate for trial in again} == {2}


def test_a_config_that_is_proposed_twice_is_trained_once(tmp_path):
    space = SearchSpace({"model.style_dim": Choice((0, 2))})
    search = Search(study(tmp_path, space, "random", trials=12, replicates=1))
    served = run(search)
    assert len(served) == 2
    assert search.num_missing == 0
    assert [trial.state.name for trial in optuna_trials(tmp_path)] == ["COMPLETE"] * 12


def test_a_lost_journal_costs_no_finished_trial(tmp_path):
    whole = run(Search(study(tmp_path, LINE, "random")), limit=7)
    (tmp_path / "optuna.journal").unlink()
    rest = run(Search(study(tmp_path, LINE, "random")))
    assert len({trial.trial_id for trial in (*whole, *rest)}) == len(whole) + len(rest) == 12


def test_what_was_measured_of_a_trial_and_deleted_is_trained_again(tmp_path):
    served = run(Search(study(tmp_path, LINE, "random")))
    (tmp_path / "results" / "measurements" / f"{served[3].trial_id}.parquet").unlink()
    again = Search(study(tmp_path, LINE, "random"))
    assert again.num_missing == 1
    assert [trial.trial_id for trial in run(again)] == [served[3].trial_id]
    assert len(optuna_trials(tmp_path)) == 6
    assert Search(study(tmp_path, LINE, "random")).num_missing == 0


@pytest.fixture
def optunas_words(monkeypatch, caplog):
    """What Optuna would write to a terminal."""
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    return caplog


@pytest.mark.parametrize("seed", range(3))
def test_qmc_draws_a_field_of_one_case_anew_each_time(tmp_path, optunas_words, seed):
    """Though the first config, which decides what its sequence is about, may lack it."""
    cases = Cases({"no": {"model.style_dim": 0}, "yes": {"objective.beta_style": Uniform(0.5, 8.0)}})
    space = SearchSpace({"subspaces": cases, "objective.beta": Uniform(0.5, 8.0)})
    served = run(Search(study(tmp_path, space, "qmc", 12, 1, seed=seed)))
    drawn = [trial.params.get("objective.beta_style") for trial in served]
    assert len({*drawn} - {None}) == 12 - drawn.count(None) >= 4
    assert not optunas_words.messages


def test_cma_es_draws_categories_without_a_word(tmp_path, optunas_words):
    space = SearchSpace({"objective.fusion": Choice(("mixture", "product")), **PLANE.domains})
    run(Search(study(tmp_path, space, "cmaes", 4, 1)))
    assert not optunas_words.messages


def test_a_trial_travels_with_its_seeded_config(tmp_path):
    trial = Search(study(tmp_path)).next()
    expected = TrialConfig().with_fields(trial.params).for_replicate(3, 0)
    assert trial.config == expected
    assert trial.config_hash == dataclasses.replace(expected, seed=0).config_hash()


def curve(search, trial, values):
    """Report a trial's objective epoch by epoch; the epoch after which it is stopped, if it is."""
    for epoch, value in enumerate(values, start=1):
        if search.reported(trial, epoch, value):
            return epoch
    return None


def stopping(out, **settings) -> Study:
    made = study(out, LINE, "random", trials=9, **{"scheduler": "asha", **settings})
    training = dataclasses.replace(made.base.training, epochs=4)
    return dataclasses.replace(made, base=dataclasses.replace(made.base, training=training))


def test_a_scheduler_stops_configs_that_are_behind_and_optuna_counts_them_as_pruned(tmp_path):
    search = Search(stopping(tmp_path, replicates=1))
    stopped = []
    for value in (0.5, 0.6, 0.7, 0.1, 0.2, 0.8, 0.3, 0.9, 0.4):
        trial = search.next()
        stopped.append(curve(search, trial, [value] * 4))
        if stopped[-1]:
            assert search.is_stopped(trial)
            end(search, trial, None, "STOPPED")
        else:
            end(search, trial, value)
    assert stopped[0] is None
    assert stopped[3:5] == [1, 1]
    assert stopped[7] is None
    states = [trial.state.name for trial in optuna_trials(tmp_path)]
    assert states == ["PRUNED" if epoch else "COMPLETE" for epoch in stopped]
    assert Search(stopping(tmp_path, replicates=1)).next() is None


def test_a_config_is_judged_by_the_mean_once_all_its_replicates_are_there(tmp_path):
    search = Search(stopping(tmp_path))
    for _ in range(4):
        for trial in (search.next(), search.next()):
            curve(search, trial, [0.5] * 4)
            end(search, trial, 0.5)
    lucky, unlucky = search.next(), search.next()
    assert curve(search, lucky, [0.8, 0.1, 0.1]) is None  # the other has yet to come
    assert not search.reported(unlucky, 1, 0.9)
    assert search.reported(unlucky, 2, 0.0) or search.reported(unlucky, 3, 0.0)
    assert search.is_stopped(lucky)
    values = optuna_trials(tmp_path)[4].intermediate_values
    assert values[1] == pytest.approx(0.85)


def test_replicates_that_are_added_to_a_finished_study_report_without_effect(tmp_path):
    search = Search(stopping(tmp_path, replicates=1))
    while (trial := search.next()) is not None:
        end(search, trial, 0.5, "STOPPED" if curve(search, trial, [0.5] * 4) else "COMPLETE")
    before = [trial.state for trial in optuna_trials(tmp_path)]
    more = Search(stopping(tmp_path, replicates=2))
    while (trial := more.next()) is not None:
        curve(more, trial, [0.1] * 4)
        end(more, trial, 0.1)
    assert [trial.state for trial in optuna_trials(tmp_path)] == before


def test_an_epoch_that_is_repeated_after_a_crash_is_reported_once(tmp_path, recwarn):
    search = Search(stopping(tmp_path, replicates=1))
    trial = search.next()
    assert not search.reported(trial, 1, 0.5)
    assert not search.reported(trial, 1, 0.5)
    assert optuna_trials(tmp_path)[0].intermediate_values == {1: 0.5}
    assert not recwarn.list


@pytest.mark.parametrize("repeats", [False, True])
def test_an_epoch_that_a_killed_study_had_not_judged_is_judged(tmp_path, repeats):
    def behind(out):
        """A fourth config after three good ones, and what Optuna knows of it."""
        search = Search(stopping(out))
        for value in (0.5, 0.6, 0.7):
            for trial in (search.next(), search.next()):
                curve(search, trial, [value] * 3)
                end(search, trial, value)
        return search, search.next(), search.next()

    search, first, second = behind(tmp_path / "whole")
    assert not search.reported(first, 1, 0.1)
    assert search.reported(second, 1, 0.1)

    search, first, second = behind(tmp_path / "killed")
    search.reported(first, 1, 0.1)
    measured(first, 0.1)
    measured(second, 0.1)  # and the study is killed before it hears
    search = Search(stopping(tmp_path / "killed"))
    first, second = search.next(), search.next()
    assert search.is_stopped(second)
    if repeats:
        assert search.reported(second, 1, 0.1)
    told = [optuna_trials(tmp_path / name)[3].intermediate_values for name in ("whole", "killed")]
    assert told[0] == told[1] == {1: 0.1}


def test_no_config_is_stopped_at_its_last_epoch(tmp_path):
    search = Search(stopping(tmp_path, replicates=1, scheduler="median"))
    for _ in range(6):
        trial = search.next()
        curve(search, trial, [0.5, 0.5, 0.5, 0.9])
        end(search, trial, 0.9)
    assert curve(search, search.next(), [0.6] * 4) is None


def test_no_config_is_stopped_without_a_scheduler(tmp_path):
    search = Search(study(tmp_path, LINE, "random", trials=9, replicates=1))
    for value in (0.9, 0.8, 0.1, 0.0):
        trial = search.next()
        assert curve(search, trial, [value] * trial.config.training.epochs) is None
        end(search, trial, value)
    assert all(trial.intermediate_values for trial in optuna_trials(tmp_path)[:4])


BOTH = ("mean_coherence", "log_likelihood")


@pytest.mark.parametrize("sampler", ["grid", "random", "qmc", "tpe", "gp", "nsga2"])
def test_several_objectives_reach_the_sampler_and_the_tables(tmp_path, sampler):
    space = GRID if sampler == "grid" else PLANE

    def values(trial):
        beta = trial.config.objective.beta
        return (-abs(beta - 2) + trial.replicate, -1000 - beta)

    made = study(tmp_path, space, sampler, objectives=BOTH)
    before = run(Search(made), values, limit=7)
    after = run(Search(made), values)
    assert len({trial.trial_id for trial in (*before, *after)}) == 12
    told = optuna_trials(tmp_path)
    betas = [trial.params["objective.beta"] for trial in told]
    assert [trial.values for trial in told] == [
        pytest.approx([0.5 - abs(beta - 2), -1000 - beta]) for beta in betas
    ]
    rows = store.ended_trials(tmp_path)
    assert all(row["objective.mean_coherence"] == row["objective_value"] for row in rows)
    assert all(row["objective.log_likelihood"] < -1000 for row in rows)


def test_a_config_with_one_objective_missing_has_failed(tmp_path):
    search = Search(study(tmp_path, trials=1, replicates=1, objectives=BOTH))
    end(search, search.next(), (0.5, None))
    assert [trial.state.name for trial in optuna_trials(tmp_path)] == ["FAIL"]


def with_checkpoint(search):
    trial = search.next()
    trial.checkpoints.mkdir(parents=True, exist_ok=True)
    return trial


def kept(out):
    return {path.name for path in (out / "checkpoints").iterdir()}


def test_checkpoints_of_the_best_and_of_unfinished_trials_are_kept(tmp_path):
    made = study(tmp_path, LINE, "random", trials=8, replicates=1, keep_checkpoints=2)
    search = Search(made)
    running = with_checkpoint(search)
    names = {}
    for value in (0.3, 0.1, 0.2, None, 0.5):
        trial = with_checkpoint(search)
        names[value] = trial.trial_id
        end(search, trial, value, "COMPLETE" if value else "DIVERGED")
    failed = with_checkpoint(search)
    end(search, failed, None, "FAILED")
    expected = {running.trial_id, failed.trial_id, names[0.3], names[0.5]}
    assert kept(tmp_path) == expected
    more = Search(dataclasses.replace(made, keep_checkpoints=1))
    assert kept(tmp_path) == expected - {names[0.3]}
    assert with_checkpoint(more).trial_id == running.trial_id
    end(more, running, 0.9)
    assert kept(tmp_path) == {failed.trial_id, running.trial_id}


def test_of_several_objectives_the_dominated_trials_lose_their_checkpoints(tmp_path):
    made = study(tmp_path, LINE, "random", trials=5, replicates=1, objectives=BOTH, keep_checkpoints=3)
    search = Search(made)
    names = {}
    for values in ((0.9, -9.0), (0.1, -1.0), (0.4, -6.0), (0.5, -5.0), (0.6, -7.0)):
        trial = with_checkpoint(search)
        names[values] = trial.trial_id
        end(search, trial, values)
    front = {(0.9, -9.0), (0.1, -1.0), (0.5, -5.0)}
    assert {values for values, name in names.items() if name in kept(tmp_path)} <= front | {(0.6, -7.0)}
    assert names[(0.4, -6.0)] not in kept(tmp_path)
    assert len(kept(tmp_path)) == 3


@pytest.mark.parametrize("sampler", ["qmc", "gp", "nsga2", "cmaes"])
def test_every_sampler_goes_on_where_a_killed_study_was(tmp_path, sampler):
    def value(trial):
        return -abs(trial.config.objective.beta - 2)

    whole = [t.trial_id for t in run(Search(study(tmp_path / "whole", PLANE, sampler, 8, 1)), value)]
    before = run(Search(study(tmp_path / "killed", PLANE, sampler, 8, 1)), value, limit=5)
    after = run(Search(study(tmp_path / "killed", PLANE, sampler, 8, 1)), value)
    assert [trial.trial_id for trial in (*before, *after)] == whole
    assert len(set(whole)) == 8
