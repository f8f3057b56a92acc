"""Inception's features: those of torchvision's network, its weights found, verified or asked for."""

import hashlib
import socket
from urllib.error import URLError

import pytest
import torch
from torchvision.models import inception_v3
from torchvision.transforms import functional as transforms

from mmjsd import inception
from mmjsd.data import DataError
from mmjsd.inception import Inception, find_weights


@pytest.fixture(scope="module")
def network():
    """Inception with random weights and, from a few images, the statistics by which it normalises.

    Without these every layer would shrink what tells images apart, until rounding hides it.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made = inception_v3(weights=None, init_weights=False, transform_input=True)
        for layer in made.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        made.train()(torch.randn(4, 3, 299, 299))
        return made.eval()


@pytest.fixture(scope="module")
def stored(network, tmp_path_factory):
    """A folder with the weights under a name that holds their hash, and that name."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(network.state_dict(), folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    return (folder / "weights.pth").rename(folder / f"inception_v3-{digest[:8]}.pth")


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path, request):
    """An empty cache of torch's, and no network."""

    def refuse(*arguments, **options):
        raise URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def named(monkeypatch, stored):
    monkeypatch.setattr(inception, "_url", lambda: f"https://example.org/models/{stored.name}")
    return stored


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_what_the_last_layer_of_torchvisions_network_sees(network, stored, channels):
    images = torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(1))
    seen = []
    hook = network.fc.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        grey_or_not = images.repeat(1, 3 // channels, 1, 1)
        resized = transforms.resize(grey_or_not, [299, 299], antialias=True)
        network(transforms.normalize(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    hook.remove()
    features = Inception(stored).features(images)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, seen[0])
    assert not torch.allclose(features[0], features[1])


def test_weights_are_found_in_the_folder_or_in_torchs_cache(named, hub, tmp_path):
    assert find_weights(named.parent) == named
    hub.mkdir(parents=True)
    (hub / named.name).symlink_to(named)
    assert find_weights(None) == find_weights(tmp_path) == hub / named.name


def test_weights_are_downloaded_where_they_are_missing(named, hub, monkeypatch):
    said = []
    monkeypatch.setattr(
        torch.hub,
        "download_url_to_file",
        lambda url, target, progress: (hub / named.name).symlink_to(named),
    )
    assert find_weights(None, said.append) == hub / named.name
    assert said == [f"downloading https://example.org/models/{named.name}"]


def test_weights_that_cannot_be_downloaded_are_asked_for_in_one_sentence(tmp_path):
    with pytest.raises(DataError) as refused:
        find_weights(tmp_path)
    sentence = str(refused.value)
    assert (
        "inception_v3_google-0cc3c7bd.pth (<urlopen error [Errno -2] Name or service not known>)" in sentence
    )
    assert "put that file into the folder of --data-dir" in sentence
    assert "\n" not in sentence


def test_damaged_weights_are_refused(named, tmp_path):
    (tmp_path / named.name).write_bytes(named.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"is damaged: its SHA-256 begins with \w{8}, not \w{8}; remove it"):
        find_weights(tmp_path)
