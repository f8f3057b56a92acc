"""The embedded data sets: real handwriting, gently deformed, plain or on patterns; drawn house numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

PATTERNED_COPIES = {"train": 6, "validation": 5, "test": 5}
"""Deformed copies of each original on each pattern."""

HOUSE_NUMBERS = {"train": 12_000, "validation": 1_000, "test": 1_500}
"""Drawn house numbers of each split, a tenth of each class."""

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

_CANVAS = 256
"""Pixels of the square canvas from which backgrounds are cut; it goes on at the opposite edge."""


@dataclass(frozen=True)
class Pattern:
    """What a modality's digits are written on, and in which colour: red, green and blue in 0..255."""

    shades: Callable[[np.random.Generator], Floats]
    """Draws the canvas, `[y, x]`, dark where it is 0 or less, light where it is 1 or more."""

    dark: tuple[int, int, int]
    light: tuple[int, int, int]
    ink: tuple[int, int, int]


def draw(modality: str, split: str) -> tuple[Images, Labels]:
    """Images `[example, channel, height, width]` of one split, and their labels; the same on every call.

    All arithmetic is in float64 and is rounded once, so that machines do not differ unless their versions of
    FreeType, scipy or scikit-learn draw, interpolate or ship something else.
    """
    drawing = ("mnist", "svhn", *PATTERNS).index(modality)
    rng = np.random.default_rng((_SEED, list(ORIGINALS).index(split), drawing))
    if modality == "mnist":
        return draw_handwriting(ORIGINALS[split], COPIES[split], rng)
    if modality in PATTERNS:
        written, labels = draw_handwriting(ORIGINALS[split], PATTERNED_COPIES[split], rng, (0.25, 0.5))
        canvas = PATTERNS[modality].shades(np.random.default_rng((_SEED, drawing)))
        return _write_on(PATTERNS[modality], canvas.clip(0, 1), written, rng), labels
    labels = (np.arange(HOUSE_NUMBERS[split]) % 10).astype(np.uint8)
    return draw_house_numbers(labels, rng), labels


def draw_handwriting(
    originals: Sequence[int],
    copies: int,
    rng: np.random.Generator,
    thinness: tuple[float, float] = (0.4, 0.75),
) -> tuple[Images, Labels]:
    """Deformed copies of each original, as MNIST shows digits: `[example, 1, 28, 28]`, and their labels.

    The range of `thinness` is that of the share of a scan's full ink from which on there is ink in a copy.

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
    images = np.concatenate([_deform(tiles, chunk, rng, thinness) for chunk in chunks])
    return images, labels[copied].astype(np.uint8)


def _deform(
    tiles: Floats, originals: npt.NDArray[np.intp], rng: np.random.Generator, thinness: tuple[float, float]
) -> Images:
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
    level = rng.uniform(*thinness, (count, 1, 1))
    ramp = ((ink - level) / 0.8 + 0.5).clip(0, 1)
    return _to_bytes(255 * ramp * ramp * (3 - 2 * ramp))[:, None]


def _write_on(pattern: Pattern, canvas: Floats, written: Images, rng: np.random.Generator) -> Images:
    """Each grey image as ink on its own cut-out of the canvas: `[example, 3, height, width]`."""
    chunks = np.split(written, range(_CHUNK, len(written), _CHUNK))
    return np.concatenate([_paint(pattern, canvas, chunk / 255, rng) for chunk in chunks])


def _paint(pattern: Pattern, canvas: Floats, ink: Floats, rng: np.random.Generator) -> Images:
    """Ink `[example, 1, height, width]` on cut-outs, each in its own light and with its own shade of ink.

    Light that differed more would be all that a small model learns in minutes: a joint latent can tell it for
    whole images at once, and a digit only once its strokes are known.
    """
    count, size = len(ink), ink.shape[-1]
    y, x = (rng.integers(_CANVAS, size=(2, count, 1)) + np.arange(size)) % _CANVAS
    shades = canvas[y[:, None, :, None], x[:, None, None, :]]
    colours = (pattern.dark, pattern.light, pattern.ink)
    dark, light, front = (np.array(each)[:, None, None] for each in colours)
    lamp = rng.normal(1, 0.015, (count, 3, 1, 1)) * rng.normal(1, 0.02, (count, 1, 1, 1))
    behind = lamp * (dark + (light - dark) * shades)
    return _to_bytes(behind + (front + rng.normal(0, 4, (count, 3, 1, 1)) - behind) * ink)


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


def _clouds(rng: np.random.Generator) -> Floats:
    return 0.5 + 0.2 * _noise(rng, 4, 6)


def _wood(rng: np.random.Generator) -> Floats:
    _, x = _shares()
    return _wave(24 * x + 0.5 * _noise(rng, 20, 6), 1) + 0.12 * _noise(rng, 5, 0.6)


def _gingham(rng: np.random.Generator) -> Floats:
    y, x = _shares()
    return (_wave(16 * y, 3) + _wave(16 * x, 3)) / 2 + 0.05 * _noise(rng, 0.6, 0.6)


def _dots(rng: np.random.Generator) -> Floats:
    chance, (y, x) = _bond(rng)
    distance: Floats = np.hypot(y, x)
    return distance - 1.5 - 1.5 * chance


def _wall(rng: np.random.Generator) -> Floats:
    from scipy.ndimage import gaussian_filter

    chance, (y, x) = _bond(rng)
    mortar = (y > 3) | (x > 7)
    shades: Floats = gaussian_filter(np.where(mortar, 0, 0.5 + 0.5 * chance), 0.5, mode="wrap")
    return shades


def _stripes(rng: np.random.Generator) -> Floats:
    y, x = _shares()
    return _wave(20 * (x + y) + 0.13 * _noise(rng, 8, 8), 2)


def _cells(rng: np.random.Generator) -> Floats:
    nearest, second = _distances(rng.uniform(0, _CANVAS, (420, 2)))
    shades: Floats = (second - nearest) / 5
    return shades


def _ripples(rng: np.random.Generator) -> Floats:
    nearest, _ = _distances(rng.uniform(0, _CANVAS, (60, 2)))
    return _wave(nearest / 7, 2)


def _shares() -> tuple[Floats, Floats]:
    """How far down and how far right on the canvas each pixel is, from 0 to 1: y and x, `[y, x]` both."""
    y, x = np.indices((_CANVAS, _CANVAS)) / _CANVAS
    return y, x


def _wave(cycles: Floats, steepness: float) -> Floats:
    """From dark to light and back once a cycle; the steeper, the less lies between."""
    wave: Floats = 0.5 + 0.5 * np.tanh(steepness * np.sin(2 * np.pi * cycles))
    return wave


def _noise(rng: np.random.Generator, height: float, width: float) -> Floats:
    """Normal noise of mean 0 and variance 1, blurred over so many pixels, `[y, x]`."""
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(rng.normal(size=(_CANVAS, _CANVAS)), (height, width), mode="wrap")
    noise: Floats = (blurred - blurred.mean()) / blurred.std()
    return noise


def _bond(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Bricks of 8 x 16 pixels, every other row moved by half a brick.

    For each pixel a number from 0 to 1 that chance gave its brick, `[y, x]`, and the offset (y, x) from the
    brick's middle, `[2, y, x]`.
    """
    y, x = np.indices((_CANVAS, _CANVAS))
    x = (x + 8 * (y // 8 % 2)) % _CANVAS
    chance = rng.random((_CANVAS // 8, _CANVAS // 16))[y // 8, x // 16]
    return chance, np.stack([y % 8 - 3.5, x % 16 - 7.5])


def _distances(points: Floats) -> Floats:
    """From each pixel of the canvas to the nearest of the points and to the next, `[2, y, x]`."""
    from scipy.spatial import KDTree

    pixels = np.indices((_CANVAS, _CANVAS)).reshape(2, -1).T
    distances, _ = KDTree(points, boxsize=np.full(2, float(_CANVAS))).query(pixels, k=2)
    return np.asarray(distances).T.reshape(2, _CANVAS, _CANVAS)


PATTERNS: Mapping[str, Pattern] = {
    "poly0": Pattern(_clouds, dark=(92, 150, 214), light=(222, 234, 246), ink=(10, 14, 60)),
    "poly1": Pattern(_wood, dark=(70, 38, 18), light=(136, 86, 48), ink=(255, 246, 224)),
    "poly2": Pattern(_gingham, dark=(16, 84, 58), light=(84, 150, 104), ink=(255, 250, 200)),
    "poly3": Pattern(_dots, dark=(244, 150, 84), light=(255, 226, 150), ink=(48, 4, 84)),
    "poly4": Pattern(_wall, dark=(64, 26, 28), light=(166, 78, 60), ink=(236, 250, 255)),
    "poly5": Pattern(_stripes, dark=(176, 190, 200), light=(242, 242, 236), ink=(150, 0, 30)),
    "poly6": Pattern(_cells, dark=(10, 24, 44), light=(40, 104, 122), ink=(255, 196, 110)),
    "poly7": Pattern(_ripples, dark=(222, 118, 160), light=(250, 190, 208), ink=(4, 40, 36)),
}
"""Handwriting on patterns, by the modality's name."""
