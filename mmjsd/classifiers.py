"""The classifiers that judge what is generated: trained once per data set, on its training examples."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F

from mmjsd.data import Data, Examples, cache_dir
from mmjsd.networks import networks_of
from mmjsd.ranking import average_precision
from mmjsd.tensors import read_tensors, write_tensors

_VERSION = 4
"""Part of the cache's key; raise it when training or networks change."""


@dataclass(frozen=True)
class _Schedule:
    """How long and how fast a classifier is trained."""

    batch: int
    step_size: float
    """The largest; it rises to that and falls to zero."""

    num_samples: int


def _schedule(examples: Examples) -> _Schedule:
    count = len(examples.labels)
    if examples.labels.ndim == 1:
        return _Schedule(128, 2e-3, min(max(20 * count, 10_000), 60_000))
    return _Schedule(64, 5e-3, max(2 * count, 30_000))  # many attributes take many steps


@dataclass(frozen=True)
class Classifier:
    """One modality's classifier, in eval mode, and how good it is on the original test examples."""

    network: nn.Sequential
    quality: Mapping[str, tuple[float, float]]
    """The share of right classes and its standard error, under ""; of attributes the average precision of
    each, and under "" their mean."""

    num_samples: int

    @torch.no_grad()
    def features(self, values: Tensor) -> Tensor:
        """What the last layer sees of each image or text, `[batch, feature]`."""
        features: Tensor = self.network[:-1](values)
        return features

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """How likely each class or attribute is for each row of `features`, `[batch, output]`."""
        logits: Tensor = self.network[-1](features)
        return logits


def load_classifiers(
    data: Data, device: torch.device | str = "cpu", progress: Callable[[str], None] | None = None
) -> dict[str, Classifier]:
    """The data set's classifiers, from the cache or, the first time, trained.

    That takes a CPU core some ten seconds each, half a minute where they tell attributes.
    Cached under the hash of the data, so that other data never meet them. Safe when several
    processes ask at once: one trains, the others wait.
    """
    folder = cache_dir() / "classifiers" / f"{data.digest[:16]}-v{_VERSION}"
    result = {}
    for modality in data.spec.modalities:
        name = modality.name
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = networks_of(name).classifier(data.spec.num_outputs)
        network.to(device)
        network.to(memory_format=torch.channels_last)  # the layout in which convolutions are fastest
        file = folder / f"{name}.safetensors"
        result[name] = _load(network, file) or _make(network, file, data, name, progress)
        network.eval()
    return result


def _make(
    network: nn.Sequential, file: Path, data: Data, name: str, progress: Callable[[str], None] | None
) -> Classifier:
    """Train and keep a modality's classifier, unless another process has meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        found = _load(network, file)
        if found is None:
            if progress is not None:
                progress(f"training the classifier that judges generated {name} (once per data set)")
            train, test = (data.splits[split][name] for split in ("train", "test"))
            with _one_thread():
                _train(network, train)
                found = Classifier(network, _quality(network, test, data.spec.attributes), len(test.labels))
            _save(found, file)
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Whose sums are those of every machine, and which waits for no other on one that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(network: nn.Module, examples: Examples) -> None:
    """Adam on examples that a fixed seed draws, evenly from all classes if there are any."""
    generator, device = torch.Generator().manual_seed(0), next(network.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values, labels = torch.from_numpy(examples.values), torch.from_numpy(examples.labels)
        shares = torch.ones(len(labels), dtype=torch.float64)
        if labels.ndim == 1:
            shares = (1 / torch.bincount(labels).double())[labels.long()]
        plan = _schedule(examples)
        steps = plan.num_samples // plan.batch
        optimizer = torch.optim.Adam(network.parameters(), lr=plan.step_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=plan.step_size, total_steps=steps)
        network.train()
        for _ in range(steps):
            rows = torch.multinomial(shares, plan.batch, replacement=True, generator=generator)
            loss = _loss(network(_tensor(values[rows].to(device))), labels[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of classes, or of every attribute."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels.long())
    return F.binary_cross_entropy_with_logits(logits, labels.float())


@torch.no_grad()
def _quality(
    network: nn.Module, examples: Examples, attributes: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """As `Classifier.quality`; an attribute that no example or every one has is left out."""
    device = next(network.parameters()).device
    values, labels = torch.from_numpy(examples.values), torch.from_numpy(examples.labels)
    logits = torch.cat([network(_tensor(part.to(device))).cpu() for part in torch.split(values, 1000)])
    if not attributes:
        return {"": _mean((logits.argmax(-1) == labels).double())}
    columns = [column for column in range(len(attributes)) if 0 < int(labels[:, column].sum()) < len(labels)]
    worth = average_precision(logits[:, columns], labels[:, columns])
    each = {attributes[column]: _mean(part) for column, part in zip(columns, worth.T, strict=True)}
    return {"": _mean(worth.mean(1)), **each}


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean over samples and its standard error."""
    return float(values.mean()), float(values.std(correction=0)) / len(values) ** 0.5


def _tensor(values: Tensor) -> Tensor:
    """Bytes as the networks take them: images in [0, 1], text as indices."""
    return values.long() if values.ndim == 2 else values.float() / 255


def _save(classifier: Classifier, file: Path) -> None:
    metadata = {key: json.dumps(getattr(classifier, key)) for key in ("quality", "num_samples")}
    write_tensors(file, classifier.network.state_dict(), metadata)


def _load(network: nn.Sequential, file: Path) -> Classifier | None:
    """The cached classifier; none if there is none, or none that can be read."""
    try:
        tensors, told = read_tensors(file)
        metadata = {key: json.loads(text) for key, text in told.items()}
        network.load_state_dict(tensors)
        quality = {name: (value, error) for name, (value, error) in metadata["quality"].items()}
        return Classifier(network, quality, metadata["num_samples"])
    except (OSError, KeyError, AttributeError, RuntimeError, ValueError):
        return None
