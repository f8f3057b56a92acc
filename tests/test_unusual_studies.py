"""Reports of unusual studies: that repeat configs, lack fields, draw them in some cases, or are compared."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from analysis import api
from analysis.figures import _shown_by_look
from analysis.findings import find
from analysis.reading import load
from analysis.report import SampleGrid, write_report
from analysis.wording import answer
from tests.reports import SUBSPACES, Page, findings_of, report, shortcut
from tests.synthetic import MODALITIES, grid, study_json, write_study


def test_a_study_that_has_ended_lacks_nothing_though_its_sampler_repeated_configs(tmp_path):
    run = write_study(tmp_path / "run", SUBSPACES, shortcut, study={"sampler": "tpe", "trials": 20})
    assert "This study is unfinished: 16 of 40 trials have ended." in report(run).text
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"ended_at": "2026-01-02T03:04:05+00:00"}))
    page = report(run)
    assert "unfinished" not in page.text
    assert "not begun" not in page.text
    assert "16 of 16" in page.text
    assert "8 configs × 2 replicates: 16 ended trials" in page.text
    unfinished = write_study(tmp_path / "other", SUBSPACES, shortcut, study={"trials": 10}, dataset="faces")
    both = load(run, unfinished)
    assert (both.num_configs, both.num_missing) == (18, 4)


def test_the_only_config_that_completed_is_not_called_the_only_one(tmp_path):
    run = write_study(
        tmp_path / "run",
        SUBSPACES[:3],
        shortcut,
        state=lambda config, replicate: "DIVERGED" if config else "COMPLETE",
    )
    assert "The only config that completed is style_dim = 0" in report(run).text


def test_what_the_objective_determines_is_no_factor_of_its_own(tmp_path):
    runs = []
    for name, fusion, level in (
        ("mmjsd", "mixture", 0.6),
        ("mvae", "product", 0.4),
        ("mmvae", "mixture", 0.5),
    ):
        base = study_json(SUBSPACES, 2, MODALITIES)["base"]
        base["objective"] |= {"name": name, "fusion": fusion}
        run = write_study(
            tmp_path / name,
            SUBSPACES,
            lambda params, level=level: level,
            seed=len(runs),
            noise=0.005,
            study={"base": base},
        )
        runs.append(run)
    findings = find(load(*runs))
    assert findings.results.aliases == {"objective.name": ("objective.fusion",)}
    first = findings.effects[0]
    assert (first.factor.path, first.effect.matched) == ("objective.name", True)
    assert first.effect.half_width < 0.02


def test_no_value_among_the_options_is_a_level(tmp_path):
    options = (None, 1, 12)
    run = write_study(
        tmp_path / "run",
        grid(objective__importance_samples=options, objective__beta=(1.0, 2.5)),
        lambda params: 0.8 if params["objective.importance_samples"] is None else 0.5,
    )
    findings = findings_of(run)
    first = findings.effects[0]
    assert first.factor.levels == ("none", 1, 12)
    assert (first.effect.best.level, first.effect.matched) == ("none", True)
    words = report(run).text
    assert "importance_samples = none" in words
    assert "none, 1, 12" in words


def test_no_value_that_a_case_draws_is_a_level_of_it_and_elsewhere_the_field_is_missing(tmp_path):
    options = [None, 1, 12]
    cases = {
        "mmjsd": {"objective.fusion": "mixture"},
        "mmvae": {"objective.importance_samples": {"type": "Choice", "options": options}},
    }
    path = "objective.importance_samples"
    configs = [{"case": "mmjsd", path: None}, *({"case": "mmvae", path: each} for each in options)]
    run = write_study(
        tmp_path / "run",
        [params | {"objective.beta": beta} for beta in (1.0, 2.5) for params in configs],
        lambda params: 0.8 if params["case"] == "mmvae" and params[path] is None else 0.5,
        study={"domains": {"case": {"type": "Cases", "options": list(cases), "cases": cases}}},
    )
    findings = findings_of(run)
    first = findings.effects[0]
    assert first.factor.levels == ("none", 1, 12)
    assert first.effect.best.level == "none"
    assert abs(first.effect.difference - 0.3) < 0.03
    assert {
        config.params[path] for config in findings.results.configs if config.params["case"] == "mmjsd"
    } == {None}


def test_levels_are_in_the_order_of_their_domain_whatever_their_types(tmp_path):
    options = [0, 2, {"mnist": 1, "svhn": 4, "text": 1}, 8]
    levels = ("0", "2", '{"mnist": 1, "svhn": 4, "text": 1}', "8")  # as they stand in the table
    run = write_study(
        tmp_path / "run",
        grid(model__style_dim=levels),
        lambda params: 0.5,
        study={"domains": {"model.style_dim": {"type": "Choice", "options": options}}},
    )
    (factor,) = load(run).factors
    assert factor.levels == levels


def test_a_config_without_a_field_is_not_drawn_as_one_of_its_levels(tmp_path):
    configs = [
        {"subspaces": case, "objective.beta": beta, **size}
        for beta in (1.0, 5.0)
        for case, size in [("no", {}), *(("yes", {"model.style_dim": size}) for size in (2, 8, 16))]
    ]
    run = write_study(tmp_path / "run", configs, lambda params: 0.7 - 0.02 * params.get("model.style_dim", 0))
    findings = findings_of(run)
    assert {each.factor.name for each in findings.effects} == {"subspaces", "style_dim", "beta"}
    assert "style_dim" not in {factor.name for factor in _shown_by_look(findings)}
    report(run)


def test_an_interaction_is_told_of_what_it_is_of(tmp_path):
    crossed = grid(model__style_dim=(0, 16), model__width=(0.5, 1.0), objective__beta=(1.0, 5.0))
    run = write_study(
        tmp_path / "three",
        crossed,
        lambda params: 0.5 - 0.2 * (params["model.style_dim"] > 0) * (params["model.width"] > 0.5),
    )
    assert "F test of the interactions of all factors" in report(run).text
    rng = np.random.default_rng(0)
    some = grid(model__style_dim=(0, 2, 4, 8), objective__beta=(1.0, 2.0, 4.0, 8.0))
    sampled = write_study(
        tmp_path / "sampled",
        [some[index] for index in rng.permutation(16)[:9]],
        lambda params: 0.8 - 0.01 * params["model.style_dim"] * params["objective.beta"],
        study={"sampler": "tpe"},
    )
    findings = findings_of(sampled)
    assert findings.crossing is None
    words = " ".join(answer(findings))
    assert "The factors interact" in words
    assert "does not tell all." in words


def test_runs_of_other_numbers_of_replicates_and_of_equal_trials_are_told_apart(tmp_path):
    runs = []
    for number, commit in ((2, "a" * 40), (4, "b" * 40)):
        run = write_study(tmp_path / commit[0], SUBSPACES[:2], shortcut, replicates=number, seed=number)
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps(manifest | {"commit": commit}))
        for trial in load(run).trials:
            trial.samples.mkdir(parents=True)
            trial.overview.write_bytes(b"\x89PNG not really " + commit.encode())
        runs.append(run)
    write_report(*runs, out=tmp_path / "both")
    text = Page(tmp_path / "both" / "index.html").text
    assert "2 of 2" in text
    assert "4 of 4" in text
    assert "2 of 4" not in text
    assert "4 configs: 12 ended trials" in text
    pictures = list((tmp_path / "both" / "figures").glob("samples_*_overview.png"))
    assert len(pictures) == 3


def test_three_runs_are_named_as_in_a_sentence(tmp_path):
    runs = [
        write_study(tmp_path / name, SUBSPACES[:1], shortcut, replicates=1, epochs=1, study={"study": name})
        for name in ("mmjsd", "mvae", "mmvae")
    ]
    write_report(*runs, out=tmp_path / "all")
    assert "Study report · mmjsd, mvae and mmvae" in Page(tmp_path / "all" / "index.html").text


def test_pictures_of_trials_of_other_names_have_other_names():
    ids = ["run 1/abc-r0", "run_1/abc-r0", "run/1/abc-r0", "run_20_1_2f_abc-r0", "abc-r0"]
    names = [SampleGrid("", SimpleNamespace(trial_id=each), Path("overview.png")).name for each in ids]
    assert len(set(names)) == len(ids)
    assert names[-1] == "samples_abc-r0_overview.png"
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_weights_of_simplexes_of_other_sizes_are_told_apart(tmp_path):
    rng = np.random.default_rng(0)
    runs = []
    for modalities in (("a", "b", "c"), ("a", "b")):
        size = len(modalities) + 1
        runs.append(
            write_study(
                tmp_path / f"{size}",
                [{"objective.weights": tuple(rng.dirichlet(np.ones(size)).tolist())} for _ in range(8)],
                lambda params: 0.2 + 0.5 * params["objective.weights"][-1],
                modalities=modalities,
                study={"domains": {"objective.weights": {"type": "Simplex", "size": size}}},
            )
        )
    for order in (runs, runs[::-1]):
        found = find(load(*order)).correlations
        assert len(found) == 7
        assert {each.correlation.num_configs for each in found} == {8}
        write_report(*order, out=tmp_path / "both")


def test_pictures_of_runs_are_links_whatever_the_folders_are_called(tmp_path):
    runs = []
    for name, dataset in (("a (b) c", "digits"), ("d e", "faces")):
        runs.append(write_study(tmp_path / name, SUBSPACES[:2], shortcut, dataset=dataset))
        for trial in load(runs[-1]).trials:
            trial.samples.mkdir(parents=True)
            trial.overview.write_bytes(b"\x89PNG not really")
    folder = write_report(*runs, out=tmp_path / "both").parent
    links = re.findall(r"\]\((\S+)\)\n", (folder / "report.md").read_text())
    pictures = [link for link in links if "samples_" in link]
    assert len(pictures) == 3
    assert all((folder / link).exists() for link in links)


def test_weights_that_two_decimals_do_not_tell_apart_have_three(tmp_path):
    weights = [(0.333, 0.333, 0.333, 0.001), (0.332, 0.332, 0.332, 0.004), (0.25, 0.25, 0.25, 0.25)]
    run = write_study(
        tmp_path / "run",
        [{"objective.weights": each} for each in weights],
        lambda params: 0.5 + params["objective.weights"][-1],
    )
    text = report(run).text
    for label in (
        "0.333 / 0.333 / 0.333 / 0.001",
        "0.332 / 0.332 / 0.332 / 0.004",
        "0.25 / 0.25 / 0.25 / 0.25",
    ):
        assert label in text
    assert "mnist 0.25, svhn 0.25, text 0.25, prior 0.25" in text


def test_a_case_may_be_called_config(tmp_path):
    cases = {"narrow": {"model.width": 0.5}, "wide": {"model.width": 1.0}}
    run = write_study(
        tmp_path / "run",
        grid(config=tuple(cases), objective__beta=(1.0, 2.0)),
        lambda params: 0.5,
        study={"domains": {"config": {"type": "Cases", "options": list(cases), "cases": cases}}},
    )
    study = api.load(run)
    assert study.configs["config"].tolist() == [1, 2, 3, 4]
    assert study.pivot("mean_coherence").index.tolist() == [1, 2, 3, 4]
    assert set(study.effects("config")["level"]) == set(cases)
    assert study.pareto(x="device_s")["config"].tolist() == [1, 2, 3, 4]


def test_a_case_that_is_confirmed_may_be_called_config(tmp_path):
    cases = {"narrow": {"model.width": 0.5}, "wide": {"model.width": 1.0}}
    run = write_study(
        tmp_path / "run",
        grid(config=tuple(cases)),
        lambda params: 0.5,
        study={"domains": {"config": {"type": "Cases", "options": list(cases), "cases": cases}}},
    )
    study = api.load(run)
    again = replace(study.results, confirmed=study.results.configs)
    assert api.Study(again).confirmation()["config"].tolist() == [1, 2]
