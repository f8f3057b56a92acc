import json
import shutil

import pytest

from analysis.findings import find
from analysis.provenance import fixed_settings
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


def sized(run, base):
    """A run that sweeps the size of each of two subspaces."""
    configs = [
        {"model.style_dim.face": face, "model.style_dim.words": words}
        for face in (4, 32)
        for words in (4, 32)
    ]
    write_study(run, configs, lambda params: 0.5, modalities=("face", "words"), study=base)
    for row in store.read(run).trials.to_pylist():
        params = {name.removeprefix("param."): row.pop(name) for name in list(row) if "param." in name}
        config = json.loads(row["config"])
        config["model"]["style_dim"] = {path.rpartition(".")[2]: size for path, size in params.items()}
        store.write_trial(run, row | {"config": json.dumps(config)}, params)
    return run


@pytest.mark.parametrize("whole", [4, {"face": 4, "words": 4}])
def test_a_field_that_one_run_sweeps_in_parts_is_no_difference_of_the_whole(tmp_path, whole):
    runs = [
        sized(tmp_path / "sizes", based_on("model", "style_dim", whole)),
        write_study(
            tmp_path / "fusions",
            grid(objective__fusion=("mixture", "product")),
            lambda params: 0.6,
            modalities=("face", "words"),
            study=based_on("model", "style_dim", 16),
            seed=2,
        ),
    ]
    results = load(*runs)
    names = {factor.name: factor.levels for factor in results.factors}
    assert names == {
        "style_dim.face": (4, 16, 32),
        "style_dim.words": (4, 16, 32),
        "fusion": ("mixture", "product"),
    }


def test_a_level_is_one_though_a_run_writes_it_as_text(tmp_path):
    each = {"mnist": 1, "svhn": 4, "text": 1}
    options = {"model.style_dim": {"type": "Choice", "options": [0, 4, each]}}
    texts = ("0", "4", json.dumps(each))  # as they stand in the table
    runs = [
        write_study(tmp_path / "numbers", grid(model__style_dim=(0, 4)), lambda params: 0.5, seed=1),
        write_study(
            tmp_path / "mixed",
            grid(model__style_dim=texts),
            lambda params: 0.5,
            study={"domains": options},
            seed=2,
        ),
        write_study(tmp_path / "one", grid(objective__beta=(1.0, 5.0)), lambda params: 0.5, seed=3),
    ]
    for some in (runs[:2], runs[1:], runs):
        levels = {factor.name: factor.levels for factor in load(*some).factors}
        assert levels["style_dim"] == texts
    assert {factor.name: factor.levels for factor in load(*runs[::2]).factors}["style_dim"] == (0, 4)


def test_what_one_run_has_more_of_does_not_hide_what_another_lacks(tmp_path):
    """A run without study.json planned nothing that is known."""
    unfinished = write_study(
        tmp_path / "unfinished",
        SIZES,
        truth(0.7),
        state=lambda config, replicate: "PLANNED" if config else "COMPLETE",
    )
    other = write_study(tmp_path / "other", SIZES, truth(0.7), dataset="faces")
    (other / "study.json").unlink()
    assert [load(unfinished).num_missing, load(other).num_missing] == [2, 0]
    assert load(unfinished, other).num_missing == 2


def test_cases_may_have_the_name_of_a_section_of_fields(tmp_path):
    cases = {"narrow": {"model.width": 0.5}, "wide": {"model.width": 1.0}}
    domains = {"model": {"type": "Cases", "options": list(cases), "cases": cases}}
    runs = [
        write_study(
            tmp_path / str(size),
            grid(model=tuple(cases)),
            lambda params: 0.5,
            study=based_on("model", "content_dim", size) | {"domains": domains},
            seed=size,
        )
        for size in (8, 32)
    ]
    assert {factor.path for factor in load(*runs).factors} == {"model", "model.content_dim"}
    shared = [row.cells[0].text for row in fixed_settings(load(runs[0])).rows]
    assert "model.content_dim" in shared
    assert "model.width" not in shared
