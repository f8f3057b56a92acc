"""Leaks of the class into subspaces: what no guess explains is told, and what a guess explains is not."""

from math import sqrt
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import api, leaks
from analysis.estimates import estimate_mean_of_configs, pool
from analysis.leaks import leak_sentences
from analysis.results import Quantity
from tests import synthetic
from tests.reports import SUBSPACES, report, shortcut
from tests.synthetic import grid, write_study


def verdict(run):
    study = api.load(run)
    return leak_sentences(study.findings, study.leakage)[0].partition("Chance is 0.100")[2]


@pytest.mark.parametrize("replicates", [1, 2])
def test_what_no_guess_reaches_leaks_with_replicates_and_without(tmp_path, replicates):
    def leaking(params, rng):
        return {("style_probe_accuracy", "", "", name): 0.93 for name in synthetic.MODALITIES}

    run = write_study(tmp_path / "run", SUBSPACES, shortcut, replicates=replicates, tested=leaking)
    assert "Chance is 0.100: the class leaks into the subspace of mnist, svhn, text." in report(run).text


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (
            {
                "mnist": (0.10, 0.15, 0.20, 0.10, 0.14, 0.25, 0.10, 0.24, 0.40),
                "svhn": (0.09, 0.10, 0.10, 0.12, 0.11, 0.11, 0.11, 0.12, 0.12),
                "text": (0.12, 0.13, 0.13, 0.13, 0.15, 0.16, 0.10, 0.10, 0.10),
            },
            ": **the class leaks into the subspace of `mnist`, `text`**.",
        ),
        ({"mnist": (0.55, 0.80)}, ": **the class leaks into the subspace of `mnist`**."),
        (
            {"mnist": (0.10, 0.30), "svhn": (0.10, 0.10), "text": (0.122, 0.123)},
            ": **the class leaks into the subspace of `mnist`**; "
            "whether more than luck is undecided for `text`.",
        ),
        ({"mnist": (0.117,), "svhn": (0.11,)}, ": **no leak shows**."),
        ({"mnist": (0.117,), "svhn": (0.13,)}, ": **the class leaks into the subspace of `svhn`**."),
    ],
)
def test_seeds_that_leak_by_different_amounts_hide_no_leak(tmp_path, scores, told):
    """A guess exceeds chance by up to 2.13 standard errors of 0.01 in the mean, and 2.9 in a trial."""
    count = len(scores["mnist"])
    configs, replicates = SUBSPACES[: max(1, count // 3)], min(count, 3)
    rows = iter(zip(*scores.values(), strict=True))

    def tested(params, rng):
        return {
            ("style_probe_accuracy", "", "", name): value
            for name, value in zip(scores, next(rows), strict=True)
        }

    run = write_study(
        tmp_path / "run", configs, shortcut, replicates=replicates, tested=tested, modalities=tuple(scores)
    )
    assert verdict(run) == told


@pytest.mark.parametrize("seeds_agree", [True, False])
def test_subspaces_that_know_nothing_are_called_a_leak_in_one_of_twenty_studies_at_most(seeds_agree):
    """Three of 3 configs x 3 seeds: each at one share in all trials, as collapsed ones, or guessing anew."""
    rng, called = np.random.default_rng(0), 0
    quantity = Quantity("style_probe_accuracy", target="mnist")
    for _ in range(400):
        shares = rng.normal(0.1, 0.01, (3, 1 if seeds_agree else 9)).repeat(9 if seeds_agree else 1, axis=1)
        found = [_null(quantity, row) for row in shares]
        called += "leaks" in leaks._verdict(found, 0.1, "the class")
    assert called / 400 < 0.05 + 2 * sqrt(0.05 * 0.95 / 400)


def _null(quantity, values):
    rows = pd.DataFrame([quantity._asdict() | {"value": each, "standard_error": 0.01} for each in values])
    luck, is_no_guess = leaks._luck(SimpleNamespace(measurements=rows, chance=0.1), quantity, 3)
    groups = values.reshape(3, 3).tolist()
    mean = estimate_mean_of_configs(groups, pool(groups), 3)
    return leaks.Leak("mnist", mean, luck, is_no_guess, 3, {})


@pytest.mark.parametrize(
    ("replicates", "told"), [(1, "Intervals would need replicates."), (2, "Bars: 95 % intervals.")]
)
def test_caption_of_the_figure_says_what_its_bars_are(tmp_path, replicates, told):
    def leaking(params, rng):
        shares = 0.9 + 0.01 * rng.standard_normal(3)
        return {
            ("style_probe_accuracy", "", "", name): float(share)
            for name, share in zip(synthetic.MODALITIES, shares, strict=True)
        }

    run = write_study(tmp_path, SUBSPACES, shortcut, replicates=replicates, tested=leaking)
    drawing = api.load(run).leak_drawing
    assert drawing.title == "How much of the class leaks into the subspaces"
    assert f"test split. {told} Dashed: a guess." in drawing.caption


def test_what_the_shared_pairs_do_to_a_guess_is_no_leak(tmp_path):
    """A subspace that names the same class for all reaches the same in every trial, above chance or below."""

    def collapsed(params, rng):
        return {("style_probe_accuracy", "", "", name): 0.103 for name in synthetic.MODALITIES}

    run = write_study(tmp_path / "run", SUBSPACES, shortcut, tested=collapsed)
    assert "Chance is 0.100: no leak shows." in report(run).text


def test_leaks_of_all_modalities_are_told_apart_from_noise_together(tmp_path):
    def guessing(params, rng):
        values = 0.1 + 0.01 * rng.standard_normal(3)
        return {
            ("style_probe_accuracy", "", "", name): float(value)
            for name, value in zip(synthetic.MODALITIES, values, strict=True)
        }

    study = api.load(write_study(tmp_path / "run", SUBSPACES, shortcut, tested=guessing))
    for each in study.leakage:
        quantile = stats.t.isf(0.05 / 2 / 3, len(SUBSPACES))
        assert each.mean.half_width == pytest.approx(quantile * each.mean.standard_error)


def test_how_many_configs_measured_a_leak_is_told_as_a_range_where_modalities_differ(tmp_path):
    def tested(params, rng):
        some = ("mnist",) if params["model.style_dim"] == 4 else ("mnist", "svhn")
        return {("style_probe_accuracy", "", "", name): 0.5 for name in some}

    configs = grid(model__style_dim=(4, 8), objective__beta=(0.5, 2.5))
    study = api.load(write_study(tmp_path / "run", configs, lambda params: 0.5, tested=tested))
    assert "mean over 2 to 4 configs" in leak_sentences(study.findings, study.leakage)[0]
