import csv
import json
import re
import shutil
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow.parquet as pq
import pytest

from analysis.findings import find
from analysis.reading import ReportError, load
from analysis.tables import (
    coherence_table,
    config_table,
    effect_table,
    posterior_table,
    probe_table,
    subset_table,
)
from analysis.wording import answer
from study import store
from tests import synthetic
from tests.reports import SUBSPACES, Page, findings_of, report, shortcut
from tests.reports import subspaces as subspaces  # a fixture
from tests.synthetic import MODALITIES, TEST_GAP, grid, study_json, write_study

# Findings: known effects, planted and recovered


def test_findings_recover_a_planted_effect_and_interaction(subspaces):
    findings = findings_of(subspaces)
    first = findings.effects[0]
    assert first.factor.name == "style_dim"
    assert (first.effect.best.level, first.effect.worst.level) == (0, 32)
    assert first.effect.difference == pytest.approx(0.096, abs=first.effect.half_width)
    assert first.effect.excludes_zero
    assert findings.interaction.p_value < 0.001
    words = " ".join(answer(findings))
    assert "which excludes zero" in words
    assert "averaged over `beta`" in words
    assert "8 configs × 2 replicates: 16 ended trials took 8.0 min of device time" in words
    cells = effect_table(findings).rows[0].cells
    assert cells[1].text.count("\N{NO-BREAK SPACE}· ") == 3
    assert cells[5].text == "< 0.001"


def test_what_was_lost_with_processes_that_vanished_is_told(tmp_path):
    run = write_study(tmp_path / "preempted", SUBSPACES, lambda params: 0.5)
    assert " lost " not in " ".join(answer(findings_of(run)))
    for row in store.ended_trials(run)[:2]:
        store.write_lost(run, row["trial_id"], 90.0)
    assert [row["lost_s"] for row in store.ended_trials(run)[:3]] == [90.0, 90.0, None]
    words = " ".join(answer(findings_of(run)))
    assert "Another 3.0 min were lost: what 2 trials had trained since the last checkpoint when" in words


def test_findings_call_no_effect_where_there_is_none(tmp_path):
    findings = findings_of(write_study(tmp_path / "null", SUBSPACES, lambda params: 0.5, noise=0.02, seed=3))
    assert not any(finding.effect.excludes_zero for finding in findings.effects)
    assert findings.interaction.p_value > 0.05
    assert "which includes zero" in " ".join(answer(findings))
    assert all(finding.tied for finding in findings.configs[1:])


def test_no_larger_difference_hides_a_demonstrable_effect(tmp_path):
    """Of four levels the range is larger than of two, and so is its interval."""
    run = write_study(
        tmp_path / "run",
        SUBSPACES,
        lambda params: 0.5 + 0.03 * (params["objective.beta"] == 2.5),
        noise=0.02,
        seed=36,
    )
    findings = findings_of(run)
    first, second = (finding.effect for finding in findings.effects)
    assert first.excludes_zero
    assert not second.excludes_zero
    assert abs(first.difference) < abs(second.difference)
    words = " ".join(answer(findings))
    assert "The factor with the largest demonstrable effect is **`beta`**" in words
    assert "No factor" not in words


def test_findings_rank_by_validation_and_report_on_test(subspaces):
    findings = findings_of(subspaces)
    ranks = [finding.config.validation for finding in findings.configs]
    assert ranks == sorted(ranks, reverse=True)
    best = findings.best
    results = findings.results
    tested = [results.last[results.objective][trial.trial_id] for trial in best.config.complete]
    assert results.objective.split == "test"
    assert best.estimates["objective"].value == pytest.approx(fmean(tested))
    assert fmean(tested) == pytest.approx(best.config.validation - TEST_GAP)


def test_findings_correlate_continuous_factors(tmp_path):
    rates = [1e-4 * 1.3**step for step in range(12)]
    configs = [
        {"training.learning_rate": rate, "objective.name": name, "objective.weights": (0.25, 0.25, 0.2, 0.3)}
        for rate, name in zip(rates, ["mmjsd", "mvae"] * 6, strict=True)
    ]
    domains = {
        "training.learning_rate": {"type": "LogUniform", "low": 1e-4, "high": 3e-3},
        "objective.name": {"type": "Choice", "options": ["mmjsd", "mvae"]},
    }
    run = write_study(
        tmp_path / "run",
        configs,
        lambda params: 0.5 + 50 * params["training.learning_rate"],
        study={"sampler": "tpe", "domains": domains},
    )
    findings = findings_of(run)
    assert findings.correlations[0].factor.name == "learning_rate"
    assert findings.correlations[0].correlation.rho > 0.9
    assert not findings.effects[0].effect.matched
    page = report(run)
    assert "goes most closely with learning_rate" in page.text
    assert "between configs" in page.text


def test_many_modalities_have_columns_of_means_by_the_number_given_and_by_the_target(tmp_path):
    run = write_study(tmp_path / "run", grid(objective__beta=(1, 2)), lambda params: 0.5, modalities="abcde")
    findings = findings_of(run)
    coherence, probe, posteriors = coherence_table(findings), probe_table(findings), posterior_table(findings)
    assert coherence.titles == ("#", "beta", "random", *"1234", *"abcde")
    assert coherence.groups[2:] == (("modalities given", 4), ("modality generated", 5))
    assert probe.titles == ("#", "beta", *"12345")
    given = {row.cells[0].text.partition(" given ")[2] for row in posteriors.rows} - {""}
    assert min(each.count("+") + 1 for each in given) == 4
    results, best = findings.results, findings.configs[0].config
    for column, (size, target) in {3: (1, ""), 5: (3, ""), 8: (None, "b")}.items():
        found = [
            fmean(results.values(best, quantity))
            for quantity in results.last
            if quantity.metric == "coherence" and quantity.split == "test"
            if quantity.posterior != "mixture" and quantity.target not in quantity.given.split("+")
            if size in (None, len(quantity.given.split("+"))) and target in ("", quantity.target)
        ]
        assert coherence.rows[0].cells[column].sort == pytest.approx(fmean(found))


def test_nothing_is_bold_where_all_are_tied(tmp_path):
    run = write_study(
        tmp_path / "run", grid(objective__beta=(1, 2, 3)), lambda params: 0.5, replicates=4, noise=0.02
    )
    for table in (coherence_table(findings_of(run)), probe_table(findings_of(run))):
        columns = list(zip(*([cell.bold for cell in row.cells] for row in table.rows), strict=True))
        assert not any(map(all, columns))
        assert sum(map(any, columns)) < 3


def test_the_best_config_has_a_row_for_each_subset_that_was_measured(tmp_path, monkeypatch):
    def first_two(names, size):
        return list(combinations(names, size))[:2] if size > 1 else combinations(names, size)

    monkeypatch.setattr(synthetic, "combinations", first_two)
    run = write_study(tmp_path / "run", grid(objective__beta=(1, 2)), lambda params: 0.5, modalities="abcd")
    table = subset_table(find(load(run)))
    assert [row.cells[0].text for row in table.rows] == [
        *("a", "b", "c", "d"),
        *("a + b", "a + c", "a + b + c", "a + b + d", "a + b + c + d"),
    ]
    assert not any(cell.text == "–" for row in table.rows for cell in row.cells)


@pytest.mark.parametrize(("modalities", "name"), [(("image", "text"), "ternary"), (("a", "b", "c"), "pairs")])
def test_findings_map_a_simplex(tmp_path, modalities, name):
    rng = np.random.default_rng(0)
    weights = [tuple(rng.dirichlet(np.ones(len(modalities) + 1)).tolist()) for _ in range(8)]
    run = write_study(
        tmp_path / name,
        [{"objective.weights": each} for each in weights],
        lambda params: 0.4 + 0.4 * params["objective.weights"][-1],
        modalities=modalities,
        study={
            "sampler": "random",
            "domains": {"objective.weights": {"type": "Simplex", "size": 3, "lower": 0}},
        },
    )
    page = report(run)
    assert "goes most closely with weights[prior]" in page.text
    assert (run / "report" / "figures" / "weights_1.svg").exists()


# Report: what the page shows, and where it has to say that it cannot


@pytest.fixture(scope="module")
def page(subspaces):
    return report(subspaces)


def test_report_shows_the_same_numbers_on_every_page(subspaces, page):
    best = findings_of(subspaces).best.estimates["objective"]
    number = f"{best.value:.3f} ± {best.half_width:.3f}"
    assert number in page.text
    assert number in (subspaces / "report" / "report.md").read_text()
    with (subspaces / "report" / "tables" / "configs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert float(rows[0]["test_objective"]) == pytest.approx(best.value)
    assert float(rows[0]["test_objective_low"]) == pytest.approx(best.low)
    assert rows[0]["objective.beta"] == "2.5"
    assert rows[0]["best"] == "True"


def test_the_decisive_figure_follows_the_answer_and_what_was_asked_stands_beside_how_to_ask_again(subspaces):
    report(subspaces)
    page = (subspaces / "report" / "index.html").read_text()
    marks = (
        'id="answer"',
        'id="figure-interaction"',
        'id="configs"',
        'id="trouble"',
        'id="asked"',
        'id="reproduce"',
    )
    assert sorted(marks, key=page.index) == list(marks)
    markdown = (subspaces / "report" / "report.md").read_text()
    marks = ("figures/interaction.svg", "## 1 Configs", "What was asked and run", "Reproduce")
    assert sorted(marks, key=markdown.index) == list(marks)


def test_captions_are_of_one_piece_where_a_line_must_not_end(subspaces):
    report(subspaces)
    captions = re.findall(
        r"<figcaption>(.*?)</figcaption>", (subspaces / "report" / "index.html").read_text()
    )
    assert any("95&nbsp;% intervals" in caption for caption in captions)
    assert any("p&nbsp;&lt;&nbsp;0.001" in caption for caption in captions)


def test_tables_are_read_alike_wherever_they_go(subspaces):
    report(subspaces)
    page = Page(subspaces / "report" / "index.html").text
    whole = " ".join((subspaces / "report" / "report.md").read_text().split())
    names = {path.stem for path in (subspaces / "report" / "tables").glob("*.tex")}
    assert {"configs", "effects", "coherence", "posteriors", "best_subsets", "claims"} <= names
    for name in names:
        tables = subspaces / "report" / "tables"
        (_, note) = (tables / f"{name}.md").read_text().split("| \n\n\n")
        note = " ".join(note.split())
        assert len(note) > 60
        assert note in whole
        assert note.replace("`", "") in page
        latex = (
            (tables / f"{name}.tex").read_text().partition(r"\footnotesize")[2].partition(r"\end{table}")[0]
        )
        commands = re.compile(r"\\[a-z]+")
        assert re.findall(r"\w{2,}", commands.sub(" ", latex)) == re.findall(r"\w{2,}", note)


def test_columns_of_numbers_are_aligned_to_the_right(subspaces):
    report(subspaces)
    tables = subspaces / "report" / "tables"
    assert (tables / "effects.md").read_text().splitlines()[
        1
    ] == "| --- | --- | --- | --- | ---: | ---: | --- |"


def test_tables_set_off_what_was_given_and_single_modalities_stand_under_both_posteriors(subspaces):
    report(subspaces)
    tables = subspaces / "report" / "tables"
    latex, markdown = ((tables / f"best_subsets.{kind}").read_text() for kind in ("tex", "md"))
    assert re.search(r"^ *mnist & \\multicolumn\{2\}\{c\}\{\\textit\{0\.\d+", latex, re.MULTILINE)
    assert "{r}{" not in latex
    assert re.search(r"^\| mnist \| \*0\.\d+ \(0\.\d+\)\* \|", markdown, re.MULTILINE)


def test_report_holds_figures_tables_and_samples_of_the_best_config(subspaces, page):
    figures = {path.name for path in (subspaces / "report" / "figures").iterdir()}
    best = findings_of(subspaces).best.config
    assert {"interaction.svg", "main_effects.svg", "trade_off.svg", "learning_curves.svg"} <= figures
    drawn = {Path(name).stem for name in figures if name.endswith(".svg")}
    assert {f"{name}.{kind}" for name in drawn for kind in ("png", "pdf")} <= figures
    samples = f"samples_{best.complete[0].trial_id}"
    assert {f"{samples}_overview.png", f"{samples}_conditional_svhn.png"} <= figures
    assert sum(link.startswith("data:image/png;base64,") for link in page.links) == 3 + 2
    assert "svhn is missing" in page.text
    assert "Best: config 1" in page.text
    assert "Worst: config 8" in page.text
    for words in (
        "coherence → svhn",
        "mnist + svhn + text",
        "A processor · 8 cores",
        "Nothing: every trial ran",
    ):
        assert words in page.text
    assert "python study/run.py --space subspaces --out runs/subspaces" in page.text


def test_report_of_a_study_without_replicates_gives_no_intervals(tmp_path):
    run = write_study(tmp_path / "run", SUBSPACES, shortcut, replicates=1)
    page = report(run)
    assert "an interval needs at least two replicates" in page.text
    assert "n/a (one replicate)" in page.text
    assert "without replicates nobody can say" in page.text
    assert "tied with" not in page.text.split("1Configs")[0]


def test_what_improves_downwards_favours_the_mixture_where_the_product_has_more(tmp_path):
    def tested(params, rng):
        noise = rng.standard_normal()
        return {
            ("frechet_distance", "product", "mnist+text", "svhn"): 400 + noise,
            ("frechet_distance", "mixture", "mnist+text", "svhn"): 200.0,
        }

    text = report(write_study(tmp_path / "run", SUBSPACES, shortcut, tested=tested)).text
    assert re.search(r"Fréchet distance of svhn given mnist\+text ↓\s*\+(199|200)", text)
    assert "A positive one favours the product, but the mixture where ↓ says" in text


def test_report_of_one_trial_compares_nothing(tmp_path):
    page = report(write_study(tmp_path / "run", SUBSPACES[:1], shortcut, replicates=1))
    assert "The only config is style_dim = 0, beta = 0.5" in page.text
    assert "Effects of the swept fields cannot be told yet: too few configs have completed" in page.text
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "ended_at": "2026-01-02"}))
    assert "cannot be told: too few configs" in report(tmp_path / "run").text


def test_of_one_config_a_level_the_error_is_unknown_in_spite_of_replicates(tmp_path):
    configs = [
        {"objective.name": name, "training.learning_rate": rate}
        for name, rate in (("mmjsd", 1e-3), ("mvae", 2e-3), ("mmvae", 3e-3))
    ]
    page = report(write_study(tmp_path / "run", configs, lambda params: 0.5, replicates=3))
    assert "with one config a level nobody can say whether that is more than noise" in page.text
    assert "n/a (one config a level)" in page.text
    assert "one replicate" not in page.text
    markdown = (tmp_path / "run" / "report" / "report.md").read_text()
    (caption,) = [line for line in markdown.splitlines() if "Each factor for itself" in line and "**" in line]
    assert caption.endswith("Intervals would need several configs a level.")


def test_report_names_every_commit_that_trained_and_whether_its_files_had_been_changed(tmp_path):
    run = write_study(tmp_path / "run", SUBSPACES[:2], shortcut)
    assert "0123456 with" not in report(run).text
    for path in sorted((run / "results" / "trials").glob("*.parquet"))[:3]:
        table = pq.read_table(path)
        for name, value in (("commit", "fedcba9"), ("dirty", True)):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(name), [[value]])
        pq.write_table(table, path)
    text = report(run).text
    assert "fedcba9 with uncommitted changes (3 trials)" in text
    assert "0123456 (1 trial)" in text
    assert "Not all trials of the study were trained by the same code: see its commits." in text
    assert "The code had uncommitted changes when the study ran." in text


def test_report_sets_quality_against_coherence_where_it_is_measured(tmp_path):
    def tested(params, rng):
        noise = rng.standard_normal()
        found = {("log_likelihood", "product", "mnist+svhn+text", "joint"): -1800 + noise}
        return found | {("frechet_distance", "", "", name): 40 + noise for name in ("mnist", "svhn")}

    run = write_study(tmp_path / "run", SUBSPACES, shortcut, tested=tested)
    text = report(run).text
    assert "Mean coherence against log likelihood" in text
    assert "Mean coherence against Fréchet distance" in text
    asked = {"objectives": ["mean_coherence", "random_coherence", "log_likelihood"]}
    text = report(write_study(tmp_path / "three", SUBSPACES, shortcut, tested=tested, study=asked)).text
    assert "Mean coherence against random coherence" in text
    assert "Mean coherence against log likelihood" in text


def test_report_says_by_how_many_samples_a_log_likelihood_is_estimated(tmp_path):
    def tested(params, rng):
        value = -1800 + params["evaluation.importance_samples"] + rng.standard_normal()
        return {("log_likelihood", "product", "mnist+svhn+text", "joint"): value}

    draws = grid(evaluation__importance_samples=(4, 12))
    asked = study_json(draws, 2, MODALITIES)["base"] | {"evaluation": {"importance_samples": 4}}
    run = write_study(tmp_path / "run", draws, lambda params: 0.5, tested=tested, study={"base": asked})
    text = report(run).text
    assert "The log-likelihood is estimated by importance sampling (K = 4 or 12)." in text
    assert text.count("importance sampling") == 1


def test_report_of_a_study_that_sweeps_nothing(tmp_path):
    page = report(write_study(tmp_path / "run", [{}], lambda params: 0.5, replicates=3))
    assert "The only config is the space's base" in page.text
    assert "The space varies no field" in page.text


def test_report_of_one_config_of_two_modalities_without_curves_draws_nothing(tmp_path):
    run = write_study(
        tmp_path / "run", [{}], lambda params: 0.5, replicates=3, epochs=1, modalities=("image", "text")
    )
    page = report(run)
    assert "Nothing to draw: one config is compared with nothing." in page.text


def test_report_shows_what_cases_set_and_takes_them_as_levels(tmp_path):
    configs = [
        {"objective.name": name, "subspaces": case} for name in ("mvae", "mmjsd") for case in ("no", "own")
    ]
    configs[1]["model.style_dim"], configs[3]["model.style_dim"] = 2, 3
    cases = {
        "no": {"model.content_dim": 20},
        "own": {"model.style_dim": {"type": "Integer", "low": 1, "high": 4}},
    }
    domains = {
        "objective.name": {"type": "Choice", "options": ["mvae", "mmjsd"]},
        "subspaces": {"type": "Cases", "options": list(cases), "cases": cases},
    }
    run = write_study(
        tmp_path / "cases",
        configs,
        lambda params: 0.3 + 0.2 * (params["subspaces"] == "own"),
        replicates=3,
        study={"domains": domains},
    )
    text = report(run).text
    assert "no (model.content_dim 20); own (model.style_dim 1 to 4)" in text
    assert "model.content_dim 16" not in text  # of the base, which the cases override
    effect = next(each.effect for each in find(load(run)).effects if each.factor.path == "subspaces")
    assert (effect.best.level, effect.worst.level) == ("own", "no")
    assert abs(effect.difference - 0.2) < 0.03


def test_report_of_an_unfinished_study_says_what_is_missing(tmp_path):
    states = {(0, 0): "RUNNING", (0, 1): "PLANNED", (1, 0): "DIVERGED", (2, 1): "FAILED", (3, 0): "STOPPED"}
    run = write_study(
        tmp_path / "run",
        SUBSPACES,
        shortcut,
        state=lambda config, replicate: states.get((config, replicate), "COMPLETE"),
        error="loss is infinite at epoch 3",
    )
    page = report(run)
    assert "This study is unfinished: 14 of 16 trials have ended." in page.text
    assert "trials complete, of 8 configs" in page.text
    assert "1 trial stopped early by the scheduler does not count" in page.text
    assert "2 trials that diverged or failed do not count" in page.text
    assert "1 of 2, 1 DIVERGED" in page.text
    assert "DIVERGED: " in page.text
    assert "loss is infinite at epoch 3" in page.text
    assert "4 epochs so far" in page.text
    assert "1 planned trial has not begun." in page.text
    rows = config_table(findings_of(run)).rows
    assert len(rows) == 7


def test_report_of_a_study_in_which_all_score_the_same_says_so(tmp_path):
    rng = np.random.default_rng(0)
    configs = [{"training.learning_rate": float(rng.uniform(1e-4, 1e-2))} for _ in range(6)]
    study = {"sampler": "random", "domains": {"training.learning_rate": {"type": "LogUniform"}}}
    run = write_study(tmp_path / "run", configs, lambda params: 0.1, noise=0.0, study=study)
    text = report(run).text
    assert "Effects of the swept fields cannot be told yet: all configs score the same." in text
    assert "too few configs" not in text


def test_report_of_a_study_that_has_just_begun_says_so(tmp_path):
    run = write_study(tmp_path / "run", SUBSPACES, shortcut, state=lambda config, replicate: "PLANNED")
    shutil.rmtree(run / "results", ignore_errors=True)
    assert "This study is unfinished: 0 of 16 trials have ended." in report(run).text


def test_report_of_a_study_in_which_all_failed_names_no_best(tmp_path):
    page = report(
        write_study(tmp_path / "run", SUBSPACES[:2], shortcut, state=lambda *_: "FAILED", error="boom")
    )
    assert "No config can be called best: no trial completed: 4 FAILED" in page.text
    assert "None yet: no trial has completed." in page.text


def test_report_says_of_how_many_trials_the_measurements_are_gone(tmp_path):
    def state(config, replicate):
        return "STOPPED" if (config, replicate) == (1, 1) else "COMPLETE"

    run = write_study(tmp_path / "run", SUBSPACES[:2], shortcut, state=state)
    files = sorted((run / "results" / "measurements").iterdir())
    files[0].unlink()
    text = report(run).text
    assert (
        "1 trial that completed or was stopped has no measurements: the study's command with --resume" in text
    )
    assert "--resume trains it again." in text
    for file in files[1:]:
        file.unlink()
    text = report(run).text
    assert "4 trials that completed or were stopped have no measurements" in text
    assert "No config has two complete replicates with measurements, so the noise" in text
    assert "cannot be told yet: too few configs have measurements." in text
    assert "Nothing to draw: too few trials have measurements." in text


def test_report_of_an_empty_study_says_so(tmp_path):
    run = write_study(tmp_path / "run", SUBSPACES, shortcut, state=lambda *_: "PLANNED")
    (run / "results").mkdir()
    page = report(run)
    assert "no trial has ended" in page.text
    assert "trials complete, of 8 configs" in page.text
    assert "0 of 16" in page.text
    assert "Nothing to draw yet: no trial has completed." in page.text


def test_report_needs_neither_study_json_nor_manifest(tmp_path):
    run = write_study(tmp_path / "run", SUBSPACES, shortcut)
    (run / "study.json").unlink()
    (run / "manifest.json").unlink()
    assert "The factor with the largest demonstrable effect is style_dim" in report(run).text


@pytest.mark.parametrize("name", ["study.json", "manifest.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_what_is_said_of_a_damaged_file_to_do_makes_a_report(tmp_path, name, content):
    run = write_study(tmp_path / "run", SUBSPACES, shortcut)
    (run / name).write_text(content)
    with pytest.raises(
        ReportError, match="move it out of the folder for a report of the tables alone"
    ) as told:
        load(run)
    assert "--resume" not in str(told.value)
    (run / name).rename(tmp_path / name)
    assert "The factor with the largest demonstrable effect is style_dim" in report(run).text


def test_report_escapes_what_users_and_errors_say(tmp_path):
    evil = "<script>alert('x')</script>|`**$\\frac{$&amp;"
    run = write_study(
        tmp_path / "a <b> 'run'",
        grid(objective__name=("mmjsd", evil), objective__fusion=("mixture", evil)),
        lambda params: 0.5 + 0.1 * (params["objective.name"] == evil),
        state=lambda config, replicate: "FAILED" if (config, replicate) == (0, 1) else "COMPLETE",
        error=f"Traceback: {evil}</pre>",
        study={"study": evil, "question": evil, "description": evil, "command": ["python", evil]},
    )
    page = report(run)
    source = (run / "report" / "index.html").read_text()
    assert source.count("<script>") == 1
    assert f"Traceback: {evil}</pre>" in page.text
    assert f"Study report · {evil}" in page.text
    markdown = re.sub(
        r"`[^`\n]*`|^    .*$", "", (run / "report" / "report.md").read_text(), flags=re.MULTILINE
    )
    assert not re.search(r"(?<!\\)<script", markdown)


def test_report_removes_figures_of_an_earlier_one(tmp_path):
    run = write_study(tmp_path / "run", SUBSPACES[:1], shortcut)
    stale = run / "report" / "figures" / "weights_1.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    report(run)
    assert not stale.exists()


def test_report_of_one_epoch_has_no_learning_curves(tmp_path):
    run = write_study(tmp_path / "run", SUBSPACES[:2], shortcut, epochs=1)
    report(run)
    assert not (run / "report" / "figures" / "learning_curves.svg").exists()


def test_report_sets_cost_against_quality_where_costs_differ(tmp_path, monkeypatch):
    def costly(**columns):
        return trial(**columns | {"device_s": 100 * columns["objective_value"]})

    trial = synthetic.trial
    report(write_study(tmp_path / "equal", SUBSPACES, shortcut))
    assert not (tmp_path / "equal" / "report" / "figures" / "cost.svg").exists()
    monkeypatch.setattr(synthetic, "trial", costly)
    page = report(write_study(tmp_path / "run", SUBSPACES, shortcut))
    assert "Mean coherence against device seconds" in page.text
    assert (tmp_path / "run" / "report" / "figures" / "cost.png").stat().st_size > 1000


def test_report_draws_only_fields_in_which_the_complete_configs_differ(tmp_path):
    sizes = [{"model.style_dim.mnist": 1 + (index > 4), "objective.beta": 1.0 + index} for index in range(8)]
    configs = [size | {"model.width": 0.1 * (1 + index % 3)} for index, size in enumerate(sizes)]
    configs = [
        each | {"training.learning_rate": 1e-3 * (1 + index % 4)} for index, each in enumerate(configs)
    ]
    run = write_study(
        tmp_path / "stopped",
        configs,
        lambda params: params["objective.beta"] / 10,
        replicates=1,
        state=lambda config, replicate: "STOPPED" if config > 4 else "COMPLETE",
        study={"domains": {}, "sampler": "tpe"},
    )
    text = report(run).text
    assert "All fields at once" in text
    assert "model.style_dim 4" not in text  # of the base: a part of it is swept


def test_report_of_ten_trials_and_one_factor_shows_no_importance(tmp_path):
    run = write_study(tmp_path / "run", grid(model__style_dim=(0, 1, 2, 3, 4)), lambda params: 0.5)
    assert "Importance of the swept fields" not in report(run).text
