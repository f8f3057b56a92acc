"""The embedded data set: real handwriting, gently deformed, and drawn house numbers. Needs no download."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

VERSION = 2
"""Raised with every change of the drawing, so that prepared copies of older drawings are left alone."""

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

ORIGINALS = {
    "train": (*range(300, 1_297), *range(1_497, 1_797)),
    "validation": tuple(range(1_297, 1_497)),
    "test": tuple(range(300)),
}
"""Handwritten originals of each split: blocks of the file's order, in which neighbours have one writer."""

COPIES = {"train": 10, "validation": 5, "test": 5}
"""Deformed copies of each handwritten original."""

HOUSE_NUMBERS = {"train": 12_000, "validation": 1_000, "test": 1_500}
"""Drawn house numbers of each split, a tenth of each class."""

_DRAWINGS = ("mnist", "svhn")
_SEED = 20_200_615
_CHUNK = 1_000
"""Examples drawn at a time; bounds the memory to some 100 MB."""

_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "cmb10",
    "cmr10",
    "cmss10",
    "cmtt10",
)
_GLYPH_HEIGHT = 40.0
"""Pixels from the top to the bottom of a glyph's "0"."""

_GLYPH_TILE = 64
"""Pixels of the square tile in whose middle a glyph stands."""

_TINTS = np.array([[1, 0, -1], [-1, 2, -1]])
"""Orange against blue, and green against magenta, which is rarer on houses."""

_BLURS = (0.8, 1.3, 1.9, 2.6)
"""Standard deviations, in glyph pixels, of the blurs in which every glyph is kept."""


def draw(modality: str, split: str) -> tuple[Images, Labels]:
    """Images `[example, channel, height, width]` of one split, and their labels; the same on every call.

    All arithmetic is in float64 and is rounded once, so that machines do not differ unless their versions of
    FreeType, scipy or scikit-learn draw, interpolate or ship something else.
    """
    rng = np.random.default_rng((_SEED, list(ORIGINALS).index(split), _DRAWINGS.index(modality)))
    if modality == "mnist":
        return draw_handwriting(ORIGINALS[split], COPIES[split], rng)
    labels = (np.arange(HOUSE_NUMBERS[split]) % 10).astype(np.uint8)
    return draw_house_numbers(labels, rng), labels


def draw_handwriting(
    originals: Sequence[int], copies: int, rng: np.random.Generator
) -> tuple[Images, Labels]:
    """Deformed copies of each original, as MNIST shows digits: `[example, 1, 28, 28]`, and their labels.

    The originals are 1,797 scans of 8 x 8 pixels (Alpaydin & Kaynak 1998, Optical Recognition of Handwritten
    Digits, https://doi.org/10.24432/C50P49), which scikit-learn ships.
    """
    from scipy.ndimage import gaussian_filter, spline_filter1d
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    ink = np.pad(scans.reshape(-1, 8, 8) / 16, ((0, 0), (3, 3), (3, 3)))
    ink += ink - gaussian_filter(ink, (0, 1, 1))
    tiles = spline_filter1d(spline_filter1d(ink, axis=1, mode="mirror"), axis=2, mode="mirror")
    copied = np.repeat(np.asarray(originals), copies)
    chunks = np.split(copied, range(_CHUNK, len(copied), _CHUNK))
    images = np.concatenate([_deform(tiles, chunk, rng) for chunk in chunks])
    return images, labels[copied].astype(np.uint8)


def _deform(tiles: Floats, originals: npt.NDArray[np.intp], rng: np.random.Generator) -> Images:
    """Enlarge these tiles, spline coefficients `[tile, 14, 14]`, each under its own gentle deformation."""
    count, size = len(originals), 28
    matrix = _affine(
        angle=rng.normal(0, 0.12, count),
        shear=rng.normal(0, 0.12, count),
        height=rng.uniform(0.36, 0.46, count),
        width=rng.uniform(0.34, 0.46, count),
    )
    offset = _grid(size) - rng.normal(0, 0.8, (count, 2, 1, 1)).clip(-2, 2)
    elastic = _smooth(rng.normal(0, 0.35, (count, 2, 5, 5)), size)
    position = np.einsum("nij,njyx->niyx", matrix, offset) + elastic
    ink = _sample(tiles, originals, position, order=3)
    level = rng.uniform(0.4, 0.75, (count, 1, 1))
    ramp = ((ink - level) / 0.8 + 0.5).clip(0, 1)
    return _to_bytes(255 * ramp * ramp * (3 - 2 * ramp))[:, None]


def draw_house_numbers(labels: Labels, rng: np.random.Generator) -> Images:
    """One cut-out of a drawn house number for each label, as SVHN's crops: `[example, 3, 32, 32]`."""
    glyphs, widths = _draw_glyphs()
    chunks = np.split(labels.astype(np.intp), range(_CHUNK, len(labels), _CHUNK))
    return np.concatenate([_photograph(glyphs, widths, chunk, rng) for chunk in chunks])


def _photograph(
    glyphs: Floats, widths: Floats, digits: npt.NDArray[np.intp], rng: np.random.Generator
) -> Images:
    """Each digit in the middle of its own picture, with parts of its neighbours left and right."""
    count, size = len(digits), 32
    scale = _GLYPH_HEIGHT / rng.uniform(22, 27, count)
    matrix = _affine(
        angle=rng.normal(0, 0.07, count),
        shear=rng.normal(0, 0.06, count),
        height=scale,
        width=scale * rng.uniform(0.85, 1.15, count),
    )
    offset = _grid(size) - rng.normal(0, 0.7, (count, 2, 1, 1)).clip(-1.5, 1.5)
    position = np.einsum("nij,njyx->niyx", matrix, offset)
    blur, font = rng.integers(len(_BLURS), size=count), rng.integers(len(_FONTS), size=count)
    ink = _sample(glyphs, np.ravel_multi_index((blur, font, digits), glyphs.shape[:3]), position, order=1)
    for side in (-1, 1):
        shown = np.flatnonzero(rng.random(count) < 0.4)
        neighbour = rng.integers(10, size=len(shown))
        gap = rng.uniform(6, 14, len(shown))
        distance = (widths[font[shown], digits[shown]] + widths[font[shown], neighbour]) / 2 + gap
        beside = position[shown]
        beside[:, 1] -= side * distance[:, None, None]
        tile = np.ravel_multi_index((blur[shown], font[shown], neighbour), glyphs.shape[:3])
        ink[shown] = np.maximum(ink[shown], _sample(glyphs, tile, beside, order=1))
    return _colour((ink * rng.uniform(1, 1.7, (count, 1, 1))).clip(0, 1), rng)


def _colour(ink: Floats, rng: np.random.Generator) -> Images:
    """Paint ink `[example, height, width]` light on a darker wall, unevenly lit and with some noise.

    Real house numbers are as often dark on light; a digit that is always lighter is what makes this set
    the easier one, which a small model learns in minutes.
    """
    count, size = ink.shape[:2]
    wall = rng.uniform(20, 110, count)
    grey = np.stack([wall, wall + rng.uniform(100, 140, count)])
    tint = rng.normal(0, (30, 8), (2, count, 2)) * rng.random((2, count, 1))
    behind, front = (grey[..., None] + tint @ _TINTS)[..., None, None]
    light = 1 + _smooth(rng.normal(0, 1, (count, 1, 3, 3)) * rng.uniform(0, 0.3, (count, 1, 1, 1)), size)
    noise = rng.normal(0, 1, (count, 3, size, size)) * rng.uniform(1, 6, (count, 1, 1, 1))
    return _to_bytes(light * (behind + (front - behind) * ink[:, None]) + noise)


def _draw_glyphs() -> tuple[Floats, Floats]:
    """Ink (0 to 1) of all glyphs, `[blur, font, digit, tile, tile]`, and widths in pixels `[font, digit]`."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont
    from scipy.ndimage import gaussian_filter

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    middle = _GLYPH_TILE / 2
    sharp = np.zeros((len(_FONTS), 10, _GLYPH_TILE, _GLYPH_TILE))
    widths = np.zeros((len(_FONTS), 10))
    for i, name in enumerate(_FONTS):
        path = str(folder / f"{name}.ttf")
        _, top, _, bottom = ImageFont.truetype(path, 100, layout_engine=ImageFont.Layout.BASIC).getbbox("0")
        size = 100 * _GLYPH_HEIGHT / (bottom - top)
        font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
        for digit in range(10):
            left, top, right, bottom = font.getbbox(str(digit))
            tile = Image.new("L", (_GLYPH_TILE, _GLYPH_TILE))
            corner = (middle - (left + right) / 2, middle - (top + bottom) / 2)
            ImageDraw.Draw(tile).text(corner, str(digit), fill=255, font=font)
            sharp[i, digit] = np.asarray(tile) / 255
            widths[i, digit] = right - left
    return np.stack([gaussian_filter(sharp, (0, 0, blur, blur)) for blur in _BLURS]), widths


def _affine(angle: Floats, shear: Floats, height: Floats, width: Floats) -> Floats:
    """Matrices `[example, 2, 2]` from offsets (y, x) in the picture to offsets in its source.

    Args:
        angle: radians.
        shear: sideways shift for each step downwards.
        height: source pixels for each pixel downwards.
        width: source pixels for each pixel sideways.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
    stretch = np.stack([np.stack([height, 0 * height], -1), np.stack([shear * width, width], -1)], -2)
    matrices: Floats = stretch @ rotation
    return matrices


def _grid(size: int) -> Floats:
    """Offsets (y, x) of a picture's pixels from its middle: `[2, size, size]`."""
    return np.indices((size, size)).astype(np.float64) - (size - 1) / 2


def _smooth(controls: Floats, size: int) -> Floats:
    """Spread values on a coarse grid `[..., k, k]` smoothly over pixels `[..., size, size]`."""
    num_controls = controls.shape[-1]
    distance = np.linspace(0, num_controls - 1, size)[:, None] - np.arange(num_controls)
    weights: Floats = np.exp(-2 * distance**2)
    weights /= weights.sum(1, keepdims=True)
    return weights @ controls @ weights.T


def _sample(tiles: Floats, index: npt.NDArray[np.intp], position: Floats, order: Literal[1, 3]) -> Floats:
    """Values of the indexed tiles at offsets `[example, 2, height, width]` from each tile's middle.

    The tiles are read as one tall image, which interpolates all of them in one call; what lies outside a
    tile is what lies on its blank margin.
    """
    from scipy.ndimage import map_coordinates

    size = tiles.shape[-1]
    inside = (position + (size - 1) / 2).clip(0, size - 1)
    inside[:, 0] += size * index[:, None, None]
    tall = tiles.reshape(-1, size)
    return map_coordinates(tall, inside.swapaxes(0, 1), order=order, mode="nearest", prefilter=False)


def _to_bytes(values: Floats) -> Images:
    return np.rint(values).clip(0, 255).astype(np.uint8)
