"""Batches on the device: pairs of modalities drawn by class, and the share of one worker among several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch import distributed as dist

from mmjsd.data import Examples


@dataclass(frozen=True)
class Workers:
    """This process among those that train one model together; alone unless torch.distributed runs.

    Every worker draws the random numbers of the whole batch and works on its own rows, so that the
    number of workers changes no result beyond rounding.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> "Workers":
        """As torch.distributed knows it."""
        if dist.is_available() and dist.is_initialized():
            return Workers(dist.get_rank(), dist.get_world_size())
        return Workers()

    def rows(self, count: int) -> slice:
        """This worker's rows of a batch; all rows of all workers together are the batch, in order."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, values: Tensor) -> Tensor:
        """The rows of all workers, in order, on every worker."""
        if self.size == 1:
            return values
        counts: list[int | None] = [None] * self.size
        dist.all_gather_object(counts, len(values))
        lengths = [count or 0 for count in counts]
        padded = torch.zeros(max(lengths), *values.shape[1:], dtype=values.dtype, device=values.device)
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def mean(self, values: Tensor) -> Tensor:
        """The mean over workers of equal shares."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values = values / self.size
        return values


@dataclass(frozen=True)
class Batch:
    """Some samples of all modalities, on the device."""

    x: dict[str, Tensor]
    labels: Int[Tensor, "batch *attribute"]
    present: dict[str, Bool[Tensor, " batch"]] | None = None


class Pairs:
    """Samples of a split: a class, and for each modality an example of that class.

    Classes are equally likely, and so are the examples within a class: every example can occur, and
    with every example of the other modalities. Where examples have attributes in place of classes, a
    sample is a row of all modalities, and all rows are drawn before one is drawn again. Examples stay
    on the device as bytes.

    Args:
        examples: the split's examples by modality, sorted by class.
        device: where batches are wanted.
        missing: probability with which a modality of a sample is hidden; where chance would hide
            all of a sample's, one stays.
    """

    def __init__(
        self, examples: Mapping[str, Examples], device: torch.device | str = "cpu", missing: float = 0.0
    ) -> None:
        self.device = torch.device(device)
        self.missing = missing
        self.values = {name: torch.from_numpy(each.values).to(device) for name, each in examples.items()}
        self.num_examples = max(len(values) for values in self.values.values())
        labels = next(iter(examples.values())).labels
        self.attributes = torch.from_numpy(labels).to(device) if labels.ndim == 2 else None
        if self.attributes is not None:
            self.num_classes = 0
            return
        starts = {name: _class_starts(each.labels) for name, each in examples.items()}
        self._first = {name: torch.from_numpy(start[:-1]).to(device) for name, start in starts.items()}
        self._count = {name: torch.from_numpy(np.diff(start)).to(device) for name, start in starts.items()}
        self.num_classes = len(next(iter(self._first.values())))

    def draw(self, count: int, generator: torch.Generator) -> "PairedSamples":
        """`count` samples as indices; `generator` is of the device."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=self.device, dtype=torch.float64)

        if self.attributes is not None:
            rows = self._rows(count, generator)
            labels, indices = self.attributes[rows], dict.fromkeys(self.values, rows)
        else:
            labels = (uniform(count) * self.num_classes).long()
            indices = {
                name: self._first[name][labels] + (uniform(count) * self._count[name][labels]).long()
                for name in self.values
            }
        present = None
        if self.missing > 0:
            chance = uniform(count, len(self.values))
            stays = (chance >= self.missing) | (chance == chance.max(dim=1, keepdim=True).values)
            present = {name: stays[:, row] for row, name in enumerate(self.values)}
        return PairedSamples(self, labels, indices, present)

    def _rows(self, count: int, generator: torch.Generator) -> Int[Tensor, " sample"]:
        """Rows of all modalities in random order; once all have been drawn, in another."""
        orders = [
            torch.randperm(self.num_examples, generator=generator, device=self.device)
            for _ in range(-(-count // self.num_examples))
        ]
        return torch.cat(orders)[:count]


@dataclass(frozen=True)
class PairedSamples:
    """Drawn samples as indices; `batch` makes tensors of some of them."""

    pairs: Pairs
    labels: Int[Tensor, "sample *attribute"]
    """Classes, or attributes."""

    indices: dict[str, Int[Tensor, " sample"]]
    present: dict[str, Bool[Tensor, " sample"]] | None

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def concatenate(parts: "Sequence[PairedSamples]") -> "PairedSamples":
        """All samples of several draws from the same pairs, one after the other, in memory of their own."""
        first = parts[0]
        present = first.present and {
            name: torch.cat([part.present[name] for part in parts if part.present]) for name in first.present
        }
        indices = {name: torch.cat([part.indices[name] for part in parts]) for name in first.indices}
        return PairedSamples(first.pairs, torch.cat([part.labels for part in parts]), indices, present)

    def overwrite(self, other: "PairedSamples") -> None:
        """Take as many other samples into this one's memory, which a recorded computation reads."""
        self.labels.copy_(other.labels)
        for mine, theirs in ((self.indices, other.indices), (self.present or {}, other.present or {})):
            for name, values in mine.items():
                values.copy_(theirs[name])

    def batch(self, rows: slice | Int[Tensor, " row"]) -> Batch:
        """Images in [0, 1] in torch's default type, text as int64; a hidden modality's values are zero."""
        present = {name: here[rows] for name, here in self.present.items()} if self.present else None
        x = {name: self._values(name, rows, present) for name in self.indices}
        return Batch(x, self.labels[rows], present)

    def chunks(self, size: int, workers: Workers) -> list[slice]:
        """The rows of one worker's share, cut into parts of at most `size`; at least one, maybe empty."""
        share = workers.rows(len(self))
        starts = range(share.start, max(share.stop, share.start + 1), size)
        return [slice(start, min(start + size, share.stop)) for start in starts]

    def _values(self, name: str, rows: slice | Tensor, present: Mapping[str, Tensor] | None) -> Tensor:
        values = self.pairs.values[name][self.indices[name][rows]]
        if present is not None:
            values = values * present[name].reshape(-1, *[1] * (values.ndim - 1)).to(values.dtype)
        return values.long() if values.ndim == 2 else values.to(torch.get_default_dtype()) / 255


def _class_starts(labels: np.ndarray) -> np.ndarray:
    """Where each class starts in sorted labels, and the end: `[class + 1]`."""
    return np.searchsorted(labels, np.arange(int(labels.max()) + 2))
