import ast
import json
import shutil
from dataclasses import replace

import duckdb
import polars
import pytest

from analysis.findings import find
from analysis.provenance import fixed_settings, queries
from analysis.reading import ReportError, load
from analysis.report import main, write_report
from analysis.results import Quantity, Trial
from analysis.tables import effect_table
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


def of_samples(run, number, configs, level, seed=0):
    """A run whose base trains on another number of samples."""
    study = {"base": study_json(configs, 2, ("mnist", "svhn", "text"))["base"]}
    study["base"]["data"]["samples_per_epoch"] = number
    return write_study(run, configs, lambda params: level, study=study, seed=seed)


def told(runs, out):
    """The answer of a report and its notes, and of each factor what its levels are compared between."""
    write_report(*runs, out=out)
    markdown = (out / "report.md").read_text().replace("\\", "")
    compared = {row.cells[0].text: row.cells[-1].text for row in effect_table(find(load(*runs))).rows}
    return markdown.split("Configs are chosen")[0], compared


@pytest.mark.parametrize("others", [{}, {"model__style_dim": (4, 16)}])
def test_a_swept_field_whose_levels_the_runs_do_not_share_is_named_with_what_they_differ_in(tmp_path, others):
    """Its levels change with the samples, so that nobody can say which of them an effect is of."""
    runs = [
        of_samples(tmp_path / "a", 2000, grid(objective__beta=(1.0, 2.5), **others), 0.7),
        of_samples(tmp_path / "b", 500, grid(model__style_dim=(0, 2)), 0.4, seed=1),
    ]
    words, compared = told(runs, tmp_path / "both")
    assert (
        "With data.samples_per_epoch the runs differ in model.style_dim as well, all of them or some: "
        "whatever is said of samples_per_epoch or style_dim may be due to any of these."
    ) in words
    assert "The factor with the largest demonstrable effect" not in words
    assert (
        "The largest demonstrable effect is that of **`style_dim`** or of what the runs differ in as well "
        "(`samples_per_epoch`): from "
    ) in words
    assert compared["style_dim"] == "between configs that differ in samples_per_epoch as well"
    assert compared["samples_per_epoch"] == "between configs that differ in style_dim as well"
    page = (tmp_path / "both" / "index.html").read_text()
    assert "effect: style_dim or what the runs differ in as well, best against worst level" in page


def test_a_swept_field_that_the_runs_share_a_level_of_is_its_own_factor(tmp_path):
    runs = [
        of_samples(tmp_path / "a", 2000, grid(model__style_dim=(0, 4)), 0.7),
        of_samples(tmp_path / "b", 500, grid(model__style_dim=(0, 2)), 0.4, seed=1),
    ]
    words, compared = told(runs, tmp_path / "both")
    assert "the runs differ in" not in words
    assert compared["samples_per_epoch"] == "between configs"


def test_levels_that_one_run_has_are_compared_without_regard_to_the_others(tmp_path):
    sizes = grid(model__style_dim=(0, 2), model__width=(0.5, 1.0))
    runs = [
        write_study(
            tmp_path / "a",
            sizes,
            lambda params: 0.7 - 0.2 * params["model.style_dim"],
            study=based_on("data", "samples_per_epoch", 500),
        ),
        of_samples(tmp_path / "b", 2000, grid(objective__beta=(1.0, 5.0)), 0.5, seed=1),
    ]
    words, _ = told(runs, tmp_path / "both")
    assert "With data.samples_per_epoch the runs differ in model.style_dim, objective.beta as well" in words
    assert words.count("as well, all of them or some") == 1
    assert "The factor with the largest demonstrable effect is **`style_dim`**: from `2` to `0`" in words


@pytest.mark.parametrize(("low", "is_confounded"), [(1.0, False), (3.0, True)])
def test_numbers_are_confounded_with_the_runs_where_their_ranges_do_not_overlap(tmp_path, low, is_confounded):
    betas = [{"objective.beta": low + 0.37 * index} for index in range(9)]
    study = based_on("data", "samples_per_epoch", 500) | {
        "domains": {"objective.beta": {"type": "Uniform", "low": low, "high": 7.0}},
        "sampler": "random",
    }
    runs = [
        write_study(tmp_path / "a", betas, lambda params: 0.1 * params["objective.beta"], study=study),
        of_samples(tmp_path / "b", 2000, grid(model__style_dim=(0, 4)), 0.25, seed=1),
    ]
    words, _ = told(runs, tmp_path / "both")
    also = " or with what the runs differ in as well (`samples_per_epoch`)" * is_confounded
    assert f"goes most closely with `beta`{also}: Spearman" in words


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


@pytest.mark.parametrize("state", ["STOPPED", "DIVERGED", "FAILED"])
def test_the_best_config_is_one_whose_replicates_have_all_completed(tmp_path, state):
    """So it is what a confirmation trains, and not what a scheduler gave up after a lucky replicate."""
    configs = grid(model__style_dim=(0, 4, 16))
    run = write_study(
        tmp_path / "run",
        configs,
        lambda params: 0.5 - 0.01 * params["model.style_dim"],
        state=lambda config, replicate: state if (config, replicate) == (0, 1) else "COMPLETE",
    )
    assert [config.params["model.style_dim"] for config in load(run).configs] == [4, 16, 0]


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


def shared_fields(results):
    return {row.cells[0].text: row.cells[1].text for row in fixed_settings(results).rows}


def of_objectives(run, *names):
    """A run that sweeps the objective's name, from which the fusion follows."""
    write_study(run, grid(objective__name=names), lambda params: 0.5)
    for row in store.read(run).trials.to_pylist():
        config, name = json.loads(row["config"]), row.pop("param.objective.name")
        config["objective"]["fusion"] = "product" if name == "mvae" else "mixture"
        store.write_trial(run, row | {"config": json.dumps(config)}, {"objective.name": name})
    return run


def test_a_field_that_follows_from_a_swept_one_is_shared_only_where_all_trials_have_it_alike(tmp_path):
    assert "objective.fusion" not in shared_fields(load(of_objectives(tmp_path / "a", "mmjsd", "mvae")))
    assert (
        shared_fields(load(of_objectives(tmp_path / "b", "mmjsd", "mmvae")))["objective.fusion"] == "mixture"
    )


@pytest.mark.parametrize(
    ("name", "fusion", "told_apart"),
    [("mmvae", "mixture", []), ("mvae", "product", ["run"])],
)
def test_a_field_that_follows_from_a_swept_one_is_no_difference_between_runs(
    tmp_path, name, fusion, told_apart
):
    """But where it makes configs differ that are alike in all that is swept, the runs are told apart."""
    other = based_on("objective", "name", name)
    other["base"]["objective"]["fusion"] = fusion
    runs = [
        of_objectives(tmp_path / "names", "mmjsd", "mvae"),
        write_study(tmp_path / "one", grid(model__style_dim=(4, 16)), truth(0.6), study=other, seed=1),
    ]
    names = {factor.name for factor in load(*runs).factors}
    assert names == {*told_apart, "objective", "style_dim"}


def test_a_field_that_follows_in_one_run_and_is_set_in_another_is_told_of_each_config(tmp_path):
    set_otherwise = based_on("objective", "name", "mmjsd")
    set_otherwise["base"]["objective"]["fusion"] = "product"
    runs = [
        of_objectives(tmp_path / "names", "mmjsd", "mvae"),
        write_study(
            tmp_path / "one", grid(model__style_dim=(4, 16)), truth(0.6), study=set_otherwise, seed=1
        ),
    ]
    results = load(*runs)
    told = {(each.params["objective.name"], each.params["objective.fusion"]) for each in results.configs}
    assert told == {("mmjsd", "mixture"), ("mvae", "product"), ("mmjsd", "product")}
    assert {factor.name for factor in results.factors} >= {"objective", "fusion"}


@pytest.mark.parametrize("numbers", [(2, 3), (3, 1)])
def test_runs_of_other_modalities_are_judged_by_what_each_measured_given_all(tmp_path, numbers):
    """Given all n modalities of a run, the probe reaches 0.2 n."""
    runs = []
    for number in numbers:
        names = tuple(f"m{index}" for index in range(number))
        posterior = "product" if number > 1 else ""
        score = {("probe_accuracy", posterior, "+".join(names), ""): 0.2 * number}
        runs.append(
            write_study(
                tmp_path / str(number),
                grid(objective__beta=(1.0, 2.5)),
                truth=lambda params, number=number: 0.2 * number,
                modalities=names,
                dataset=f"polydigits-{number}",
                tested=lambda params, rng, score=score: score,
                study={"objective_metric": "probe_accuracy"},
                seed=number,
            )
        )
    results = load(*runs)
    assert results.objective == Quantity("probe_accuracy", "product")
    for config in results.configs:
        expected = 0.2 * int(config.run)
        assert results.values(config, results.objective) == pytest.approx([expected, expected])
        assert all(trial.trial_id in results.curves for trial in config.trials)
    effects = {each.factor.name: each.effect.best.num_configs for each in find(results).effects}
    assert effects == {"data": 2, "beta": 2}
    assert load(runs[0]).objective.given == "+".join(f"m{index}" for index in range(numbers[0]))


def test_runs_keep_the_objectives_that_all_have(tmp_path):
    asked = [
        ["mean_coherence", "random_coherence", "reconstruction"],
        ["mean_coherence", "random_coherence"],
    ]
    runs = [
        write_study(tmp_path / name, SIZES, truth(0.7), study={"objectives": names}, seed=len(names))
        for name, names in zip("ab", asked, strict=True)
    ]
    assert [each.metric for each in load(*runs).objectives] == asked[1]
    assert [each.metric for each in load(runs[0]).objectives] == asked[0]


def test_cases_with_the_name_of_a_section_are_missing_in_a_run_that_lacks_them(tmp_path):
    cases = {"narrow": {"model.width": 0.5}, "wide": {"model.width": 1.0}}
    domains = {"model": {"type": "Cases", "options": list(cases), "cases": cases}}
    runs = [
        write_study(
            tmp_path / "cases", grid(model=tuple(cases)), lambda params: 0.5, study={"domains": domains}
        ),
        write_study(tmp_path / "betas", grid(objective__beta=(1.0, 2.0)), lambda params: 0.5, seed=1),
    ]
    results = load(*runs)
    assert {config.params["model"] for config in results.configs if config.run == "betas"} == {None}
    assert next(factor.levels for factor in results.factors if factor.path == "model") == tuple(cases)


@pytest.mark.parametrize("names", [("net [width]", "net [content]"), ("size v1.5", "my.name")])
def test_names_of_cases_are_shown_as_they_are(tmp_path, names):
    cases = {"narrow": {"model.width": 0.5}, "wide": {"model.width": 1.0}}
    domain = {"type": "Cases", "options": list(cases), "cases": cases}
    run = write_study(
        tmp_path / "run",
        [{names[0]: first, names[1]: second} for first in cases for second in cases],
        lambda params: 0.5,
        study={"domains": dict.fromkeys(names, domain)},
    )
    results = load(run)
    assert results.swept == {name: name for name in names}
    assert [factor.name for factor in results.factors] == list(names)


def test_queries_run_whatever_the_folder_is_called(tmp_path):
    run = write_study(tmp_path / "it's an [1] 😀", SIZES, truth(0.7))
    results = load(run)
    calls = [ast.parse(line).body[-1].value for line in queries(results).splitlines()]
    calls[0] = calls[0].func.value  # load(...), of which .pivot(...) is called
    where, trials, parts, measurements = (call.args[0].value for call in calls)
    assert (where, trials) == (str(run), str(run / "results" / "trials"))
    assert len(polars.read_parquet(parts)) == len(results.trial_rows)
    assert len(duckdb.sql(measurements)) == (results.measurements["metric"] == "mean_coherence").sum()
    assert "😀" in queries(results)


def test_queries_of_a_url_have_its_settings_last(runs):
    def asked(where):
        results = load(runs[0])
        run = replace(results.runs[0], where=where)
        return queries(replace(results, runs=(run,))).splitlines()

    _, trials = asked("s3://studies/fusion/?region=eu-west-1&scheme=http")  # others do not take such URLs
    assert 'read_parquet("s3://studies/fusion/results/trials?region=eu-west-1&scheme=http")' in trials
    _, trials, parts, measurements = asked("gs://studies/fusion/")
    assert 'read_parquet("gs://studies/fusion/results/trials")' in trials
    assert 'read_parquet("gs://studies/fusion/results/trials/*.parquet")' in parts
    assert "'gs://studies/fusion/results/measurements/*.parquet'" in measurements
