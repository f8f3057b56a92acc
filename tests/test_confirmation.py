"""A confirmation is judged by its own trials alone, and the search is reported without them."""

import json
import re
from statistics import fmean, stdev

import pandas as pd
import pytest
from scipy import stats

from analysis.api import load
from analysis.report import write_report
from analysis.wording import answer, winner
from study import store
from tests.synthetic import TEST_GAP, grid, study_json, write_study

SPACE = grid(model__style_dim=(0, 16), objective__beta=(0.5, 10.0))
"""The base, four dimensions and beta 2.5, is no config of the search."""


def searched(params):
    return 0.5 + 0.1 * (params["model.style_dim"] == 0) + 0.01 * params["objective.beta"]


def sobering(params):
    """The winner of the search is good; its rival was lucky."""
    return {(0, 10.0): 0.6, (0, 0.5): 0.4}.get((params["model.style_dim"], params["objective.beta"]), 0.5)


def worsened(params):
    """On fresh seeds the base config is the best."""
    return 0.5 - 0.1 * (params["model.style_dim"] == 0)


ASKED = {"confirm": 2, "confirm_replicates": 3}


def told(study):
    """What the report's answer says of the confirmation."""
    (sentence,) = [each for each in answer(study.findings) if each.startswith("The confirmation")]
    return sentence


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "confirmed"
    return write_study(
        run, SPACE, searched, replicates=3, noise=0.004, study=ASKED, confirm=(1, 0), fresh=sobering
    )


@pytest.fixture(scope="module")
def study(run):
    return load(run)


def test_the_search_is_reported_as_if_there_were_no_confirmation(study, tmp_path):
    alone = load(write_study(tmp_path / "alone", SPACE, searched, replicates=3, noise=0.004))
    columns = ["config", "config_hash", "validation_objective", "complete_replicates", "ended_replicates"]
    pd.testing.assert_frame_equal(study.configs[columns], alone.configs[columns])
    pd.testing.assert_frame_equal(study.effects(), alone.effects())


def test_the_winner_and_its_advantage_come_from_fresh_seeds_alone(study, run):
    found = study.confirmation()
    shown = found[["base", "config", "model.style_dim", "objective.beta"]].values.tolist()
    assert shown[0] == [False, 1, 0, 10.0]
    assert shown[1][0]
    assert pd.isna(shown[1][1])
    assert shown[1][2:] == [4, 2.5]
    assert shown[2] == [False, 2, 0, 0.5]
    rows = store.read(run).trials.to_pylist()
    fresh = {}
    for row in rows:
        if row["phase"] == "confirm":
            value = row["objective_value"] - TEST_GAP
            fresh.setdefault(row["param.objective.beta"], []).append(value)
    assert found["fresh"].tolist() == pytest.approx([fmean(fresh[beta]) for beta in (10.0, 2.5, 0.5)])
    gain = fmean(fresh[10.0]) - fmean(fresh[2.5])
    error = (fmean(stdev(each) ** 2 for each in fresh.values()) * 2 / 3) ** 0.5
    assert found["against_base"][0] == pytest.approx(gain)
    assert found["against_base_standard_error"][0] == pytest.approx(error)
    assert found["p_value"][0] == pytest.approx(2 * 2 * stats.t.sf(gain / error, 6))
    width = stats.t.ppf(1 - 0.05 / 2 / 2, 6) * error  # two rivals of the base
    assert found["against_base_low"][0] == pytest.approx(gain - width)


def test_the_report_says_who_won(study, run):
    sentence = told(study)
    assert sentence.startswith(
        "The confirmation, 3 configs, the base among them, on 3 fresh seeds each, is won"
    )
    assert "**`style_dim = 0`, `beta = 10`**" in sentence
    assert sentence.endswith("against the base config (the 95 % interval excludes zero).")
    text = write_report(run).read_text(encoding="utf-8")
    assert "Confirmation with fresh seeds: mean coherence (product)" in text
    assert "the best 2 configs and the base config, 3 fresh seeds each" in text
    assert "21 of 21" in text
    fresh = study.findings.confirmed[0].fresh
    number = f"{fresh.value:.3f} ± {fresh.half_width:.3f}"
    assert f"<dt>test mean coherence (product) of the winner on fresh seeds</dt><dd>{number}</dd>" in text
    assert "of the best config</dt>" not in text
    assert "4 configs × 3 replicates and a confirmation of 9 trials: 21 ended trials" in study.answer


def test_luck_is_told(tmp_path):
    run = write_study(
        tmp_path / "lucky",
        SPACE,
        searched,
        replicates=3,
        study=ASKED,
        confirm=(1, 0),
        fresh=lambda params: 0.5,
        seed=1,
    )
    found = load(run).confirmation()
    assert (found["p_value"].dropna() > 0.05).all()
    run = write_study(
        tmp_path / "worse",
        SPACE,
        searched,
        replicates=3,
        study=ASKED,
        confirm=(1, 0),
        fresh=worsened,
    )
    sentence = told(load(run))
    assert "is won by the base config itself with a test mean coherence (product) of **0.48" in sentence
    assert sentence.endswith("on the validation split none of the search's best configs exceeds it.")


def test_a_base_config_that_wins_on_validation_alone_is_told_from_one_that_wins(tmp_path):
    run = write_study(
        tmp_path / "run",
        SPACE,
        searched,
        replicates=3,
        study=ASKED,
        confirm=(1, 0),
        fresh=worsened,
        tested=lambda params, rng: {
            ("mean_coherence", "product", "", ""): 0.4 + 0.2 * (params["model.style_dim"] == 0)
        },
    )
    sentence = told(load(run))
    assert sentence.endswith("exceeds it, though on the test split 2 of them do.")


def lose(run, is_lost):
    """Let those trials of the confirmation diverge."""
    for row in store.read(run).trials.to_pylist():
        if row["phase"] == "confirm" and is_lost(row):
            params = {name.removeprefix("param."): row.pop(name) for name in list(row) if "param." in name}
            store.write_trial(run, row | {"state": "DIVERGED", "objective_value": None}, params)


def test_a_base_config_that_did_not_complete_is_not_among_the_confirmed(tmp_path):
    asked = ASKED | {"confirm": 1}
    run = write_study(tmp_path / "run", SPACE, searched, replicates=3, study=asked, confirm=(1,))
    lose(run, lambda row: row["param.model.style_dim"] == 4)
    sentence = told(load(run))
    assert sentence.startswith(
        "The confirmation, one config on 3 fresh seeds each, is won by **`style_dim = 0`"
    )
    assert sentence.endswith("; the base config did not complete.")


def test_a_base_config_without_a_rival_wins_nothing(tmp_path):
    run = write_study(tmp_path / "run", SPACE, searched, replicates=3, study=ASKED, confirm=(1, 0))
    lose(run, lambda row: row["param.model.style_dim"] == 0)
    assert told(load(run)) == (
        "The confirmation says nothing: none of the search's best configs has completed on fresh seeds."
    )
    assert winner(load(run).findings) is None


@pytest.mark.parametrize(
    ("ended", "sentence"),
    [
        ([4], r"The confirmation says nothing yet: none of the search's best configs has completed on .*"),
        ([0], r"The confirmation, 2 configs on 3 fresh seeds each, is led so far by \*\*`style_dim = 0`.*; "
              r"the base config has not completed yet\."),
        ([4, 0], r"The confirmation, 3 configs, the base among them, on .* is led so far by the base .*"),
    ],
)  # fmt: skip
def test_a_confirmation_under_way_has_no_winner(tmp_path, ended, sentence):
    asked = ASKED | {"confirm": 3}
    run = write_study(
        tmp_path / "run",
        SPACE,
        searched,
        replicates=3,
        study=asked,
        confirm=(1, 0),
        fresh=worsened,
    )
    for row in store.read(run).trials.to_pylist():
        if row["phase"] == "confirm" and row["param.model.style_dim"] not in ended:
            for table in (run / "results").iterdir():
                (table / f"{row['trial_id']}.parquet").unlink()
    assert re.fullmatch(sentence, told(load(run)))
    assert winner(load(run).findings) is None


def test_confirmed_configs_that_are_no_longer_the_best_make_no_winner(tmp_path):
    """Their fresh trials are as many as are missing."""
    asked = ASKED | {"confirm": 1}
    run = write_study(tmp_path / "run", SPACE, searched, replicates=3, study=asked, confirm=(1, 0))
    manifest = run / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"ended_at": None}))
    assert "is led so far by" in told(load(run))


def test_a_confirmation_that_ended_with_fewer_configs_than_asked_for_has_a_winner(tmp_path):
    asked = ASKED | {"confirm": 3}
    run = write_study(tmp_path / "run", SPACE, searched, replicates=3, study=asked, confirm=(1, 0))
    assert "is led so far by" in told(load(run))
    manifest = run / "manifest.json"
    ended = {"ended_at": "2026-01-02T04:04:05+00:00"}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | ended))
    assert "is won by" in told(load(run))


def test_fresh_seeds_are_counted_for_each_config(tmp_path):
    run = write_study(tmp_path / "run", SPACE, searched, replicates=3, study=ASKED, confirm=(1, 0))
    lose(run, lambda row: row["param.objective.beta"] == 10.0 and row["replicate"] > 1000)
    sentence = told(load(run))
    assert "on 1 to 3 fresh seeds each" in sentence


def test_a_confirmation_without_replicates_has_no_intervals(tmp_path):
    asked = {"confirm": 1, "confirm_replicates": 1}
    run = write_study(tmp_path / "one", SPACE, searched, replicates=1, study=asked, confirm=(1,))
    sentence = told(load(run))
    assert sentence.endswith("without replicates nobody can say whether that is more than noise.")
    write_report(run)


def test_a_second_objective_is_a_column_and_an_axis(run, tmp_path):
    plain = load(run)
    asked = {"objectives": ["mean_coherence", "random_coherence"]}
    both = load(write_study(tmp_path / "both", SPACE, searched, study=asked))
    assert "test_random_coherence" in both.configs
    assert "test_random" not in both.configs
    assert "random_coherence" in both.pareto()
    assert "reconstruction" in plain.pareto()
    page = write_report(tmp_path / "both").read_text(encoding="utf-8")
    assert "Mean coherence against random coherence" in page
    asked = {"objective_metric": "probe_accuracy", "objectives": ["probe_accuracy"]}
    probed = load(write_study(tmp_path / "probed", SPACE, searched, study=asked))
    quantity = probed.findings.results.objective
    assert (quantity.metric, quantity.posterior, quantity.given) == (
        "probe_accuracy",
        "product",
        "mnist+svhn+text",
    )


def test_confirmations_of_several_runs_are_held_each_against_its_own_base(tmp_path):
    folders = []
    for seed, (name, level) in enumerate({"mmjsd": 0.7, "mvae": 0.3}.items()):
        asked = ASKED | {"base": study_json(SPACE, 3, ("mnist", "svhn", "text"))["base"]}
        asked["base"]["objective"]["name"] = name
        folders.append(
            write_study(
                tmp_path / name,
                SPACE,
                searched,
                replicates=3,
                noise=0.004,
                study=asked,
                confirm=(1, 0),
                fresh=lambda params, level=level: sobering(params) - 0.5 + level,
                seed=seed,
            )
        )
    together, alone = load(*folders), [load(folder) for folder in folders]
    found = together.confirmation()
    assert found["objective.name"].tolist() == ["mmjsd"] * 3 + ["mvae"] * 3
    gains = [gain for each in alone for gain in each.confirmation()["against_base"]]
    assert found["against_base"].tolist() == pytest.approx(gains, nan_ok=True)
    assert found["against_base"].dropna().tolist() == pytest.approx([0.1, -0.1] * 2, abs=0.02)
    first = found.loc[0]
    width = (first["against_base_high"] - first["against_base_low"]) / 2
    corrected = stats.t.isf(0.025 / 4, 12)  # four rivals of two bases
    assert width == pytest.approx(corrected * first["against_base_standard_error"])
    told = together.answer
    for name in ("mmjsd", "mvae"):
        assert (
            f"The confirmation of `{name}`, 3 configs, the base among them, on 3 fresh seeds each, is won"
            in told
        )
    page = write_report(*folders, out=tmp_path / "both").read_text(encoding="utf-8")
    assert "against the base config of the same run" in page
    assert "unfinished" not in page


def test_without_study_json_nobody_says_which_config_is_the_base(tmp_path):
    folder = write_study(
        tmp_path / "run", SPACE, searched, replicates=3, study=ASKED, confirm=(1, 0), fresh=sobering
    )
    (folder / "study.json").unlink()
    study = load(folder)
    found = study.confirmation()
    assert not found["base"].any()
    assert found["against_base"].isna().all()
    sentence = told(study)
    assert "the base among them" not in sentence
    assert sentence.endswith("; the base config is unknown, as study.json is missing.")


def test_the_base_config_may_write_one_size_of_all_subspaces_as_one_of_each(tmp_path):
    base = study_json(SPACE, 3, ("mnist", "svhn", "text"))["base"]
    base["model"]["style_dim"] = {"mnist": 4, "svhn": 4, "text": 4}
    configs = grid(model__style_dim=(4, 16))
    configs = load(
        write_study(tmp_path / "run", configs, searched_size, study={"base": base})
    ).results.configs
    assert {config.params["model.style_dim"]: config.is_base for config in configs} == {4: True, 16: False}


def searched_size(params):
    return 0.5 + 0.01 * params["model.style_dim"]


def test_the_file_of_a_confirmation_holds_weights_as_those_of_the_configs_do(tmp_path):
    shares = [(0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1)]
    configs = [{"objective.weights": each} for each in shares]
    domains = {"objective.weights": {"type": "Simplex", "size": 4}}
    study = {"domains": domains, "base": study_json(configs, 2, ("mnist", "svhn"))["base"], **ASKED}
    study["base"]["objective"]["weights"] = shares[0]
    run = write_study(
        tmp_path / "run", configs, lambda params: params["objective.weights"][0], study=study, confirm=[1]
    )
    write_report(run)
    for name in ("configs", "confirmation"):
        found = pd.read_csv(run / "report" / "tables" / f"{name}.csv")["objective.weights"]
        assert {tuple(json.loads(each)) for each in found} == set(shares), name
