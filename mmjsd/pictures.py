"""How samples become a picture: one tile an image or a text, tiles in labelled blocks under a title."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from mmjsd.specs import Modality
from mmjsd.text import PADDING, decode_text

Picture = npt.NDArray[np.uint8]
"""`[height, width, 3]`."""

_GAP, _BLOCK_GAP, _MARGIN = 2, 10, 10
_TITLE, _LABEL = 17, 15
_LABEL_WIDTH = 24
"""Characters after which a label goes on in the next line."""

_TEXT_SIZES = range(14, 8, -1)
_LETTER_AREA = 80
"""Pixels that a letter of the smallest size takes in a text, with its share of what lines leave empty."""

_SHADES = 3 * [min(255, round(shade / 4) * 4) for shade in range(256)]
"""Of each colour every fourth: no eye misses the others, and the file has two thirds of the size."""

_INK, _SOFT_INK, _PAPER, _TEXT_PAPER = (20, 20, 20), (90, 90, 90), (255, 255, 255), (240, 240, 240)
_FRAME = (208, 208, 208)


@dataclass(frozen=True)
class Block:
    """Rows of tiles that belong together."""

    labels: Sequence[str]
    """One for each row, or fewer, each for as many rows."""

    rows: Sequence[Sequence[Image.Image]]
    heads: Sequence[Image.Image] = ()
    """If there are any, one for each row, which stands before it and apart."""


def tile_side(specs: Sequence[Modality]) -> int:
    """Pixels of a tile's side in a picture of these modalities, for images twice theirs, in 64..256."""
    images = [2 * max(spec.shape[1:]) for spec in specs if spec.kind == "image"]
    texts = [round(sqrt(_LETTER_AREA * spec.shape[0])) for spec in specs if spec.kind == "text"]
    return min(max([64, *images, *(min(side, 128) for side in texts)]), 256)


def tiles(values: Tensor, side: int) -> list[Image.Image]:
    """One tile for each image `[batch, channel, height, width]` in [0, 1], or text `[batch, length]`."""
    if values.ndim == 2:
        return _write([text.strip(PADDING) for text in decode_text(values.cpu())], side)
    pixels = (values.clamp(0, 1) * 255).round().byte().cpu().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    return [_enlarge(Image.fromarray(each.numpy()), side) for each in pixels]


def compose(title: str, note: str, blocks: Sequence[Block]) -> Picture:
    """Blocks of tiles under one another, their labels to the left, title and note above."""
    step = blocks[0].rows[0][0].width + _GAP
    label_font = _font("DejaVuSans", _LABEL)
    labels = [[textwrap.wrap(label, _LABEL_WIDTH) for label in block.labels] for block in blocks]
    widths = [label_font.getlength(line) for each in labels for lines in each for line in lines]
    x_heads = _MARGIN + round(max(widths)) + _BLOCK_GAP
    x_tiles = x_heads + (step + _BLOCK_GAP if any(block.heads for block in blocks) else 0)
    width = x_tiles + step * max(len(row) for block in blocks for row in block.rows) + _MARGIN
    heading = [
        *(
            (line, _font("DejaVuSans-Bold", _TITLE), _INK)
            for line in _fold(title, width, _font("DejaVuSans-Bold", _TITLE))
        ),
        *((line, label_font, _SOFT_INK) for line in _fold(note, width, label_font)),
    ]
    y = _MARGIN + len(heading) * _line(_TITLE) + _BLOCK_GAP
    tops = []
    for block, names in zip(blocks, labels, strict=True):
        tops.append([y])
        for place, row in enumerate(block.rows):
            needs = len(names[place]) * _line(_LABEL) if len(names) == len(block.rows) else 0
            y += max(needs, *(tile.height for tile in row)) + _GAP
            tops[-1].append(y)
        y += _BLOCK_GAP
    canvas = Image.new("RGB", (width, y), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (line, font, ink) in enumerate(heading):
        draw.text((_MARGIN, _MARGIN + number * _line(_TITLE)), line, ink, font)
    for block, names, edges in zip(blocks, labels, tops, strict=True):
        for number, lines in enumerate(names):
            first, last = (len(block.rows) * place // len(names) for place in (number, number + 1))
            middle = (x_heads - _BLOCK_GAP, (edges[first] + edges[last] - _GAP) / 2)
            draw.text(middle, "\n".join(lines), _INK, label_font, anchor="rm", align="right")
        for place, head in enumerate(block.heads):
            _paste(canvas, head, x_heads, edges[place])
        for row, top in zip(block.rows, edges[:-1], strict=True):
            for column, tile in enumerate(row):
                _paste(canvas, tile, x_tiles + column * step, top)
    return np.asarray(canvas)


def _paste(canvas: Image.Image, tile: Image.Image, x: int, y: int) -> None:
    """The tile in a frame that fills its half of the gaps, so that a white one ends somewhere, too."""
    width = _GAP // 2
    canvas.paste(ImageOps.expand(tile, width, _FRAME), (x - width, y - width))


def _enlarge(image: Image.Image, side: int) -> Image.Image:
    """The image as large as a tile allows, in its middle."""
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    resampling = Image.Resampling.NEAREST if factor.is_integer() else Image.Resampling.BICUBIC
    tile = Image.new("RGB", (side, side), _PAPER)
    tile.paste(image.resize(size, resampling), ((side - size[0]) // 2, (side - size[1]) // 2))
    return tile.point(_SHADES)


def _write(texts: Sequence[str], side: int) -> list[Image.Image]:
    """Texts, all in the largest letters in which they fit a tile, or else in the smallest.

    What fits into one line keeps its spaces, so that it shows where its words stand. Tiles are as high as
    the longest of the texts needs.
    """
    texts = [text.replace("\n", " ") for text in texts]
    room = side - 2 * _GAP
    smallest = _font("DejaVuSansMono", _TEXT_SIZES[-1])
    is_short = max(map(len, texts)) <= room // smallest.getlength("m")
    for size in _TEXT_SIZES:
        font = _font("DejaVuSansMono", size)
        per_line = int(room // font.getlength("m"))
        wrapped = [[text] if is_short else textwrap.wrap(text, per_line) or [""] for text in texts]
        longest = max(len(part) for text in texts for part in ([text] if is_short else ["", *text.split()]))
        height = max(map(len, wrapped)) * _line(size)
        if longest <= per_line and height <= room:
            break
    return [_write_lines(lines, font, _line(size), side, height) for lines in wrapped]


def _write_lines(
    lines: Sequence[str], font: ImageFont.FreeTypeFont, step: int, side: int, height: int
) -> Image.Image:
    tile = Image.new("RGB", (side, height + 4 * _GAP), _TEXT_PAPER)
    draw = ImageDraw.Draw(tile)
    left = (side - max(map(len, lines)) * font.getlength("m")) / 2
    for number, line in enumerate(lines):
        above = (number - (len(lines) - 1) / 2) * step
        draw.text((left, tile.height / 2 + above), line, _INK, font, anchor="lm")
    return tile


def _fold(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines of a text that are at most as wide as the picture without its margins."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width - 2 * _MARGIN:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _line(size: int) -> int:
    """Pixels from one line to the next."""
    return round(1.3 * size)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the fonts that Matplotlib ships."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)
