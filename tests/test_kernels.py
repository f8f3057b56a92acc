"""What a pack computes by other kernels on a GPU is what each model computes by itself."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mmjsd import kernels
from mmjsd.data import ALPHABET, DATASETS
from mmjsd.kernels import GpuKernels, at_once
from mmjsd.networks import NETWORKS, Width, _ToPixels
from mmjsd.pack import _Stacked

SPECS = {
    spec.name: spec for name in ("digits", "faces", "polydigits-2") for spec in DATASETS[name].modalities
}
LATENT = 6
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, _ToPixels)


def network(name: str, part: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    width = Width(0.06)
    made = NETWORKS[name].encoder(width) if part == "encoder" else NETWORKS[name].decoder(LATENT, width)
    return made.to(torch.float64, memory_format=torch.channels_last)


def inputs(name: str, part: str) -> torch.Tensor:
    """Of three models, four samples each."""
    if part == "decoder":
        return torch.randn(3, 4, LATENT, dtype=torch.float64, requires_grad=True)
    if SPECS[name].kind == "text":
        return torch.randint(0, len(ALPHABET), (3, 4, *SPECS[name].shape))
    return torch.rand(3, 4, *SPECS[name].shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("apart", [True, False], ids=["as on a GPU", "as on a CPU"])
def test_models_side_by_side_compute_what_each_computes_alone(monkeypatch, name, part, apart):
    together, alone = ([network(name, part, seed) for seed in range(3)] for _ in range(2))
    x = inputs(name, part)
    stacked = _Stacked(together)
    slabs = stacked.slabs(slice(0, 3))
    works = []
    monkeypatch.setattr(
        kernels, "at_once", lambda device, given: works.extend(given) or at_once(device, given)
    )
    with GpuKernels() if apart else nullcontext():
        got = stacked(x)
    assert (len(works) > 0) == (apart and any(type(layer) in CONVOLUTIONS for layer in together[0].modules()))
    wanted = torch.stack([one(own) for one, own in zip(alone, x, strict=True)])
    assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    got.square().sum().backward()
    stacked.hand_out_gradients()
    of_x = x.grad
    x.grad = None
    wanted.square().sum().backward()
    if x.requires_grad:
        assert_close(of_x, x.grad, rtol=1e-8, atol=1e-8)
    for number, other in enumerate(alone):
        for slab, theirs in zip(slabs, other.parameters(), strict=True):
            assert slab.grad is not None
            assert_close(slab.grad[number], theirs.grad, rtol=1e-8, atol=1e-8)


def test_under_autocast_they_compute_in_its_type():
    together = [network("svhn", "decoder", seed).float() for seed in range(3)]
    x = inputs("svhn", "decoder").float()
    with torch.autocast("cpu", torch.bfloat16), GpuKernels():
        got = _Stacked(together)(x)
    assert got.dtype == torch.bfloat16
    exact = torch.stack([one(own) for one, own in zip(together, x, strict=True)])
    assert_close(got.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_sizes_may_be_given_once_for_all_axes(dims, is_transposed):
    convolve = getattr(F, f"conv{'_transpose' * is_transposed}{dims}d")
    x, weight = torch.rand(3, 2, 4, *[9] * dims), torch.rand(3, 4, 4, *[3] * dims)

    def one(x, weight):
        return convolve(x, weight, stride=2, padding=1)

    with GpuKernels():
        got = torch.vmap(one)(x, weight)
    assert_close(got, torch.stack([one(*own) for own in zip(x, weight, strict=True)]))


@pytest.mark.parametrize("num_groups", [1, 2])
def test_a_group_norm_keeps_the_layout_of_its_images(num_groups):
    norms = [nn.GroupNorm(num_groups, 4) for _ in range(3)]
    for seed, norm in enumerate(norms):
        torch.manual_seed(seed)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.rand(3, 2, 5, 5, 4).movedim(-1, 2)
    with GpuKernels():
        got = _Stacked(norms)(x)
    assert_close(got, torch.stack([norm(own) for norm, own in zip(norms, x, strict=True)]))
    assert num_groups > 1 or got.stride() == x.stride()


def test_pieces_of_work_return_in_their_order():
    assert at_once(torch.device("cpu"), [lambda: 1, lambda: 2, lambda: 3]) == [1, 2, 3]
