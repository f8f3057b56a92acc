import numpy as np
import pytest

from analysis.api import load
from analysis.importance import _totals, noise_share
from analysis.report import write_report
from tests.synthetic import grid, study_json, write_study

FACTORS = grid(model__style_dim=(0, 4, 16), objective__beta=(0.5, 2.5, 10.0), model__width=(0.5, 1.0))


def weighted(params):
    return 0.4 + 0.2 * (params["model.style_dim"] == 0) + 0.02 * np.log(params["objective.beta"])


def test_importance_has_the_order_of_the_truth(tmp_path):
    run = write_study(tmp_path / "run", FACTORS, weighted, noise=0.003)
    found = load(run).importance()
    assert found["factor"].tolist() == ["style_dim", "beta", "width"]
    assert found["share"].iloc[0] > 0.6
    assert found["share"].iloc[2] < 0.1
    assert ((found["low"] <= found["share"] + 0.1) & (found["share"] - 0.1 <= found["high"])).all()
    assert found["total"].is_monotonic_decreasing
    page = write_report(run).read_text()
    assert "Importance of the swept fields" in page
    assert (run / "report" / "figures" / "importance.svg").exists()


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (lambda signs: 2 * signs[0] + signs[1], (0.8, 0.2, 0.0)),
        (lambda signs: 2 * signs[0] * signs[1] + signs[2], (0.8, 0.8, 0.2)),
        (lambda signs: signs[0] * signs[1] * signs[2], (1.0, 1.0, 1.0)),
    ],
)
def test_totals_are_sobols_indices(truth, expected):
    """Worked out by hand: variances of products of independent signs are the squares of their factors."""
    signs = 2.0 * np.indices((2, 2, 2)).reshape(3, -1).T - 1
    blocks = [signs[:, [column]] for column in range(3)]
    totals = _totals(blocks, truth(signs.T))
    assert totals == pytest.approx(expected, abs=0.03)


def test_no_total_exceeds_all_of_the_variance(tmp_path):
    found = load(write_study(tmp_path / "run", FACTORS, weighted, noise=0.05)).importance()
    assert found["total"].between(0, 1).all()


def test_weights_of_a_simplex_are_one_field_and_constants_are_none(tmp_path):
    rng = np.random.default_rng(0)
    configs = [
        {"objective.weights": tuple(rng.dirichlet(np.ones(4)).tolist())}
        | {"training.learning_rate": float(rng.uniform(1e-3, 1e-2)), "model.width": 0.5}
        for _ in range(24)
    ]
    domains = {
        "objective.weights": {"type": "Simplex", "size": 4},
        "training.learning_rate": {"type": "LogUniform", "low": 1e-3, "high": 1e-2},
    }
    run = write_study(
        tmp_path / "run",
        configs,
        lambda params: 0.3 + 0.5 * params["objective.weights"][-1],
        study={"sampler": "random", "domains": domains},
    )
    found = load(run).importance()
    assert found["factor"].tolist() == ["weights", "learning_rate"]
    assert found["share"].iloc[0] > 2 * found["share"].iloc[1]


def test_a_field_of_one_case_alone_does_not_hide_the_case(tmp_path):
    configs = [
        {"subspaces": case, "objective.beta": beta, **size}
        for beta in (1.0, 5.0)
        for case, size in [("no", {}), *(("yes", {"model.style_dim": size}) for size in (2, 5, 11))]
    ]
    run = write_study(
        tmp_path / "run", configs, lambda params: 0.7 - 0.4 * (params["subspaces"] == "yes"), noise=0.005
    )
    found = load(run).importance()
    assert found["factor"].tolist() == ["subspaces", "beta"]
    assert found["share"].iloc[0] > 0.75


def test_noise_between_seeds_is_told_beside_the_shares(tmp_path):
    run = write_study(tmp_path / "run", FACTORS, weighted, replicates=3, noise=0.02)
    study = load(run)
    values = study.trials.groupby("config_hash", observed=True)["objective_value"]
    expected = values.var().mean() / 3 / values.mean().var()
    share = noise_share(study.findings)
    assert share == pytest.approx(expected)  # what test adds to validation is the same in all trials
    text = " ".join(write_report(run).read_text().split())
    told = f"interactions and noise between seeds, which by itself makes {share:.2f} of the variance"
    assert told in text
    assert told in " ".join((run / "report" / "report.md").read_text().split())


def test_where_all_is_noise_no_field_is_called_important(tmp_path):
    run = write_study(tmp_path / "run", FACTORS, lambda params: 0.5, noise=0.02, seed=1)
    study = load(run)
    assert noise_share(study.findings) > 0.8
    assert study.importance().empty
    told = "How much each field matters is not told: noise between seeds by itself makes"
    assert told in write_report(run).read_text()
    assert told in (run / "report" / "report.md").read_text()


def test_importance_without_replicates_has_no_interval(tmp_path):
    found = load(write_study(tmp_path / "run", FACTORS, weighted, replicates=1)).importance()
    assert found["low"].isna().all()
    assert found["high"].isna().all()


@pytest.mark.parametrize(
    ("configs", "truth"),
    [
        (grid(model__style_dim=(0, 4, 16, 32, 64, 128, 256)), lambda params: 0.5),
        (FACTORS[:4], weighted),
    ],
)
def test_importance_is_silent_where_nothing_can_be_said(tmp_path, configs, truth):
    assert load(write_study(tmp_path / "run", configs, truth)).importance().empty


def test_a_field_that_is_zero_where_it_is_not_swept_is_on_no_log_scale(tmp_path):
    domains = {
        "model.style_dim": {"type": "Integer", "low": 1, "high": 64, "log": True},
        "objective.beta": {"type": "LogUniform", "low": 0.1, "high": 10.0},
    }
    rng = np.random.default_rng(0)

    def truth(params):
        return weighted({"model.style_dim": 0} | params)

    def sampled(name, base, configs, seed):
        information = study_json(configs, 2, ("mnist", "svhn", "text"))
        information["base"]["model"]["style_dim"] = base
        asked = {"base": information["base"], "sampler": "random"}
        asked["domains"] = {path: domains[path] for path in configs[0]}
        return write_study(tmp_path / name, configs, truth, study=asked, seed=seed)

    betas = [{"objective.beta": beta} for beta in (10 ** rng.uniform(-1, 1, 12)).tolist()]
    sizes = [params | {"model.style_dim": 1 + 5 * index} for index, params in enumerate(betas[:9])]
    runs = [sampled("sizes", 4, sizes, 0), sampled("none", 0, betas[9:], 1)]
    study = load(*runs)
    assert {factor.name: factor.log for factor in study.results.factors} == {"style_dim": False, "beta": True}
    assert {factor.name: factor.log for factor in load(runs[0]).results.factors} == {
        "style_dim": True,
        "beta": True,
    }
    assert np.isfinite(study.importance()["share"]).all()
    assert "style_dim" in write_report(*runs, out=tmp_path / "both").read_text()
