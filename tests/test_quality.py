"""Precision, recall and Fréchet distance of distributions for which the answer is known."""

import numpy as np
import pytest
import torch
from scipy import linalg
from torchmetrics.image.fid import FrechetInceptionDistance

from mmjsd.quality import NormalFit, _from_shares, frechet_distance, precision_recall


def blobs(modes, size=1_000, seed=0) -> np.ndarray:
    """Equal shares of tight clusters, far from one another, in eight dimensions."""
    rng = np.random.default_rng(seed)
    centres = 100 * np.random.default_rng(7).standard_normal((40, 8))
    return centres[np.resize(modes, size)] + 0.1 * rng.standard_normal((size, 8))


TEN = list(range(10))


# Precision and recall ...


def test_are_one_for_samples_of_the_same_distribution():
    found = precision_recall(blobs(TEN), blobs(TEN, seed=1))
    assert found.precision == pytest.approx(1, abs=0.01)
    assert found.recall == pytest.approx(1, abs=0.01)


def test_are_zero_for_samples_of_distributions_apart():
    found = precision_recall(blobs(TEN[:5]), blobs(TEN[5:]))
    assert (found.precision, found.recall, found.mean) == (0, 0, 0)


def test_see_missing_modes_as_lost_recall():
    found = precision_recall(blobs(TEN), blobs(TEN[:4]))
    assert found.precision > 0.95
    assert found.recall == pytest.approx(0.4, abs=0.02)


def test_see_outliers_as_lost_precision():
    found = precision_recall(blobs(TEN[:4]), blobs(TEN))
    assert found.precision == pytest.approx(0.4, abs=0.02)
    assert found.recall > 0.95


def test_trade_places_with_real_and_generated():
    p, q = np.random.default_rng(0).dirichlet(np.ones(20), 2)
    precision, recall, mean = _from_shares(p, q)
    assert _from_shares(q, p) == pytest.approx((recall, precision, mean))


def test_repeat():
    real, generated = np.random.default_rng(0).standard_normal((2, 500, 6))
    assert precision_recall(real, generated) == precision_recall(real, generated)


@pytest.mark.parametrize("size", [2, 5])
def test_take_fewer_samples_than_clusters(size):
    real = blobs(TEN, size)
    assert precision_recall(real, real).precision == pytest.approx(1)


def test_match_numbers_worked_by_hand():
    # precision(lambda) is min(lambda / 2, 1), and F_b is largest at lambda = 2: (1 + b^2) / (1 + 2 b^2).
    precision, recall, _ = _from_shares(np.array([0.5, 0.5]), np.array([1.0, 0.0]))
    assert precision == pytest.approx(65 / 66, rel=1e-4)
    assert recall == pytest.approx(65 / 129, rel=1e-4)


def test_match_the_definition_of_the_f_score_on_the_curve():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(20), 2)
    slopes = np.tan(np.linspace(1e-10, np.pi / 2 - 1e-10, 1001))
    precisions = np.array([np.minimum(slope * p, q).sum() for slope in slopes])
    recalls = np.array([np.minimum(p, q / slope).sum() for slope in slopes])

    def f_score(b):
        return ((1 + b**2) * precisions * recalls / (b**2 * precisions + recalls)).max()

    expected = f_score(1 / 8), f_score(8), (precisions.mean() + recalls.mean()) / 2
    assert _from_shares(p, q) == pytest.approx(expected)


def test_as_released_is_the_mean_height_of_both_curves():
    # For equal distributions min(tan, 1) over the angles: both curves have the mean
    # (log(2) / 2 + pi / 4) / (pi / 2) = 0.7206, where precision and recall are one.
    shares = np.array([0.2, 0.8])
    assert _from_shares(shares, shares) == pytest.approx((1, 1, 0.7206), abs=1e-3)


# The Fréchet distance ...


def normal_like(mean, covariance, size=400) -> NormalFit:
    """Features with exactly this mean and covariance."""
    noise = np.random.default_rng(0).standard_normal((size, len(mean)))
    noise -= noise.mean(0)
    white = noise @ linalg.inv(linalg.cholesky(np.cov(noise, rowvar=False)))
    return NormalFit(np.asarray(mean) + white @ linalg.cholesky(np.asarray(covariance)))


def test_is_zero_between_equals():
    real = normal_like([1.0, 2.0], [[2.0, 0.3], [0.3, 1.0]])
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_matches_numbers_worked_by_hand():
    # |(3, 4)|^2 = 25, and 1 + 4 - 2 * 2 = 1, 9 + 1 - 2 * 3 = 4 for the variances.
    real = normal_like([0.0, 0.0], np.diag([1.0, 9.0]))
    generated = normal_like([3.0, 4.0], np.diag([4.0, 1.0]))
    assert frechet_distance(real, generated) == pytest.approx(30)
    assert frechet_distance(generated, real) == pytest.approx(30)


def test_agrees_with_the_matrix_root_of_scipy():
    rng = np.random.default_rng(1)
    real, generated = (
        NormalFit(rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5))) for _ in range(2)
    )
    covariances = [np.cov(each.features, rowvar=False) for each in (real, generated)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(real.features.mean(0) - generated.features.mean(0)).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(real, generated) == pytest.approx(expected)


class AsTheyAre(torch.nn.Identity):
    """Gives torchmetrics what are features already."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features


@pytest.mark.parametrize(("size", "num_features"), [(300, 64), (40, 64), (500, 1)])
def test_agrees_with_torchmetrics(size, num_features):
    rng = np.random.default_rng(2)
    real, generated = rng.standard_normal((2, size, num_features)) @ rng.standard_normal(
        (2, num_features, num_features)
    )
    generated += rng.standard_normal(num_features)
    oracle = FrechetInceptionDistance(AsTheyAre(num_features)).set_dtype(torch.float64)
    oracle.update(torch.from_numpy(real), real=True)
    oracle.update(torch.from_numpy(generated), real=False)
    expected = float(oracle.compute())
    assert frechet_distance(NormalFit(real), NormalFit(generated)) == pytest.approx(expected, rel=1e-4)


def test_takes_more_features_than_samples():
    rng = np.random.default_rng(1)
    few = NormalFit(rng.standard_normal((10, 30)).astype(np.float32))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-3)
