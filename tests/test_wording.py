"""A study's answer in sentences says no more than its trials do."""

from math import nan

import pytest

from analysis.api import load
from analysis.report import write_report
from tests import synthetic
from tests.reports import Page
from tests.synthetic import grid, write_study

SIZES = grid(model__style_dim=(0, 4, 16, 32))


def falling(params):
    return 0.7 - 0.01 * params["model.style_dim"]


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ("PLANNED", "The only config that completed so far is **`style_dim = 0`**: on the test split"),
        ("RUNNING", "The only config that completed so far is **`style_dim = 0`**: on the test split"),
        ("DIVERGED", "The only config that completed is **`style_dim = 0`**: on the test split"),
    ],
)
def test_of_several_configs_one_that_completed_is_not_called_the_only_one(tmp_path, others, sentence):
    def state(config, replicate):
        return others if config else "COMPLETE"

    run = write_study(tmp_path / "run", SIZES, falling, state=state)
    assert load(run).answer.startswith(sentence)


def test_the_only_config_of_a_study_is_called_so_while_replicates_are_missing(tmp_path):
    def state(config, replicate):
        return "PLANNED" if replicate else "COMPLETE"

    run = write_study(tmp_path / "run", SIZES[:1], falling, state=state)
    assert load(run).answer.startswith("The only config is **")


def test_devices_are_named_for_people(tmp_path, monkeypatch):
    trial = synthetic.trial
    for device, told in (("cpu x 1 threads", "cpu, 1 thread"), ("cpu x 12 threads", "cpu, 12 threads")):
        monkeypatch.setattr(
            synthetic, "trial", lambda name=device, **columns: trial(**columns | {"device": name})
        )
        run = write_study(tmp_path / told, SIZES[:1], falling, replicates=1)
        assert f"of device time on `{told}`" in load(run).answer


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        ((0, 4), "The one other config that can be compared differs significantly."),
        ((0, 4, 16), "Each of the 2 other configs that can be compared differs from it significantly."),
        ((0, 4, 16, 32), "Each of the 3 other configs differs from it significantly."),
    ],
)
def test_configs_without_a_test_score_are_not_counted_as_compared(tmp_path, measured, sentence):
    def tested(params, rng):
        is_measured = params["model.style_dim"] in measured
        return {} if is_measured else {("mean_coherence", "product", "", ""): nan}

    run = write_study(tmp_path / "run", SIZES, falling, noise=0.001, tested=tested)
    first = load(run).answer.split("\n\n")[0]
    assert first.startswith("The best of 4 configs on the validation split is **`style_dim = 0`**")
    assert first.endswith(sentence)


@pytest.mark.parametrize(
    ("second", "third", "sentence"),
    [
        ((1, 3, 2, 4), (0, 0, 0, 0), "no config beats configs 1, 2 and 4"),
        ((4, 3, 2, 1), (0, 0, 0, 0), "config 1 beats every other one"),
        ((4, 3, 2, 1), (0, 0, 1, 0), "no config beats configs 1 and 3"),
        ((4, 3, nan, 1), (0, 0, 0, 0), "config 1 beats every other one that can be compared"),
    ],
)
def test_of_several_objectives_is_told_which_configs_no_other_beats(tmp_path, second, third, sentence):
    """Of sizes 0 to 32 coherence falls; the other objectives are given in this order."""

    def tested(params, rng):
        place = [each["model.style_dim"] for each in SIZES].index(params["model.style_dim"])
        likelihood = ("log_likelihood", "product", "mnist+svhn+text", "joint")
        return {likelihood: second[place], ("random_coherence", "", "", ""): 0.1 * third[place]}

    asked = {"objectives": ["mean_coherence", "log_likelihood", "random_coherence"]}
    run = write_study(tmp_path / "run", SIZES, falling, noise=0.001, tested=tested, study=asked)
    told = (
        f"By mean coherence (product), log likelihood (product) and random coherence together {sentence} on"
    )
    assert f"{told} the test split." in load(run).answer.split("\n\n")[0]
    page = write_report(run)
    assert told in Page(page).text
    assert told in page.with_name("report.md").read_text()


def test_of_one_objective_no_configs_are_told_that_no_other_beats(tmp_path):
    assert "together" not in load(write_study(tmp_path / "run", SIZES, falling)).answer


@pytest.mark.parametrize(
    ("num_configs", "over"),
    [(2, ""), (4, ", averaged over `style_dim`"), (8, ", averaged over the other factors")],
)
def test_levels_are_averaged_over_the_factors_that_vary(tmp_path, num_configs, over):
    """Of a grid that was cut off the last fields vary first."""
    options = {"objective__beta": (1.0, 2.5), "model__style_dim": (0, 4), "model__width": (0.5, 1.0)}
    whole = grid(**options)
    run = write_study(
        tmp_path / "run",
        whole[:num_configs],
        lambda params: 0.2 + 0.5 * params["model.width"],
        study={"domains": {name.replace("__", "."): {"type": "Choice", "options": each}
                           for name, each in options.items()}},
    )  # fmt: skip
    words = load(run).answer.split("\n\n")[1]
    assert "from `0.5` to `1`, mean coherence (product) changes by **+0.2" in words
    assert f"**{over} (95 % interval" in words
