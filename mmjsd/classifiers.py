"""The classifiers that judge coherence: trained once per data set on its original training examples."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmjsd.data import Data, Examples, cache_dir
from mmjsd.networks import NETWORKS

_VERSION = 3
"""Part of the cache's key; raise it when training or networks change."""

_PASSES, _MIN_SAMPLES, _MAX_SAMPLES = 20, 10_000, 60_000
_BATCH = 128


@dataclass(frozen=True)
class Classifier:
    """One modality's classifier, in eval mode, and how good it is on the original test examples."""

    network: nn.Sequential
    accuracy: float
    num_samples: int

    @torch.no_grad()
    def features(self, values: Tensor) -> Tensor:
        """What the last layer sees of each image or text, `[batch, feature]`."""
        features: Tensor = self.network[:-1](values)
        return features

    @torch.no_grad()
    def classes(self, features: Tensor) -> Tensor:
        """The likeliest class for each row of `features`, `[batch]`."""
        likeliest: Tensor = self.network[-1](features).argmax(-1)
        return likeliest


def load_classifiers(
    data: Data, device: torch.device | str = "cpu", progress: Callable[[str], None] | None = None
) -> dict[str, Classifier]:
    """The data set's classifiers, from the cache or, the first time, trained: some ten seconds each.

    Cached under the hash of the data, so that other data never meet them. Safe when several
    processes ask at once: one trains, the others wait.
    """
    folder = cache_dir() / "classifiers" / f"{data.digest[:16]}-v{_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    result = {}
    for modality in data.spec.modalities:
        name = modality.name
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = NETWORKS[name].classifier(data.spec.num_classes)
        network.to(memory_format=torch.channels_last)  # the layout in which convolutions are fastest
        file = folder / f"{name}.safetensors"
        with FileLock(f"{file}.lock"):
            found = _load(network, file)
            if found is None:
                if progress is not None:
                    progress(f"training the {name} classifier that judges coherence (once per data set)")
                train, test = (data.splits[split][name] for split in ("train", "test"))
                _train(network, train)
                found = Classifier(network, _accuracy(network, test), len(test.labels))
                _save(found, file)
            result[name] = found
        network.to(device).eval()
    return result


def _train(network: nn.Module, examples: Examples) -> None:
    """Adam with a falling step size, on examples drawn evenly from all classes by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values, labels = torch.from_numpy(examples.values), torch.from_numpy(examples.labels).long()
        shares = (1 / torch.bincount(labels).double())[labels]
        steps = min(max(_PASSES * len(labels), _MIN_SAMPLES), _MAX_SAMPLES) // _BATCH
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
        network.train()
        for _ in range(steps):
            rows = torch.multinomial(shares, _BATCH, replacement=True, generator=generator)
            loss = F.cross_entropy(network(_tensor(values[rows])), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def _accuracy(network: nn.Module, examples: Examples) -> float:
    values, labels = torch.from_numpy(examples.values), torch.from_numpy(examples.labels)
    right = [
        (network(_tensor(part)).argmax(-1) == truth).float()
        for part, truth in zip(torch.split(values, 1000), torch.split(labels, 1000), strict=True)
    ]
    return float(torch.cat(right).mean())


def _tensor(values: Tensor) -> Tensor:
    """Bytes as the networks take them: images in [0, 1], text as indices."""
    return values.long() if values.ndim == 2 else values.float() / 255


def _save(classifier: Classifier, file: Path) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    metadata = {key: json.dumps(getattr(classifier, key)) for key in ("accuracy", "num_samples")}
    tensors = {name: tensor.contiguous() for name, tensor in classifier.network.state_dict().items()}
    save_file(tensors, temporary, metadata=metadata)
    os.replace(temporary, file)


def _load(network: nn.Sequential, file: Path) -> Classifier | None:
    """The cached classifier; none if there is none, or none that can be read."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = {key: json.loads(text) for key, text in opened.metadata().items()}
        network.load_state_dict(load_file(file))
        return Classifier(network, metadata["accuracy"], metadata["num_samples"])
    except (OSError, KeyError, AttributeError, RuntimeError, ValueError, safetensors.SafetensorError):
        return None
