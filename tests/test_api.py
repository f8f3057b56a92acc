import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from analysis.api import load
from analysis.estimates import differs_from_zero, holm, pool
from analysis.findings import contrasts
from analysis.reading import ReportError
from analysis.report import write_report
from analysis.results import Quantity
from analysis.wording import fixed
from tests.reports import shortcut
from tests.synthetic import MODALITIES, grid, write_study

SIX = grid(model__style_dim=(0, 4, 16), objective__beta=(0.5, 2.5))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("runs") / "subspaces", SIX, shortcut)


@pytest.fixture(scope="module")
def study(run):
    return load(run)


class Tables(HTMLParser):
    """The text of every cell of a page's tables."""

    def __init__(self, source):
        super().__init__()
        self.cells, self.inside = [], False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        if tag == "td":
            self.inside = True
            self.cells.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "td"

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


def test_tables_are_those_of_the_files(study, run):
    trials = pd.read_parquet(run / "results" / "trials")
    assert list(study.trials.columns) == ["run", *trials.columns]
    assert len(study.trials) == len(trials) == 12
    assert len(study.measurements) == len(pd.read_parquet(run / "results" / "measurements"))
    assert set(study.measurements["run"]) == {"subspaces"}


def test_runs_are_given_one_by_one_or_as_a_list_and_there_must_be_one(study, run):
    assert load([run]).configs.equals(study.configs)
    for nothing in ((), ([],)):
        with pytest.raises(ReportError, match="no run is given; give the --out folder"):
            load(*nothing)


def test_configs_have_the_mean_of_their_replicates(study):
    configs = study.configs
    assert configs["config"].tolist() == [1, 2, 3, 4, 5, 6]
    assert configs["best"].tolist() == [True] + [False] * 5
    assert configs["validation_objective"].is_monotonic_decreasing
    first = configs.iloc[0]
    scores = study.measurements
    rows = scores[
        (scores["config_hash"] == first["config_hash"])
        & (scores["split"] == "test")
        & (scores["metric"] == "mean_coherence")
        & (scores["posterior"] == "product")
    ]
    assert first["test_objective"] == pytest.approx(rows["value"].mean())


def test_pivot_has_configs_down_and_subsets_across(study):
    wide = study.pivot("coherence")
    assert wide.index.tolist() == [1, 2, 3, 4, 5, 6]
    assert wide.columns.names == ["given", "target", "posterior"]
    assert ("mnist+svhn", "text", "product") in wide.columns
    long = study.scores("coherence")
    row = long[(long["config"] == 3) & (long["given"] == "mnist") & (long["target"] == "text")]
    assert wide.loc[3, ("mnist", "text", "")] == row["mean"].item()
    with pytest.raises(ValueError, match=r"no test scores of 'coherense'; there are .*coherence"):
        study.pivot("coherense")
    with pytest.raises(ValueError, match=r"no train scores of 'loss'; there are none of any metric"):
        study.scores("loss", "train")
    with pytest.raises(ValueError, match="no validation scores of 'classifier_accuracy'") as error:
        study.scores("classifier_accuracy", "validation")
    assert str(error.value).count("classifier_accuracy") == 1


def test_a_constant_has_no_error_and_tells_nothing_of_the_others(tmp_path):
    def divergence(params, rng):
        size = params["model.style_dim"]
        share = rng.choice([0.5, 0.6])
        return {
            ("style_divergence", "", "", "mnist"): size and size + rng.standard_normal(),
            ("coherence", "", "mnist", "svhn"): share if size else 0.5,
        }

    study = load(write_study(tmp_path / "run", SIX, shortcut, replicates=3, tested=divergence))
    scores = study.scores("style_divergence").query("target == 'mnist'").set_index("model.style_dim")
    assert (scores.loc[0, ["mean", "standard_error", "low", "high"]] == 0).all(axis=None)
    rows = study.measurements.query("split == 'test' and metric == 'style_divergence' and target == 'mnist'")
    variances = rows.groupby("config_hash", observed=True)["value"].var()
    expected = (variances[variances > 0].mean() / 3) ** 0.5
    assert (variances > 0).sum() == 4
    assert scores.loc[[4, 16], "standard_error"].tolist() == pytest.approx([expected] * 4)
    shares = study.scores("coherence").query("given == 'mnist' and target == 'svhn'")
    assert (shares["standard_error"] > 0).all()  # replicates may agree by chance


def test_effects_recover_the_truth(study):
    effects = study.effects("style_dim").set_index("level")
    assert effects.loc[0, "mean"] - effects.loc[16, "mean"] == pytest.approx(0.048, abs=0.02)
    assert study.effects("model.style_dim").equals(study.effects("style_dim"))
    assert set(study.effects()["factor"]) == {"style_dim", "beta"}
    with pytest.raises(ValueError, match="no factor 'gamma' with levels; there are beta, style_dim"):
        study.effects("gamma")


def test_pareto_marks_the_configs_that_no_other_beats(study):
    front = study.pareto("device_s", "objective")
    assert front["on_front"].sum() == 1  # all cost the same
    both = study.pareto()
    for point in both.itertuples():
        beaten = (both["reconstruction"] < point.reconstruction) & (both["objective"] > point.objective)
        assert point.on_front == (not beaten.any())
    assert both["attainment"].between(0, 1).all()
    with pytest.raises(ValueError, match=r"no column 'price'; there are objective, .*device_s"):
        study.pareto("price")


def test_pareto_marks_equal_configs_alike(tmp_path):
    def tested(params, rng):
        coherence = {0: 0.7, 4: 0.7, 16: 0.6}[params["model.style_dim"]]
        reconstructions = {("reconstruction", "", "", name): 100.0 for name in MODALITIES}
        return reconstructions | {("mean_coherence", "product", "", ""): coherence}

    run = write_study(tmp_path / "run", grid(model__style_dim=(0, 4, 16)), lambda params: 0.5, tested=tested)
    points = load(run).pareto().set_index("model.style_dim")
    assert points["on_front"].to_dict() == {0: True, 4: True, 16: False}
    assert points["attainment"].to_dict() == {0: 1.0, 4: 1.0, 16: 0.0}


def test_pareto_takes_what_the_test_split_has_measured(tmp_path):
    def tested(params, rng):
        found = {("log_likelihood", "", "mnist", "joint"): -3000.0}
        for posterior, loss in (("product", 0), ("mixture", 50)):
            value = -1800 - loss - params["model.style_dim"]
            found["log_likelihood", posterior, "mnist+svhn+text", "joint"] = value
        for number, name in enumerate(("mnist", "svhn"), 1):
            found["precision", "", "", name] = 0.1 * number
            found["frechet_distance", "", "", name] = 10.0 * number
        return found

    study = load(write_study(tmp_path / "run", SIX, shortcut, tested=tested))
    likely = study.pareto("log_likelihood")
    assert likely["log_likelihood"].tolist() == (-1800 - likely["model.style_dim"]).tolist()
    assert likely.loc[likely["on_front"], "log_likelihood"].max() == likely["log_likelihood"].max()
    assert study.pareto("precision")["precision"].tolist() == pytest.approx([0.15] * 6)
    assert study.pareto("frechet_distance", "precision")["frechet_distance"].tolist() == [30.0] * 6
    with pytest.raises(ValueError, match=r"there are objective, .*device_s, .*log_likelihood, .*precision"):
        study.pareto("price")


def test_attainment_tells_a_sure_front_from_a_lucky_one(tmp_path):
    sure = write_study(
        tmp_path / "sure", SIX, lambda params: 0.3 + 0.02 * params["model.style_dim"], noise=0.001
    )
    points = load(sure).pareto("loss", "objective")
    assert points.loc[points["on_front"], "attainment"].max() > 0.4
    assert points.loc[~points["on_front"], "attainment"].min() == 0


def test_a_study_without_an_ended_trial_has_empty_frames(tmp_path):
    run = write_study(tmp_path / "run", SIX, shortcut, state=lambda *_: "PLANNED")
    (run / "results").mkdir()
    study = load(run)
    for frame in (study.trials, study.configs, study.scores(), study.effects(), study.importance()):
        assert len(frame) == 0


SWEPT = "model.style_dim objective.beta"
FRAMES = {
    "configs": f"config config_hash {SWEPT} best tied_with_best validation_objective "
    "complete_replicates ended_replicates device_s",
    "scores": f"config {SWEPT} {' '.join(Quantity._fields)} mean standard_error low high",
    "posteriors": "metric given target attribute difference difference_standard_error difference_low "
    "difference_high p_value",
    "confirmation": f"config config_hash {SWEPT} base validation_objective searched "
    "searched_standard_error searched_low searched_high fresh fresh_standard_error fresh_low fresh_high "
    "against_base against_base_standard_error against_base_low against_base_high p_value",
    "effects": "factor level mean standard_error low high configs effect half_width p_value",
    "correlations": "factor rho p_value configs",
    "importance": "factor share low high total",
    "paper": "table model config column ours standard_error published difference",
    "claims": "claim case difference difference_standard_error difference_low difference_high published "
    "verdict",
    "as_released": "metric model mean standard_error low high",
    "leaks": "modality size mean standard_error low high chance",
}


def test_a_frame_has_its_columns_without_a_row_too(tmp_path):
    empty = load(write_study(tmp_path / "run", SIX, shortcut, state=lambda *_: "RUNNING"))
    for name, columns in FRAMES.items():
        frame = empty.configs if name == "configs" else getattr(empty, name)()
        assert frame.columns.tolist() == columns.split(), name
        assert len(frame) == 0


# Every form of the report shows the numbers of the API


def shown(study):
    """Every number that the API shares with a table: the table's name, the number, and its decimals."""
    for row in study.configs.itertuples():
        yield "configs", row.test_objective, 3
        yield "configs", row.test_reconstruction, 1
    for row in study.scores().itertuples():
        is_shown = row.posterior != "mixture" and row.target not in row.given.split("+")
        if row.metric in ("coherence", "probe_accuracy") and is_shown:
            yield row.metric, row.mean, 3
    for row in study.effects().itertuples():
        yield "effects", row.mean, 3


def test_numbers_agree_in_html_markdown_latex_csv_and_python(run, study):
    folder = write_report(run).parent
    cells = " | ".join(Tables((folder / "index.html").read_text()).cells)
    report = (folder / "report.md").read_text()
    count = 0
    for name, value, decimals in shown(study):
        texts = [(folder / "tables" / f"{name}.{kind}").read_text() for kind in ("tex", "md")]
        for text in (*texts, report, cells):
            assert re.search(rf"(?<![\d.]){re.escape(fixed(value, decimals))}(?!\d)", text), (name, value)
        count += 1
    assert count == 6 * (2 + 3 * 3 + 7) + 5
    for name, frame in (("configs", study.configs), ("effects", study.effects()), ("scores", study.scores())):
        written = pd.read_csv(folder / "tables" / f"{name}.csv")
        assert list(written) == list(frame)
        for column in frame.select_dtypes("float"):
            assert written[column].to_numpy() == pytest.approx(frame[column].to_numpy())


def test_product_and_mixture_are_compared_within_trials(study):
    found = {contrast.quantity: contrast for contrast in contrasts(study.findings.results)}
    coherence = next(each for quantity, each in found.items() if quantity.metric == "mean_coherence")
    assert coherence.difference.value == pytest.approx(0.05)
    assert coherence.difference.half_width < 1e-9  # the same noise on both sides
    assert coherence.p_value < 0.001
    scores = (
        study.scores("probe_accuracy").set_index(["posterior", "given"])["mean"].groupby(level=[0, 1]).mean()
    )
    probe = next(
        each
        for quantity, each in found.items()
        if quantity[:3] == ("probe_accuracy", "product", "mnist+svhn")
    )
    expected = scores["product", "mnist+svhn"] - scores["mixture", "mnist+svhn"]
    assert probe.difference.value == pytest.approx(expected)
    assert probe.p_value > 0.05
    assert not any(quantity.target in quantity.given.split("+") for quantity in found if quantity.target)
    results, raw = study.results, []
    for quantity, contrast in found.items():
        product, mixture = (
            np.array([*results.by_config(each).values()])
            for each in (quantity, quantity._replace(posterior="mixture"))
        )
        raw.append(differs_from_zero(contrast.difference, pool((product - mixture).tolist())))
    assert len(raw) > 4
    assert [contrast.p_value for contrast in found.values()] == pytest.approx(holm(raw))


def test_latex_tables_have_as_many_cells_as_columns(run):
    folder = write_report(run).parent / "tables"
    names = {path.stem for path in folder.glob("*.tex")}
    assert {"configs", "effects", "importance", "coherence", "probe_accuracy", "best_subsets"} <= names
    assert names == {path.stem for path in folder.glob("*.md")}
    for path in folder.glob("*.tex"):
        lines = path.read_text().splitlines()
        columns = len(re.search(r"begin\{tabular\}\{(\w+)\}", path.read_text())[1])
        rows = [line for line in lines if line.endswith(r" \\")]
        assert len(rows) > 1
        for row in rows:
            spans = sum(int(span) - 1 for span in re.findall(r"multicolumn\{(\d+)\}", row))
            assert len(re.split(r"(?<!\\)&", row)) + spans == columns, row
        for rule in ("toprule", "midrule", "bottomrule"):
            assert sum(f"\\{rule}" in line for line in lines) == 1
        assert not re.search(r"(?<!\\)[#_^]", path.read_text().replace("tab:" + path.stem, ""))


def test_latex_tables_compile(run, compile_latex):
    compile_latex(sorted((write_report(run).parent / "tables").glob("*.tex")))


def test_bold_are_the_best_of_a_column_and_what_is_tied_with_it(tmp_path):
    configs = grid(model__style_dim=(0, 4, 16))
    run = write_study(
        tmp_path / "run",
        configs,
        lambda params: 0.7 if params["model.style_dim"] < 16 else 0.3,
        replicates=4,
        noise=0.005,
    )
    write_report(run)
    latex = (run / "report" / "tables" / "coherence.tex").read_text()
    rows = [line.split("&") for line in latex.splitlines() if "(0." in line]
    bold = {row[1].strip(): sum("textbf" in cell for cell in row) for row in rows}
    assert bold["16"] == 0
    assert bold["0"] + bold["4"] >= 10
