"""A study's answer in sentences says no more than its trials do."""

from math import nan

import pytest

from analysis.api import load
from tests import synthetic
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
