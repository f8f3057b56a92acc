import json
import shutil

import pytest

from analysis.findings import find
from analysis.reading import ReportError, load
from analysis.report import main, write_report
from analysis.results import Trial
from study import store
from tests.synthetic import grid, study_json, write_study

SIZES = grid(model__style_dim=(0, 16))


def based_on(section, name, value):
    """study.json of a study whose base has another value."""
    information = study_json(SIZES, 2, ("mnist", "svhn", "text"))
    information["base"][section][name] = value
    return {"base": information["base"]}


def truth(level):
    return lambda params: level - 0.006 * params["model.style_dim"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_study(folder / name, SIZES, truth(level), study=based_on("objective", "name", name), seed=seed)
        for seed, (name, level) in enumerate({"mmjsd": 0.7, "mvae": 0.6}.items())
    ]


def test_runs_are_compared_by_the_field_in_which_they_differ(runs):
    findings = find(load(*runs))
    results = findings.results
    assert [factor.name for factor in results.factors] == ["objective", "style_dim"]
    assert results.factors[0].levels == ("mmjsd", "mvae")
    effect = next(each.effect for each in findings.factors if each.factor.name == "objective")
    assert (effect.best.level, effect.matched, effect.best.num_configs) == ("mmjsd", True, 2)
    assert effect.difference == pytest.approx(0.1, abs=0.03)
    assert len(results.trials) == len({trial.trial_id for trial in results.trials}) == 8
    assert results.num_configs == 4


def test_runs_make_one_report_with_the_differences(runs, tmp_path):
    page = write_report(*runs, out=tmp_path / "both").read_text()
    markdown = (tmp_path / "both" / "report.md").read_text()
    assert f"python analysis/report.py {runs[0]} {runs[1]}" in markdown
    assert "between runs" in page
    assert (tmp_path / "both" / "figures" / "interaction.svg").exists()


def test_fields_that_differ_alike_share_one_factor_and_a_warning(tmp_path):
    other = based_on("objective", "name", "mvae")
    other["base"]["training"]["epochs"] = 9
    runs = [
        write_study(tmp_path / "a", SIZES, truth(0.7)),
        write_study(tmp_path / "b", SIZES, truth(0.6), study=other),
    ]
    results = load(*runs)
    assert results.aliases == {"objective.name": ("training.epochs",)}
    markdown = write_report(*runs, out=tmp_path / "both").with_name("report.md").read_text()
    assert "With objective.name the runs differ in training.epochs as well, all of them or some" in markdown


def test_runs_that_differ_in_commit_are_compared_by_it(tmp_path):
    runs = [write_study(tmp_path / name, SIZES, truth(0.7), seed=seed) for seed, name in enumerate("ab")]
    manifest = json.loads((runs[1] / "manifest.json").read_text())
    (runs[1] / "manifest.json").write_text(json.dumps(manifest | {"commit": "f" * 40}))
    assert [factor.name for factor in load(*runs).factors] == ["commit", "style_dim"]


def test_runs_that_differ_in_nothing_are_told_apart_by_name(tmp_path):
    runs = [write_study(tmp_path / name, SIZES, truth(0.7), seed=seed) for seed, name in enumerate("ab")]
    results = load(*runs)
    assert (results.factors[0].name, results.factors[0].levels) == ("run", ("a", "b"))


def test_a_field_that_only_one_run_sweeps_has_the_value_of_the_others_configs(tmp_path):
    runs = [
        write_study(tmp_path / "sizes", SIZES, truth(0.7)),
        write_study(tmp_path / "betas", grid(objective__beta=(0.5, 5.0)), lambda params: 0.6),
    ]
    results = load(*runs)
    assert {factor.name: factor.levels for factor in results.factors} == {
        "style_dim": (0, 4, 16),
        "beta": (0.5, 2.5, 5.0),
    }
    assert {tuple(config.params.values()) for config in results.configs} == {
        (0, 2.5), (16, 2.5), (4, 0.5), (4, 5.0)
    }  # fmt: skip


def test_runs_that_do_not_compare_are_refused_in_one_sentence(runs, tmp_path, capsys):
    other = write_study(tmp_path / "other", SIZES, truth(0.7), study={"objective_metric": "loss"})
    assert main([str(runs[0]), str(other), "--out", str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{runs[0]} is judged by mean_coherence and {other} by loss" in error
    assert not (tmp_path / "report").exists()
    with pytest.raises(ReportError, match="same run is given twice"):
        load(runs[0], runs[0])


def test_runs_of_one_name_go_by_their_paths(runs, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "mmjsd")
    assert [run.label for run in load(runs[0], copy).runs] == [str(runs[0]), str(copy)]


@pytest.mark.parametrize(
    ("workers", "device_s", "share"), [(1, 30.0, 0.4), (1, 15.0, 0.8), (2, 60.0, 0.4), (1, 0.0, None)]
)
def test_evaluation_is_a_share_of_a_trials_device_time(runs, workers, device_s, share):
    """Of a trial that took 30 s, 12 of them to be evaluated: alone, in a pack of two, with two workers."""
    row = store.ended_trials(runs[0])[0]
    made = Trial.of({**row, "workers": workers, "device_s": device_s}, runs[0])
    assert made.evaluation_share == (share if share is None else pytest.approx(share))
