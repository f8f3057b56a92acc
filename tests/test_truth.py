"""Simulated studies whose effects are known, written through study.store and read through analysis: are the
intervals right, and is nothing called an effect that is none?

By default so many studies that a gross mistake shows within seconds; the full number with -m slow.
"""

from math import log10

import numpy as np
import pytest
from scipy import stats

from analysis.api import load
from tests.synthetic import TEST_GAP, grid, write_study

GRID = grid(model__style_dim=(0, 4, 16), objective__beta=(0.5, 2.5))
NOISE = 0.02
COUNTS = [24, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
SMALL = {"epochs": 1, "modalities": ("image",), "noise": NOISE}
"""Without what does not matter here, a study takes a tenth of a second."""


def truth(params):
    return 0.6 - 0.004 * params["model.style_dim"] + 0.03 * log10(params["objective.beta"])


def null(params):
    return 0.5


def drawn(rng):
    """A sampled space: a continuous field, a simplex, and a field with levels."""
    return [
        {
            "training.learning_rate": float(10 ** rng.uniform(-4, -2)),
            "objective.weights": tuple(rng.dirichlet(np.ones(2)).tolist()),
            "objective.name": str(rng.choice(["mmjsd", "mvae", "mmvae"])),
        }
        for _ in range(12)
    ]


DOMAINS = {
    "training.learning_rate": {"type": "LogUniform", "low": 1e-4, "high": 1e-2},
    "objective.weights": {"type": "Simplex", "size": 2},
    "objective.name": {"type": "Choice", "options": ["mmjsd", "mvae", "mmvae"]},
}


def agrees(hits, count, low, high):
    """Whether hits of count do not contradict a probability between low and high: in full number they lie
    there, in a smaller one they would not be too rare (one in a thousand) at either end."""
    if count >= 500:
        return low <= hits / count <= high
    return stats.binom.cdf(hits, count, low) > 1e-3 and stats.binom.sf(hits - 1, count, high) > 1e-3


@pytest.mark.parametrize("count", COUNTS)
def test_intervals_cover_the_truth_and_importance_has_its_order(tmp_path, count):
    means, effects, order = np.zeros(len(GRID)), 0, []
    for seed in range(count):
        study = load(write_study(tmp_path / str(seed), GRID, truth, seed=seed, **SMALL))
        for row in study.configs.to_dict("records"):
            true = truth(row) - TEST_GAP
            means[GRID.index({path: row[path] for path in GRID[0]})] += (
                row["test_objective_low"] <= true <= row["test_objective_high"]
            )
        covered = []
        for each in study.findings.effects:
            best, worst = (
                np.mean([truth(params) for params in GRID if params[each.factor.path] == mean.level])
                for mean in (each.effect.best, each.effect.worst)
            )
            covered.append(abs(each.effect.difference - (best - worst)) <= each.effect.half_width)
        assert len(covered) == 2
        effects += all(covered)
        if seed % 20 == 0:
            order.append(study.importance()["factor"].tolist() == ["style_dim", "beta"])
    assert all(agrees(hits, count, 0.92, 0.98) for hits in means)
    assert agrees(means.sum(), count * len(means), 0.92, 0.98)
    assert agrees(effects, count, 0.92, 0.98)
    assert np.mean(order) > 0.9


def test_factors_that_do_not_interact_are_drawn_parallel_though_a_config_is_lacking(tmp_path):
    configs = grid(model__style_dim=(0, 16), objective__beta=(1.0, 5.0), model__width=(0.5, 1.0))
    gains = {"model.style_dim": (0, 0.3), "objective.beta": (1.0, 0.2), "model.width": (0.5, 0.1)}

    def additive(params):
        return 0.3 + sum(gain for path, (level, gain) in gains.items() if params[path] == level)

    def state(config, replicate):
        return "DIVERGED" if config == len(configs) - 1 else "COMPLETE"

    run = write_study(tmp_path / "run", configs, additive, state=state, **SMALL | {"noise": 1e-9})
    crossing = load(run).findings.crossing
    assert {crossing.along.name, crossing.lines.name} == {"style_dim", "beta"}
    means = [[crossing.means[x, y].value for y in crossing.lines.levels] for x in crossing.along.levels]
    assert np.diff(np.diff(means), axis=0) == pytest.approx(0, abs=1e-6)
    assert all(config.params["model.width"] == 0.5 for group in crossing.configs.values() for config in group)


def test_factors_whose_levels_share_no_setting_of_the_others_are_not_drawn_together(tmp_path):
    configs = grid(model__style_dim=(0, 16), objective__beta=(1.0, 5.0), model__width=(0.5, 1.0, 2.0))
    lacking = [(0, 1.0, 0.5), (0, 5.0, 1.0), (16, 1.0, 2.0)]
    configs = [params for params in configs if (*params.values(),) not in lacking]

    def additive(params):
        return 0.5 - 0.1 * (params["model.style_dim"] > 0) - 0.05 * (params["objective.beta"] > 1)

    findings = load(write_study(tmp_path / "run", configs, additive, **SMALL)).findings
    assert findings.crossing is None


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("space", ["grid", "sampled"])
def test_where_nothing_matters_hardly_anything_is_called_significant(tmp_path, space, count):
    effects, ties = 0, 0
    for seed in range(count):
        configs = GRID if space == "grid" else drawn(np.random.default_rng(seed))
        asked = None if space == "grid" else {"sampler": "random", "domains": DOMAINS}
        study = load(write_study(tmp_path / str(seed), configs, null, seed=seed, study=asked, **SMALL))
        p_values = [*study.effects()["p_value"]]
        p_values += [] if space == "grid" else [*study.correlations()["p_value"]]
        effects += min(p_values) < 0.05
        ties += not study.configs["tied_with_best"][1:].all()
    assert agrees(effects, count, 0.0, 0.06)
    assert agrees(ties, count, 0.0, 0.06)
