"""Draws shared between posteriors: those that each would make alone, and nothing is computed twice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mmjsd.gaussian import Gaussian, Mixture
from mmjsd.model import subsets
from mmjsd.sharing import draw_together
from tests.conftest import TINY, seeded, some_data

NAMES = tuple(spec.name for spec in TINY[:3])
KINDS = ("product", "mixture")


@pytest.mark.parametrize(("objective", "distinct"), [("mmjsd", 7), ("mmvae", 7), ("mopoe", 7), ("mvae", 7)])
@torch.no_grad()
def test_are_those_of_each_posterior(tiny, objective, distinct):
    model = tiny(3, name=objective)
    batch, rng = 40, seeded(1)
    posteriors = model.posteriors(some_data(model, batch))
    joints = [
        model.joint({name: posteriors[name] for name in subset}, kind)
        for subset in subsets(NAMES)
        for kind in KINDS
    ]
    noise = torch.randn(batch, model.config.content_dim, generator=rng)
    choice = torch.rand(batch, generator=rng)
    shared = draw_together(joints, noise, choice)
    assert len(shared.contents) == distinct
    for joint, content in zip(joints, shared.content, strict=True):
        assert_close(content, joint.choose(choice).sample(noise))


def mixture(means, weights, groups, batch):
    mu = torch.tensor(means, dtype=torch.float64)[:, None, None].expand(-1, batch, 1)
    shares = torch.tensor(weights, dtype=torch.float64)[:, None].expand(-1, batch)
    return Mixture(Gaussian(mu, torch.zeros_like(mu)), shares / shares.sum(0), groups)


@given(
    batch=st.integers(1, 9),
    own=st.lists(st.sampled_from(("a", "b", "ab", "abc")), min_size=1, max_size=6),
    variants=st.lists(st.integers(0, 1), min_size=7, max_size=7),
    seed=st.integers(0, 99),
)
def test_what_is_computed_of_them_is_computed_once_for_each_sample_expert_and_variant(
    batch, own, variants, seed
):
    means = {"a": -5.0, "b": 3.0, "ab": 11.0, "abc": 20.0}
    joints = [mixture([means[name]], [1.0], (tuple(name),), batch) for name in own]
    joints.append(mixture([-5.0, 3.0], [0.3, 0.7], (("a",), ("b",)), batch))
    variant = torch.tensor(variants[: len(joints)])
    noise = torch.randn(batch, 1, generator=seeded(seed), dtype=torch.float64)
    choice = torch.rand(batch, generator=seeded(seed + 1))
    shared = draw_together(joints, noise, choice)
    seen = []

    def function(content, sample, which):
        assert 0 < len(content) <= batch
        seen.extend(zip(content[:, 0].tolist(), sample.tolist(), which.tolist(), strict=True))
        return {"sum": content[:, 0] + 100 * which + 1000 * sample}

    found = shared.compute(function, variant)["sum"]
    assert_close(found, shared.content[..., 0] + 100 * variant[:, None] + 1000 * torch.arange(batch))
    assert len(seen) == len(set(seen))
    wanted = zip(joints, variant.tolist(), strict=True)
    assert set(seen) == {
        (value, sample, which)
        for joint, which in wanted
        for sample, value in enumerate(joint.choose(choice).sample(noise)[:, 0].tolist())
    }
