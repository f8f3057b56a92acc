"""The figure of coherence, and of a probe, against the number of given modalities, from known numbers."""

from itertools import combinations

import pytest

from analysis.api import load
from tests.synthetic import grid, write_study

MODALITIES = ("a", "b", "c")
GAIN = {"mmjsd": 0.1, "mopoe": 0.2}


def scores(params, rng):
    """Coherence given one modality is 0.2 or 0.4 by target, given two 0.6, the probe's 0.1 a modality."""
    gain, found = GAIN[params["objective.name"]] - params["model.style_dim"] / 100, {}
    for size in (1, 2, 3):
        for subset in combinations(MODALITIES, size):
            given = "+".join(subset)
            for posterior, loss in (("product", 0), ("mixture", 0.3)) if size > 1 else (("", 0),):
                found["probe_accuracy", posterior, given, ""] = size / 10 + gain - loss
                for target in set(MODALITIES) - set(subset):
                    level = 0.6 if size == 2 else {"a": 0.2, "b": 0.2, "c": 0.4}[target]
                    found["coherence", posterior, given, target] = level + gain - loss
                for target in subset:
                    found["coherence", posterior, given, target] = 0.9
    return found


def study(folder, configs, **kwargs):
    quality = {"mmjsd": 0.5, "mopoe": 0.6}
    return write_study(
        folder,
        configs,
        lambda params: quality[params["objective.name"]] - params["model.style_dim"] / 100,
        modalities=MODALITIES,
        noise=0.001,
        tested=scores,
        **kwargs,
    )


def test_shows_means_over_subsets_of_the_best_config_of_each_level(tmp_path):
    run = study(tmp_path, grid(objective__name=("mmjsd", "mopoe"), model__style_dim=(0, 4)))
    coherence = {1: (0.2 + 0.2 + 0.4) / 3, 2: 0.6}
    drawn = load(run).figure("given")
    assert "mmjsd (config 3), given 1: 0.367" in drawn.hints["hints-0"][0]
    found = [[float(text.split(": ")[1].split()[0]) for text in texts] for texts in drawn.hints.values()]
    for row, gain in zip(found[:2], (0.1, 0.2), strict=True):
        assert row == pytest.approx([coherence[1] + gain, coherence[2] + gain], abs=6e-4)
    for row, gain in zip(found[2:], (0.1, 0.2), strict=True):
        assert row == pytest.approx([0.1 + gain, 0.2 + gain, 0.3 + gain], abs=6e-4)
    assert "Bars: 95 % intervals. Dashed: a guess." in drawn.caption


def test_shows_the_best_config_alone_where_no_factor_has_levels(tmp_path):
    configs = [{"objective.name": "mopoe", "model.style_dim": size} for size in range(8)]
    domains = {"model.style_dim": {"type": "Uniform", "low": 0, "high": 8}}
    drawn = load(study(tmp_path, configs, study={"domains": domains})).figure("given")
    assert all(text.startswith("config 1, given ") for texts in drawn.hints.values() for text in texts)
    assert "A line for the best config. " in drawn.caption


def test_two_modalities_have_no_numbers_to_tell_apart(tmp_path):
    run = write_study(
        tmp_path, grid(objective__beta=(1.0, 2.0)), lambda params: 0.5, modalities=MODALITIES[:2]
    )
    with pytest.raises(ValueError, match="no figure 'given'"):
        load(run).figure("given")
