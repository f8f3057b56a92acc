"""A saved model ..."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmjsd.model import WEIGHTS_FILE, load, save
from tests.conftest import seeded
from tests.test_model import NAMES, build, every_objective, some_data


@every_objective
@torch.no_grad()
def test_is_loaded_with_the_same_outputs(tmp_path, name):
    sizes = {"mnist": 1, "svhn": 3, "text": 0}
    model = build(style_dim=sizes, name=name, weights=(0.4, 0.3, 0.2, 0.1), beta=1.3)
    save(model, tmp_path)
    loaded, x = load(tmp_path), some_data()
    assert not loaded.training
    assert (loaded.specs, loaded.config, loaded.objective) == (model.specs, model.config, model.objective)
    expected = model.posteriors(x)
    for each, posterior in loaded.posteriors(x).items():
        assert torch.equal(posterior.content.mu, expected[each].content.mu)
        assert torch.equal(posterior.style.logvar, expected[each].style.logvar)
    generated = [each.generate(x, generator=seeded()) for each in (model, loaded)]
    assert all(torch.equal(generated[0][each], generated[1][each]) for each in NAMES)


def test_is_one_file_that_replaces_an_older_one(tmp_path):
    save(build(content_dim=2), tmp_path)
    save(build(content_dim=3), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS_FILE]
    assert load(str(tmp_path)).config.content_dim == 3


def test_is_missed_by_name(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no model: expected the file {WEIGHTS_FILE}"):
        load(tmp_path)


def test_is_the_newest_of_a_trials_folder(tmp_path):
    for content_dim, name in enumerate(("epoch-000001", "epoch-000002", "epoch-000002_000003"), start=2):
        (tmp_path / name).mkdir()
        save(build(content_dim=content_dim), tmp_path / name)
    (tmp_path / "epoch-000003").mkdir()  # not whole yet
    assert load(tmp_path).config.content_dim == 4
    assert load(tmp_path / "epoch-000001").config.content_dim == 2


def test_of_modalities_that_this_program_lacks_says_which(tmp_path):
    change(tmp_path, "modalities", name="wave")
    with pytest.raises(
        ValueError, match=r"another version: modality 'wave' has no entry in NETWORKS of .*py"
    ):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 200, 0.5, -1])
def test_is_refused_by_name_when_truncated(tmp_path, keep):
    save(build(), tmp_path)
    file = tmp_path / WEIGHTS_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else keep])
    with pytest.raises(ValueError, match=f"{file} is damaged or of another version"):
        load(tmp_path)


def foreign(tmp_path, **metadata) -> None:
    save_file({"layer.weight": torch.zeros(2, 2)}, tmp_path / WEIGHTS_FILE, metadata=metadata or None)


def change(tmp_path, section, **fields) -> None:
    """Save a model, and edit what the file says about it."""
    model = build()
    save(model, tmp_path)
    description = {
        "modalities": [dataclasses.asdict(spec) for spec in model.specs],
        "model": dataclasses.asdict(model.config),
        "objective": dataclasses.asdict(model.objective),
    }
    edited = description[section][0] if section == "modalities" else description[section]
    edited.update(fields)
    metadata = {key: json.dumps(value) for key, value in description.items()}
    save_file(load_file(tmp_path / WEIGHTS_FILE), tmp_path / WEIGHTS_FILE, metadata=metadata)


@pytest.mark.parametrize(
    "write",
    [
        lambda tmp_path: (tmp_path / WEIGHTS_FILE).write_bytes(b"\x80\x02}q\x00." * 100),
        lambda tmp_path: torch.save({"layer.weight": torch.zeros(2)}, tmp_path / WEIGHTS_FILE),
        foreign,
        lambda tmp_path: foreign(tmp_path, format="pt"),
        lambda tmp_path: foreign(tmp_path, modalities="[]", model="{}", objective="{}"),
        lambda tmp_path: foreign(tmp_path, modalities="[]", model="{}", objective='{"weights": [1, 0]}'),
        lambda tmp_path: change(tmp_path, "model", content_dim=5),
        lambda tmp_path: change(tmp_path, "model", content_dim=0),
        lambda tmp_path: change(tmp_path, "model", depth=2),
        lambda tmp_path: change(tmp_path, "model", style_dim={"svhn": 1}),
        lambda tmp_path: change(tmp_path, "objective", name="elbo"),
        lambda tmp_path: change(tmp_path, "objective", weights=None),
        lambda tmp_path: change(tmp_path, "modalities", name="sound"),
        lambda tmp_path: change(tmp_path, "modalities", shape=None),
    ],
)
def test_is_refused_by_name_when_foreign(tmp_path, write):
    write(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path / WEIGHTS_FILE} is damaged or of another version"):
        load(tmp_path)


def test_is_read_back_where_nothing_was_changed(tmp_path):
    change(tmp_path, "model")
    assert load(tmp_path).modalities == NAMES


def test_that_others_may_not_read_is_named(tmp_path, monkeypatch):
    save(build(), tmp_path)
    other = tmp_path / "other"
    other.touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == other.stat().st_mode

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mmjsd.tensors.safe_open", refuse)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read: .*Permission denied"):
        load(tmp_path)
