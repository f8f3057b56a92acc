"""What the data sets hold: modalities, and classes or attributes. Imports no torch and reads no file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from keyword import iskeyword
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmjsd import digits, faces

SPLITS = ("train", "validation", "test")

JOINT = "joint"
"""The target of all modalities together, so the name of none."""

Bytes = npt.NDArray[np.uint8]
Report = Callable[[str], None]


class DataError(ValueError):
    """Data that cannot be used; the message names the file, what was expected and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """What one modality's examples look like.

    Raises:
        ValueError: if no option could have its name, or no picture show its examples.
    """

    name: str
    """An identifier of Python, as it names options and fields; none that torch's ModuleDict has, as type."""

    kind: Literal["image", "text"]
    shape: tuple[int, ...]
    """[channel, height, width] of an image, which has 1 or 3 channels (a signal is one of height 1), [length]
    of a text."""

    style_weight: float = 1.0
    """Default weight of the subspace's divergence (the reference settings')."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or iskeyword(self.name) or self.name == JOINT:
            expected = f"an identifier of Python, no keyword and not {JOINT!r}"
            raise ValueError(f"a modality's name must be {expected}, got {self.name!r}")
        axes = {"image": 3, "text": 1}.get(self.kind)
        if len(self.shape) != axes or min(self.shape) < 1 or (axes == 3 and self.shape[0] not in (1, 3)):
            expected = "an image of shape (1 or 3, height, width) or a text of shape (length,)"
            raise ValueError(f"modality {self.name!r} must be {expected}, got {self.kind!r} of {self.shape}")

    @property
    def size(self) -> int:
        """Number of pixels and channels, or of characters: the terms that a log-likelihood sums."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """What a data set holds, before any of it is read.

    Raises:
        ValueError: if a modality or an attribute is there twice, or not one of classes and attributes.
    """

    name: str
    modalities: tuple[Modality, ...]
    num_classes: int = 0
    """Of which each example has one; modalities are paired by class."""

    attributes: tuple[str, ...] = ()
    """Names of what each example has or has not, in place of classes; a row of one modality belongs to the
    same row of the others."""

    embedded: bool = False
    """Drawn by the program itself, without files or downloads."""

    version: int = 0
    """Raised with every change of how the data set is drawn, so that it is prepared anew."""

    def __post_init__(self) -> None:
        modalities = tuple(modality.name for modality in self.modalities)
        for what, names in (("modality", modalities), ("attribute", self.attributes)):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"data set {self.name!r} names the {what} {twice!r} twice; leave one out")
        if not modalities or bool(self.attributes) == bool(self.num_classes) or self.num_classes == 1:
            found = f"{len(modalities)}, {self.num_classes} classes and {len(self.attributes)} attributes"
            expected = "modalities, and either two or more classes or attributes"
            raise ValueError(f"data set {self.name!r} must have {expected}, got {found}")

    @property
    def num_outputs(self) -> int:
        """Of a classifier: one for each class or attribute."""
        return self.num_classes or len(self.attributes)


_DIGIT_MODALITIES = (
    Modality(name="mnist", kind="image", shape=(1, 28, 28)),
    Modality(name="svhn", kind="image", shape=(3, 32, 32)),
    Modality(name="text", kind="text", shape=(8,), style_weight=5.0),
)
_PATTERNED_MODALITIES = tuple(
    Modality(name=name, kind="image", shape=(3, 28, 28)) for name in digits.PATTERNS
)
_FACE_MODALITIES = (
    Modality(name="face", kind="image", shape=(3, 64, 64)),
    Modality(name="words", kind="text", shape=(256,), style_weight=5.0),
)

_CELEBA_ATTRIBUTES = (
    "5 o clock shadow", "arched eyebrows", "attractive", "bags under eyes", "bald", "bangs", "big lips",
    "big nose", "black hair", "blond hair", "blurry", "brown hair", "bushy eyebrows", "chubby", "double chin",
    "eyeglasses", "goatee", "gray hair", "heavy makeup", "high cheekbones", "male", "mouth slightly open",
    "mustache", "narrow eyes", "no beard", "oval face", "pale skin", "pointy nose", "receding hairline",
    "rosy cheeks", "sideburns", "smiling", "straight hair", "wavy hair", "wearing earrings", "wearing hat",
    "wearing lipstick", "wearing necklace", "wearing necktie", "young",
)  # fmt: skip

DATASETS: Mapping[str, DataSpec] = {
    spec.name: spec
    for spec in (
        DataSpec(
            name="digits", modalities=_DIGIT_MODALITIES, num_classes=10, embedded=True, version=digits.VERSION
        ),
        DataSpec(name="mnist-svhn-text", modalities=_DIGIT_MODALITIES, num_classes=10),
        DataSpec(
            name="faces",
            modalities=_FACE_MODALITIES,
            attributes=faces.ATTRIBUTES,
            embedded=True,
            version=faces.VERSION,
        ),
        DataSpec(name="celeba", modalities=_FACE_MODALITIES, attributes=_CELEBA_ATTRIBUTES),
        *(
            DataSpec(
                name=f"polydigits-{count}",
                modalities=_PATTERNED_MODALITIES[:count],
                num_classes=10,
                embedded=True,
                version=digits.VERSION,
            )
            for count in range(2, len(_PATTERNED_MODALITIES) + 1)
        ),
    )
}
