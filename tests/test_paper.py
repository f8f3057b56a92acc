"""A study beside the paper: published numbers, recognised models, the paper's layout, and its claims."""

from math import sqrt
from statistics import fmean, stdev

import pandas as pd
import pytest
from scipy import stats

from analysis.api import load
from analysis.beside import introduction, paper_tables
from analysis.beside import verdicts as verdicts_told
from analysis.claims import MARGIN
from analysis.leaks import leak_sentences
from analysis.paper import compare, model_of
from analysis.published import MODELS, TABLES, Model, printed
from analysis.reading import load as read_runs
from analysis.report import write_report
from analysis.wording import fixed, signed
from tests.reports import report
from tests.synthetic import MODALITIES, grid, study_json, write_study

SIX = grid(objective__name=("mvae", "mmvae", "mmjsd"), model__style_dim=(0, 4))
LETTERS = dict(zip("MST", MODALITIES, strict=True))
GUESS = 0.1


def names(column):
    """What a column measures, as the table of measurements names it, but for the posterior."""
    given = sorted(LETTERS[letter] for letter in column.given.split(",") if letter)
    return column.metric, "+".join(given), LETTERS.get(column.target, column.target)


def paper_scores(noise=0.004, shift=lambda model, column, posterior: 0.0):
    """The paper's numbers with noise between replicates, moved by `shift`, under both posteriors."""

    def tested(params, rng):
        model = Model(params["objective.name"], params["model.style_dim"] > 0)
        scores = {}
        for table in TABLES:
            for column in table.columns:
                metric, given, target = names(column)
                for posterior in ("mixture", "product") if "+" in given else ("",):
                    scale = 100 if table.number == 4 else 1
                    value = float(printed(model, column)) + scale * noise * rng.standard_normal()
                    value += scale * shift(model, column, posterior)
                    scores[metric, posterior, given, target] = value
                    if metric == "random_coherence_as_released":
                        scores["random_coherence", posterior, given, target] = value - 0.3
                    if metric == "log_likelihood_as_released":
                        scores["log_likelihood", posterior, given, target] = value - 40 - rng.uniform()
                    if metric == "precision_as_released":
                        scores["precision", posterior, given, target] = value + 0.02
                        scores["recall", posterior, given, target] = value - 0.02
                        scores["frechet_distance", posterior, given, target] = 20 - 10 * value
        if model.has_subspaces:
            for position, name in enumerate(MODALITIES):
                leak = GUESS + 0.1 * position + 0.01 * position * params["model.style_dim"]
                scores["style_probe_accuracy", "", "", name] = leak + 0.002 * rng.standard_normal()
        return scores

    return tested


def study_of(folder, configs=SIX, tested=None, dataset="mnist-svhn-text", truth=lambda params: 0.5, **others):
    return write_study(
        folder, configs, truth, replicates=3, tested=tested or paper_scores(), dataset=dataset, **others
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = study_of(tmp_path_factory.mktemp("runs") / "six")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def study(run):
    return load(run)


# The published numbers


SECOND_TRANSCRIPTION = """
1 | mmJSD (MS) | M 0.98, M,S 0.94, Joint 0.99
1 | MVAE | S 0.20, Joint 0.90
1 | MMVAE | S,T 0.90
2 | MVAE (MS) | Random 0.74, M given S 0.16, T given M,S 0.26
2 | mmJSD | S given M,T 0.48, T given S 0.83
2 | MMVAE (MS) | S given T 0.93
3 | MMVAE | S given M 0.005, S given R 0.27
3 | mmJSD (MS) | M given S,T 0.64, S given M,T 0.22
4 | MVAE | X -1864, X given S,T -1908
4 | MMVAE (MS) | X given M -1982, X given M,S -1905
"""
"""A few cells, read from the paper another time."""

PRINTED_BOLD = {
    1: "0.98 0.85 0.99 0.94 0.99 0.94 0.99",
    2: "0.74 0.82 0.99 0.95 0.89 0.93 0.92 0.97 0.83 0.92",
    3: "0.62 0.64 0.64 0.62 0.33 0.34 0.22 0.33",
    4: "-1864 -1982 -1911 -1995 -1881 -1958 -1908",
}
"""The best of each column, which the paper prints in bold."""


def test_published_numbers_agree_with_a_second_transcription():
    titles = {model.title: model for model in MODELS}
    count = 0
    for line in SECOND_TRANSCRIPTION.strip().splitlines():
        number, title, cells = line.split(" | ")
        columns = TABLES[int(number) - 1].columns
        for cell in cells.split(", "):
            place, value = cell.rsplit(" ", 1)
            target, _, given = place.partition(" given ")
            wanted = [
                column
                for column in columns
                if column.title in (place, given, f"X | {given}")
                and (number != "2" or not given or column.target == target)
                and (number != "3" or column.target == target)
            ]
            assert [printed(titles[title], column) for column in wanted] == [value], line
            count += 1
    assert count == 20


@pytest.mark.parametrize("table", TABLES, ids=lambda table: str(table.number))
def test_the_best_published_number_of_each_column_is_the_one_in_bold(table):
    columns = zip(*(table.values[model] for model in MODELS), strict=True)
    assert [max(column, key=float) for column in columns] == PRINTED_BOLD[table.number].split()


# Which configs are the paper's models


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"objective.name": "mvae"}, "MVAE (MS)"),
        ({"objective.name": "mmvae", "model.style_dim": 0}, "MMVAE"),
        ({"objective.name": "mmjsd", "model.style_dim": {"mnist": 0, "svhn": 2, "text": 0}}, "mmJSD (MS)"),
        ({"objective.name": "mmjsd", "model.style_dim": {"mnist": 0, "svhn": 0, "text": 0}}, "mmJSD"),
        ({"objective.name": "mmjsd", "objective.dynamic_prior": "mixture"}, None),
        ({"objective.name": "mmjsd", "objective.fusion": "product"}, None),
        ({"objective.name": "mvae", "objective.fusion": "product"}, "MVAE (MS)"),
        ({"objective.name": "mmvae", "objective.importance_samples": 8}, None),
        ({"objective.name": "mopoe"}, None),
    ],
)
def test_models_are_told_from_the_config(tmp_path, changes, title):
    base = {path: value for path, value in changes.items() if not isinstance(value, dict)}
    run = study_of(tmp_path / "run", [base], lambda params, rng: {})
    (config,) = read_runs(run).configs
    if isinstance(changes.get("model.style_dim"), dict):
        config.settings["model"]["style_dim"] = changes["model.style_dim"]
    found = model_of(config)
    assert (found.title if found else None) == title


def test_models_are_told_where_cases_set_the_subspaces(tmp_path):
    cases = {"none": {"model.style_dim": 0}, "4+4+4": {"model.style_dim": 4}}
    domains = {
        "objective.name": {"type": "Choice", "options": ["mvae", "mmvae", "mmjsd"]},
        "subspaces": {"type": "Cases", "options": list(cases), "cases": cases},
    }
    run = write_study(
        tmp_path / "cases",
        grid(objective__name=("mvae", "mmvae", "mmjsd"), subspaces=tuple(cases)),
        lambda params: 0.5 + 0.1 * (params["subspaces"] == "none"),
        tested=lambda params, rng: {},
        study={"domains": domains},
    )
    study = load(run)
    assert set(study.paper()["model"]) >= {model.title for model in MODELS}
    assert study.effects("subspaces")["level"].tolist() == ["none", "4+4+4"]
    text = report(run).text
    assert "none (model.style_dim 0); 4+4+4 (model.style_dim 4)" in text
    other = write_study(tmp_path / "other", [{}], lambda params: 0.5, study={"sampler": "random"})
    both = load(run, other)
    assert "model.style_dim" not in both.configs  # the first run's base says nothing of it
    assert set(both.configs["subspaces"].dropna()) == {"none", "4+4+4"}


def test_a_study_of_one_model_or_of_other_modalities_is_not_compared(tmp_path):
    one = study_of(tmp_path / "one", [SIX[0]])
    other = write_study(tmp_path / "other", SIX, lambda params: 0.5, modalities=("image", "sound", "text"))
    three = write_study(
        tmp_path / "three", SIX, lambda params: 0.5, modalities=("Mm", "Ss", "Tt"), dataset="x"
    )
    for each in (one, other, three):
        study = load(each)
        assert compare(study.findings.results) is None
        assert study.paper().empty
        assert study.claims().empty
        assert study.as_released().empty
    page = report(one).text
    assert "Beside the paper" not in page
    assert "What the subspaces know" not in page


def test_the_best_config_on_validation_stands_for_its_model(tmp_path):
    configs = grid(objective__name=("mvae", "mmjsd"), model__style_dim=(4,), objective__beta=(0.5, 2.5, 5.0))
    run = study_of(
        tmp_path / "run", configs, truth=lambda params: 0.5 + 0.1 * (params["objective.beta"] == 2.5)
    )
    study = load(run)
    chosen = study.paper()[["model", "config"]].drop_duplicates().set_index("model")["config"]
    betas = study.configs.set_index("config")["objective.beta"]
    assert betas[chosen].tolist() == [2.5, 2.5]
    sentence, _ = introduction(study.comparison)
    assert "Of 6 configs of these models, the best of each on the validation split" in sentence


# The paper's layout


def test_numbers_are_those_of_the_scores(study):
    paper = study.paper()
    scores = study.scores().set_index(["config", "metric", "posterior", "given", "target"])
    checked = 0
    for table in TABLES:
        rows = paper[paper["table"] == f"paper_{table.number}"].set_index(["model", "column"])
        for column in table.columns:
            metric, given, target = names(column)
            for model in MODELS:
                row = rows.loc[(model.title, column.full_title)]
                own = "mixture" if model.objective == "mmvae" else "product"
                key = (row["config"], metric, own if "+" in given else "", given, target)
                assert row["ours"] == scores.loc[key, "mean"]
                assert row["standard_error"] == scores.loc[key, "standard_error"]
                assert row["published"] == float(printed(model, column))
                distance = (row["ours"] - row["published"]) / row["standard_error"]
                assert row["difference"] == pytest.approx(distance)
                checked += 1
    assert checked == 6 * (7 + 10 + 8 + 7)
    assert paper.loc[paper["published"].notna(), "difference"].abs().median() < 1.5


def test_rows_of_the_other_posterior_have_several_modalities_alone(study):
    paper = study.paper()
    rows = paper[(paper["model"] == "MMVAE, product") & (paper["table"] == "paper_1")]
    assert rows["column"].tolist() == ["M,S", "M,T", "S,T", "Joint"]
    assert rows["published"].isna().all()


def test_every_form_shows_the_same_numbers(run, study):
    folder = run / "report"
    page, markdown = (folder / "index.html").read_text(), (folder / "report.md").read_text()
    written = pd.read_csv(folder / "tables" / "paper.csv")
    pd.testing.assert_frame_equal(written, study.paper(), check_dtype=False)
    for row in study.paper().itertuples():
        decimals = 1 if "likelihood" in row.table or row.table == "paper_4" else 3
        texts = [f"{fixed(row.ours, decimals)} ({fixed(row.standard_error, decimals)})"]
        if row.published == row.published and "precision" not in row.table:
            texts.append(f"({signed(row.difference, 1)})")
        tables = [(folder / "tables" / f"{row.table}.{kind}").read_text() for kind in ("md", "tex")]
        for text in texts:
            assert text in page
            assert text in markdown
            assert text in tables[0]
            assert text.replace("−", "$-$") in tables[1]


def test_tables_of_the_log_likelihood_say_by_how_many_samples(tmp_path, run):
    models = SIX[:3]
    base = study_json(models, 3, MODALITIES)["base"] | {"evaluation": {"importance_samples": 4}}
    folder = write_report(study_of(tmp_path / "run", models, study={"base": base})).parent
    told = "number of importance samples: K = 4 here, 12 in the authors' code."
    for file in ("report.md", "tables/paper_4.tex", "tables/paper_4_log_likelihood.md"):
        assert told in " ".join((folder / file).read_text().split())
    assert "importance samples" not in (folder / "tables" / "paper_3.md").read_text()
    assert "importance samples" not in (run / "report" / "report.md").read_text()  # its trials do not tell


def coherence_table(run):
    return next(table for table in paper_tables(load(run).comparison) if table.name == "paper_2")


def test_bold_are_the_best_of_a_column_and_what_is_tied_with_it(run):
    lines = (run / "report" / "tables" / "paper_1.tex").read_text().splitlines()
    rows = {line.split("&")[0].strip(): line for line in lines if line.endswith(r"\\") and "(" in line}
    assert rows["mmJSD (MS)"].count("textbf") >= 5
    assert "textbf" not in rows["MVAE"]


def test_bold_is_judged_by_the_noise_that_the_brackets_have(tmp_path):
    """Models that differ by less than the noise of all configs are tied, however quiet their best are."""

    def tested(params, rng):
        spread = 0.03 if params["objective.beta"] == 5.0 else 0.0001
        level = {"mvae": 0.5, "mmjsd": 0.51, "mmvae": 0.1}[params["objective.name"]]
        value = level + spread * rng.standard_normal()
        return {key: value for key in paper_scores()(params, rng) if "coherence" in key[0]}

    configs = grid(objective__name=("mvae", "mmjsd", "mmvae"), objective__beta=(1.0, 5.0))
    configs = [{**each, "model.style_dim": 0} for each in configs]
    run = study_of(tmp_path / "run", configs, tested, truth=lambda params: 1 / params["objective.beta"])
    table = coherence_table(run)
    bold = {row.cells[0].text: {cell.bold for cell in row.cells[3:] if cell.text} for row in table.rows}
    assert (bold["MVAE"], bold["mmJSD"], bold["MMVAE"]) == ({True}, {True}, {False})


def test_nothing_is_bold_where_all_are_tied(tmp_path):
    def tested(params, rng):
        value = 0.5 + 0.03 * rng.standard_normal()
        return {key: value for key in paper_scores()(params, rng) if "coherence" in key[0]}

    configs = [{**each, "model.style_dim": 0} for each in grid(objective__name=("mvae", "mmjsd", "mmvae"))]
    table = coherence_table(study_of(tmp_path / "run", configs, tested))
    assert {row.cells[0].text for row in table.rows} >= {"MVAE", "mmJSD", "MMVAE"}
    assert not any(cell.bold for row in table.rows for cell in row.cells)


def test_other_data_of_the_same_modalities_are_shown_without_differences(tmp_path):
    run = study_of(tmp_path / "run", dataset="digits")
    study = load(run)
    paper = study.paper()
    assert paper["published"].notna().any()
    assert paper["difference"].isna().all()
    _, caution = introduction(study.comparison)
    assert caution.startswith("**The data differ**: the paper's numbers are of `mnist-svhn-text`.")
    first = next(paper_tables(study.comparison))
    assert [row.cells[0].text for row in first.rows[:2]] == ["MVAE", "paper"]
    assert first.caption.startswith("As the paper's Table 1: Accuracy of a linear classifier")
    assert [cell.text for cell in first.rows[1].cells[2:4]] == ["0.85", "0.20"]


def test_latex_tables_compile(run, compile_latex):
    tables = sorted((run / "report" / "tables").glob("*.tex"))
    assert {"claims", "paper_1", "paper_4_log_likelihood", "as_released", "leak"} <= {
        path.stem for path in tables
    }
    compile_latex(tables, r"\clearpage")


# What the formulas of the authors' code add


def test_as_released_minus_defined_is_paired_within_trials(study):
    found = study.as_released().set_index(["metric", "model"])
    assert len(found) == 18
    random, precision, likelihood = (
        found.loc[f"{name}_as_released"] for name in ("random_coherence", "precision", "log_likelihood")
    )
    assert random["mean"].to_numpy() == pytest.approx(0.3)
    assert precision["mean"].to_numpy() == pytest.approx(-0.02)
    assert (precision["high"] - precision["low"]).max() < 1e-9  # the same noise on both sides
    assert likelihood["mean"].between(40, 41).all()
    assert (likelihood["high"] - likelihood["low"]).between(0.05, 2).all()


# Claims


def verdicts(study):
    return study.claims().set_index(["claim", "case"])["verdict"]


def test_claims_that_the_papers_own_numbers_bear_out_hold(study):
    claims = study.claims().set_index(["claim", "case"])
    assert len(claims) == 8 + 4 + 12 + 2 + 4
    published = claims.dropna(subset="published")
    assert (published["difference"] - published["published"]).abs().max() < 0.02
    for case in ("probe accuracy without subspaces", "coherence with subspaces"):
        assert claims.loc[("several modalities", case), "verdict"] == "holds"
    assert set(claims.loc["missing modalities", "verdict"]) == {"holds"}
    assert set(claims.loc["harder image", "verdict"]) == {"holds"}
    assert set(claims.loc["mean of single ones", "verdict"]) == {"holds"}
    quality = claims.loc["sample quality", "verdict"]
    assert set(quality[quality.index.str.startswith(("MMVAE", "mmJSD"))]) == {"holds"}
    assert set(quality[quality.index.str.startswith("MVAE")]) == {"does not hold here"}  # by its own Table 3


def test_differences_and_intervals_are_those_of_a_hand_made_t_test(study, run):
    claims = study.claims()
    row = claims.set_index("case").loc["mmJSD against MVAE"]
    scores = study.measurements.query("metric == 'coherence' and split == 'test'")
    scores = scores[
        [
            target not in given.split("+")
            for given, target in zip(scores["given"], scores["target"], strict=True)
        ]
    ]
    scores = scores[scores["epoch"] == scores["epoch"].max()]
    configs = {params: name for name, params in _models(study).items()}
    means = {}
    for model, name in configs.items():
        kept = ("", "mixture" if model.objective == "mmvae" else "product")
        rows = scores[(scores["config_hash"] == name) & scores["posterior"].isin(kept)]
        means[model] = rows.groupby("trial_id", observed=True)["value"].mean().tolist()
        assert len(means[model]) == 3
    first, second = means[Model("mmjsd", False)], means[Model("mvae", False)]
    assert row["difference"] == pytest.approx(fmean(first) - fmean(second))
    error = sqrt(fmean(stdev(values) ** 2 for values in means.values()) * 2 / 3)
    assert row["difference_standard_error"] == pytest.approx(error)
    quantile = stats.t.ppf(1 - 0.05 / len(claims) / 2, df=12)
    assert row["difference_high"] == pytest.approx(row["difference"] + quantile * error)


def _models(study):
    return {config.config_hash: model_of(config) for config in study.findings.results.configs}


def test_claims_that_are_reversed_do_not_hold(tmp_path):
    def reversed_(model, column, posterior):
        return {"mvae": 0.9, "mmvae": 0.2, "mmjsd": 0.0}[model.objective] - 0.7 * model.has_subspaces

    found = verdicts(load(study_of(tmp_path / "run", tested=paper_scores(shift=reversed_))))
    others = found[found.index.get_level_values("claim") != "mean of single ones"]
    assert set(others) == {"does not hold here"}


def test_claims_within_the_noise_are_undecided(tmp_path):
    found = verdicts(load(study_of(tmp_path / "run", tested=paper_scores(noise=3.0), seed=1)))
    assert set(found) == {"undecided"}


@pytest.mark.parametrize(
    ("gap", "noise", "verdict"),
    [(MARGIN / 4, 0.002, "holds"), (MARGIN, 0.01, "undecided"), (3 * MARGIN, 0.002, "does not hold here")],
)
def test_equality_is_judged_by_a_margin(tmp_path, gap, noise, verdict):
    def better(model, column, posterior):
        return gap * (posterior == "mixture" and model.objective == "mmvae")

    found = verdicts(load(study_of(tmp_path / "run", tested=paper_scores(noise, better))))
    assert set(found["mean of single ones"]) == {verdict}


def test_without_replicates_nothing_is_decided(tmp_path):
    run = write_study(
        tmp_path / "run",
        SIX,
        lambda params: 0.5,
        replicates=1,
        tested=paper_scores(),
        dataset="mnist-svhn-text",
    )
    claims = load(run).claims()
    assert set(claims["verdict"]) == {"undecided"}
    assert claims["difference_low"].isna().all()
    assert "n/a" in report(run).text


def test_claims_are_made_only_of_the_models_that_are_there(tmp_path):
    configs = grid(objective__name=("mvae", "mmvae"), model__style_dim=(0,))
    run = study_of(tmp_path / "run", configs)
    study = load(run)
    assert set(study.claims()["claim"]) == {"missing modalities", "mean of single ones"}
    assert "2 of the paper's 6 models" in introduction(study.comparison)[0]
    assert [told.split(" **")[1] for told in verdicts_told(study.judgements)] == [
        "Holds in the only case.**",
        "Holds in both cases.**",
    ]


def test_the_page_tells_the_verdicts(run, study):
    markdown = (run / "report" / "report.md").read_text()
    assert "**Holds in 8, does not hold here in 4 of 12 cases.**" in markdown
    assert "**Holds in both cases.**" in markdown
    assert "Subspaces make images of the harder kind (S in the tables) more coherent." in markdown
    written = pd.read_csv(run / "report" / "tables" / "claims.csv")
    pd.testing.assert_frame_equal(written, study.claims(), check_dtype=False)
    assert (run / "report" / "figures" / "claims.png").stat().st_size > 1000


# Leaks


def test_leaks_are_found_by_modality_and_size(tmp_path):
    configs = grid(objective__name=("mvae", "mmjsd"), model__style_dim=(0, 1, 8))
    run = study_of(tmp_path / "run", configs)
    study = load(run)
    leaks = study.leaks().set_index(["modality", "size"])
    assert sorted(set(leaks.index.get_level_values("size"))) == [1, 8]
    for position, name in enumerate(MODALITIES):
        for size in (1, 8):
            expected = GUESS + 0.1 * position + 0.01 * position * size
            assert leaks.loc[(name, size), "mean"] == pytest.approx(expected, abs=0.01)
    assert set(leaks["chance"]) == {GUESS}
    page = report(run)
    assert "Chance is 0.100: the class leaks into the subspace of svhn, text." in page.text
    assert (run / "report" / "figures" / "leak.svg").exists()
    lines = (run / "report" / "tables" / "leak.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in lines) == 2 + 4


def test_leaks_of_one_size_need_no_figure(run, study):
    assert not (run / "report" / "figures" / "leak.svg").exists()
    assert set(study.leaks()["size"]) == {4}
    assert "What the subspaces know of the class" in (run / "report" / "report.md").read_text()


def test_a_study_without_subspaces_says_nothing_of_leaks(tmp_path):
    study = load(study_of(tmp_path / "run", [SIX[0]]))
    assert study.leaks().empty
    assert leak_sentences(study.findings, study.leakage) == []
