"""Data sets: download, verify, prepare once into memory-mapped arrays. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+-=<>()[]{} \n"
"""The 71 characters of the reference; "-" stands twice in it, and is encoded as the first."""

SPLITS = ("train", "validation", "test")


class DataError(ValueError):
    """Data that cannot be used; the message names the file, what was expected and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """What one modality's examples look like."""

    name: str
    kind: Literal["image", "text"]
    shape: tuple[int, ...]
    """[channel, height, width] of an image, [length] of a text."""

    style_weight: float = 1.0
    """Default weight of the subspace's divergence (the reference settings')."""

    @property
    def size(self) -> int:
        """Number of pixels and channels, or of characters: the terms that a log-likelihood sums."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """What a data set holds, before any of it is read."""

    name: str
    modalities: tuple[Modality, ...]
    num_classes: int


_DIGIT_MODALITIES = (
    Modality(name="mnist", kind="image", shape=(1, 28, 28)),
    Modality(name="svhn", kind="image", shape=(3, 32, 32)),
    Modality(name="text", kind="text", shape=(8,), style_weight=5.0),
)

DATASETS: Mapping[str, DataSpec] = {
    name: DataSpec(name=name, modalities=_DIGIT_MODALITIES, num_classes=10)
    for name in ("digits", "mnist-svhn-text")
}
