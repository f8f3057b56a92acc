"""A pack: several models trained as one give the numbers of separate trainings."""

import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmjsd import pack
from mmjsd.config import ModelConfig, ObjectiveConfig, ObjectiveName, Precision, TrainingConfig
from mmjsd.data import DATASETS
from mmjsd.model import MultimodalVae
from mmjsd.networks import NETWORKS, Width
from mmjsd.train import DivergedError, Epoch, Member, fit, fit_pack, load_checkpoint, save_checkpoint
from tests.test_train import pairs

STEPS = 50
BATCH = 8

OBJECTIVES = {
    **{name: {"name": name} for name in get_args(ObjectiveName)},
    "mmjsd-product": {"fusion": "product"},
    "mmjsd-mixture-prior": {"dynamic_prior": "mixture", "prior_samples": 2},
    "mmvae-importance-weighted": {"name": "mmvae", "importance_samples": 3},
}

WEIGHTS = [(0.25, 0.25, 0.25, 0.25), (0.1, 0.2, 0.3, 0.4), (0.0, 0.5, 0.3, 0.2)]


def members(objective: dict, training: TrainingConfig, name: str = "digits", luck: int = 0) -> list[Member]:
    """Three trainings that differ in seed, weights and subspaces' sizes; the second in its step size, too."""
    made = []
    specs = DATASETS[name].modalities
    names = [spec.name for spec in specs]
    for seed in range(3):
        torch.manual_seed(luck + seed)
        own = ObjectiveConfig(
            beta=1 + seed,
            beta_style=2.5 - seed,
            weights=(*WEIGHTS[seed][: len(specs)], sum(WEIGHTS[seed][len(specs) :])),
            reconstruction_weights=dict(zip(names, (4 - seed, 1, 9), strict=False)),
            **objective,
        )
        styles = dict(zip(names, (seed, 2, 3 - seed), strict=False))
        model = MultimodalVae(specs, ModelConfig(content_dim=4, style_dim=styles, width=0.05), own)
        rate = replace(training, learning_rate=1e-3 * (1 + seed % 2))
        made.append(Member(model, rate, luck + seed))
    return made


def agree(
    objective: dict,
    count: int,
    tolerance: float,
    missing: float,
    of_parameters: float | None = None,
    luck: int = 0,
    precision: Precision = "float32",
    batch: int = BATCH,
) -> None:
    training = TrainingConfig(epochs=1, batch_size=batch, precision=precision)
    separate, packed = (members(objective, training, luck=luck)[-count:] for _ in range(2))
    data = pairs(missing)
    expected = [next(fit(each.model, data, STEPS * batch, each.training, each.seed)) for each in separate]
    (shown,) = fit_pack(packed, data, STEPS * batch)
    for own, wanted in zip(shown, expected, strict=True):
        assert isinstance(own, Epoch)
        assert_close(own.losses, wanted.losses, rtol=tolerance, atol=0)
    for one, other in zip(separate, packed, strict=True):
        for got, want in zip(other.model.parameters(), one.model.parameters(), strict=True):
            assert_close(got, want, rtol=tolerance, atol=of_parameters or tolerance)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_pack_gives_the_numbers_of_separate_trainings(objective, in_float64):
    agree(objective, 3, 1e-10, missing=0.3)


def test_a_pack_of_single_samples_gives_the_numbers_of_separate_trainings(in_float64):
    agree({}, 3, 1e-10, missing=0.3, batch=1)


def test_a_pack_whose_networks_run_one_by_one_gives_the_numbers_of_separate_trainings(
    in_float64, monkeypatch
):
    monkeypatch.setattr(pack, "_SMALL", 0)
    agree({}, 3, 1e-10, missing=0.3)


def test_on_a_cpu_small_networks_are_stacked_and_wide_ones_run_one_by_one():
    def is_stacked(network: str, objective: ObjectiveConfig) -> bool:
        specs = DATASETS["digits"].modalities
        models = [MultimodalVae(specs, ModelConfig(width=0.25), objective) for _ in range(2)]
        pack.Pack(models, batch_size=32)
        weights = [next(model.get_submodule(network).parameters()) for model in models]
        return len({weight.untyped_storage().data_ptr() for weight in weights}) == 1

    assert is_stacked("decoders.svhn", ObjectiveConfig())  # 15,563 weights x 32 rows
    assert not is_stacked("decoders.mnist", ObjectiveConfig())  # 81,684 weights x 32 rows
    assert not is_stacked("decoders.svhn", ObjectiveConfig(name="mmvae", importance_samples=3))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_in_float32_a_pack_and_separate_trainings_agree_as_far_as_rounding_lets_them(name):
    # Adam's first steps have the size of the step size, whatever a gradient that should be zero is.
    agree(OBJECTIVES[name], 2, 1e-5, missing=0.0, of_parameters=4e-3)


def test_in_float32_importance_weights_agree_where_subspaces_are_filled_up():
    agree(OBJECTIVES["mmvae-importance-weighted"], 3, 1e-5, 0.0, 0.05, luck=57)  # in float32: 3e-4


def test_in_bfloat16_a_pack_computes_as_separate_trainings_do():
    agree({}, 3, 1e-5, missing=0.0, of_parameters=4e-3, precision="bfloat16")


WARNED = pytest.mark.parametrize("is_warned", [False, True], ids=["after an epoch", "within an epoch"])


def goes_on(tmp_path: Path, is_warned: bool, device: str, tolerance: float) -> None:
    training = TrainingConfig(epochs=4, batch_size=BATCH)
    data = pairs(device=device)

    def fresh() -> list[Member]:
        first, other, alike = members({}, training)  # two of one step size, side by side, and one of another
        return [replace(each, model=each.model.to(device)) for each in (first, alike, other)]

    undisturbed = list(fit_pack(fresh(), data, 9 * BATCH))
    begun = fresh()
    run = fit_pack(begun, data, 9 * BATCH, iter([False] * 5 + [is_warned] * 99).__next__)
    for _ in range(2):  # nine steps are taken by twos, and asked about in between: four times an epoch
        places = next(run)
    paths = [
        save_checkpoint(member.model, place.state, tmp_path / str(member.seed), {})
        for member, place in zip(begun, places, strict=True)
    ]
    loaded = [load_checkpoint(path) for path in paths]
    assert {(state.epoch, state.step) for _, state in loaded} == {(1, 4) if is_warned else (2, 0)}
    resumed = [
        Member(model.to(device), member.training, member.seed, state)
        for member, (model, state) in zip(begun, loaded, strict=True)
    ]
    rest = list(fit_pack(resumed, data, 9 * BATCH))
    assert [epoch.number for epoch, *_ in rest] == ([2, 3, 4] if is_warned else [3, 4])
    for got, wanted in zip(rest, undisturbed[-len(rest) :], strict=True):
        for own, other in zip(got, wanted, strict=True):
            assert_close(own.losses, other.losses, rtol=tolerance, atol=0)
            assert own.wall_s > 0


@WARNED
def test_a_pack_goes_on_where_it_was_stopped(tmp_path, is_warned):
    goes_on(tmp_path, is_warned, "cpu", tolerance=0)


@pytest.mark.gpu
@WARNED
def test_on_a_gpu_a_pack_goes_on_where_it_was_stopped(tmp_path, is_warned):
    goes_on(tmp_path, is_warned, "cuda", tolerance=5e-3)


def test_models_that_were_in_another_pack_keep_their_own_moments(monkeypatch):
    training = TrainingConfig(epochs=1, batch_size=BATCH)
    made = members({}, training)[::2]  # of one step size
    list(fit_pack(made, pairs(), BATCH))  # on stacked parameters, which stay where they are
    monkeypatch.setattr(pack, "_SMALL", 0)
    (shown,) = fit_pack(made, pairs(), BATCH)
    for member, epoch in zip(made, shown, strict=True):
        for index, parameter in enumerate(member.model.parameters()):
            assert epoch.state.tensors[f"{index}.exp_avg"].shape == parameter.shape


def test_what_is_done_at_a_warning_is_no_time_of_training():
    training = TrainingConfig(epochs=1, batch_size=BATCH)
    run = fit_pack(members({}, training)[:1], pairs(), 9 * BATCH, iter([True]).__next__)
    (place,) = next(run)
    warned = time.perf_counter()
    time.sleep(0.1)
    (epoch,) = next(run)
    assert 0 < epoch.wall_s - place.state.wall_s < time.perf_counter() - warned - 0.1


def test_one_that_diverges_leaves_the_others_alone():
    training = TrainingConfig(epochs=3, batch_size=BATCH)
    healthy = [epochs[0] for epochs in fit_pack(members({}, training)[:2], pairs(), 5 * BATCH)]
    first, second, _ = members({}, training)
    wild = replace(second, training=replace(second.training, learning_rate=1e8))
    shown = list(fit_pack([first, wild], pairs(), 5 * BATCH))
    assert isinstance(shown[-1][1], DivergedError)
    assert "loss is" in str(shown[-1][1])
    for (own, _), wanted in zip(shown, healthy, strict=True):
        assert_close(own.losses, wanted.losses)


def test_one_that_diverges_leaves_those_alone_that_share_its_optimiser():
    training = TrainingConfig(epochs=3, batch_size=BATCH)
    healthy = [epochs[0] for epochs in fit_pack(members({}, training)[::2], pairs(), 5 * BATCH)]
    first, broken = members({}, training)[::2]
    assert first.training.learning_rate == broken.training.learning_rate
    torch.nn.init.constant_(next(broken.model.parameters()), torch.nan)
    shown = list(fit_pack([first, broken], pairs(), 5 * BATCH))
    assert all(isinstance(other, DivergedError) for _, other in shown)
    for (own, _), wanted in zip(shown, healthy, strict=True):
        assert_close(own.losses, wanted.losses)


def test_what_does_not_fit_together_is_refused():
    training = TrainingConfig(epochs=1, batch_size=BATCH)
    first, second, _ = members({}, training)
    other = members({"name": "mvae"}, training)[0]
    with pytest.raises(ValueError, match="agree in all sizes but subspaces' and in the kind of objective"):
        next(fit_pack([first, other], pairs(), BATCH))
    larger = replace(second, training=replace(second.training, batch_size=16))
    with pytest.raises(ValueError, match="differ in learning_rate and seed alone"):
        next(fit_pack([first, larger], pairs(), BATCH))
    config = replace(first.model.config, content_dim=5)
    wider = MultimodalVae(DATASETS["digits"].modalities, config, ObjectiveConfig())
    with pytest.raises(ValueError, match="agree in all sizes but subspaces'"):
        next(fit_pack([first, replace(second, model=wider)], pairs(), BATCH))


def pack_agrees(objective: dict, name: str, device: str) -> None:
    training = TrainingConfig(epochs=1, batch_size=BATCH)
    made = [members(objective, training, name)[:2] for _ in range(2)]
    separate, packed = ([replace(one, model=one.model.to(device)) for one in each] for each in made)
    data = pairs(name=name, device=device)
    expected = [next(fit(each.model, data, 20 * BATCH, each.training, each.seed)) for each in separate]
    (shown,) = fit_pack(packed, data, 20 * BATCH)
    for own, wanted in zip(shown, expected, strict=True):
        assert_close(own.losses, wanted.losses, rtol=5e-3, atol=0)


def test_a_pack_of_residual_networks_trains_as_each_by_itself():
    pack_agrees({}, "faces", "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_on_a_gpu_recorded_steps_agree_up_to_the_rounding_of_its_convolutions(objective):
    pack_agrees(objective, "digits", "cuda")


@pytest.mark.gpu
def test_on_a_gpu_a_pack_of_residual_networks_trains_as_each_by_itself():
    pack_agrees({}, "faces", "cuda")


# Networks of one's own ...

MNIST = NETWORKS["mnist"]


class Own(nn.Module):
    """A decoder, or an encoder, that is no sequence of layers."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x)


class OwnSequence(nn.Sequential):
    """Layers with arguments of its own, so that parts of it cannot be taken."""

    def __init__(self, latent: int, width: Width) -> None:
        super().__init__(*MNIST.decoder(latent, width))


OWN = {
    "a decoder of one's own": {"decoder": lambda *sizes: Own(MNIST.decoder(*sizes))},
    "a sequence of one's own": {"decoder": OwnSequence},
    "a decoder that begins with a norm": {
        "decoder": lambda *sizes: nn.Sequential(nn.LayerNorm(sizes[0]), *MNIST.decoder(*sizes))
    },
    "batch norms": {
        "encoder": lambda width: nn.Sequential(*MNIST.encoder(width), nn.BatchNorm1d(width(400)))
    },
    "no parameters": {"encoder": lambda _: nn.Flatten(), "num_features": lambda _: 784},
}


@pytest.mark.parametrize("networks", OWN.values(), ids=OWN)
def test_train_in_a_pack_as_each_by_itself(networks, in_float64, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mnist", replace(MNIST, **networks))
    agree({}, 2, 1e-10, missing=0.0, of_parameters=1e-6)


def test_with_dropout_train_in_a_pack():
    dropping = [nn.Sequential(nn.Linear(2, 500), nn.Dropout()) for _ in range(2)]
    first, second = pack._side_by_side(dropping, limit=10_000)(torch.ones(2, 3, 2)) == 0
    assert 0.4 < first.double().mean() < 0.6
    assert not torch.equal(first, second)
