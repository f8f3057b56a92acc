"""Average precision against scikit-learn, its standard error against derivatives and resampling."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.metrics import average_precision_score

from mmjsd.ranking import average_precision


@st.composite
def rankings(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with ties and attributes, each of which some sample has: `[sample, attribute]` both."""
    samples, attributes = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scores = torch.randint(draw(st.integers(1, 40)), (samples, attributes), generator=rng).double()
    truth = torch.randint(2, (samples, attributes), generator=rng)
    truth[torch.randint(samples, (attributes,), generator=rng), torch.arange(attributes)] = 1
    return scores, truth


def reference(scores, truth, weights=None) -> list[float]:
    return [
        average_precision_score(*each, sample_weight=weights)
        for each in zip(truth.numpy().T, scores.numpy().T, strict=True)
    ]


# The average precision ...


@given(rankings())
def test_is_scikit_learns(ranking):
    assert_allclose(average_precision(*ranking).mean(0).numpy(), reference(*ranking), atol=1e-12)


@given(rankings(), st.integers(0, 29))
def test_changes_with_a_samples_weight_as_its_value_says(ranking, index):
    scores, truth = ranking
    count, step = len(scores), 1e-6
    values = average_precision(scores, truth).numpy()
    index %= count
    changed = [
        reference(scores, truth, np.ones(count) + sign * step * np.eye(count)[index]) for sign in (1, -1)
    ]
    slope = (np.array(changed[0]) - changed[1]) / (2 * step)
    assert_allclose((values[index] - values.mean(0)) / count, slope, atol=1e-7)


@given(rankings(), st.randoms())
def test_belongs_to_samples_whatever_their_order(ranking, random):
    scores, truth = ranking
    order = random.sample(range(len(scores)), len(scores))
    again, values = average_precision(scores[order], truth[order]), average_precision(scores, truth)[order]
    assert_allclose(again.numpy(), values.numpy(), atol=1e-12)


def test_matches_numbers_worked_by_hand():
    # Thresholds 3, 2 and 1 find 1 of 1, then 2 of 3, then all 3 of 4: (1 + 2/3 + 3/4) / 3.
    scores, truth = torch.tensor([[2.0, 3, 2, 1]]).T, torch.tensor([[0, 1, 1, 1]]).T
    assert float(average_precision(scores, truth).mean()) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_has_the_standard_error_that_resampling_finds():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=500)
    truth = (rng.random(500) < 1 / (1 + np.exp(1.5 - 2 * scores))).astype(int)
    values = average_precision(torch.from_numpy(scores)[:, None], torch.from_numpy(truth)[:, None])
    resampled = [
        average_precision_score(truth[rows], scores[rows]) for rows in rng.integers(500, size=(400, 500))
    ]
    assert float(values.std()) / 500**0.5 == pytest.approx(np.std(resampled), rel=0.1)
