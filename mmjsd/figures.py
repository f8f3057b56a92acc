"""One picture of what a model generates: what is given, and what it makes of every subset."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmjsd.batches import Pairs
from mmjsd.data import decode_text
from mmjsd.metrics import representations
from mmjsd.model import MultimodalVae

_TILE, _SCALE = 34, 2
_COLUMNS_SEED = 3
_SUBSETS_PER_SIZE = 3
"""All of three modalities; of more, a grid of all would be taller than anybody looks at."""


@torch.no_grad()
def sample_grid(model: MultimodalVae, split: Pairs) -> npt.NDArray[np.uint8]:
    """`[height, width, 3]`: one column a class, one row a subset and the modality generated from it.

    The first rows show real samples of each class, the next what each subset of their modalities
    (several as their product) generates, each column with a style of its own; the last rows are
    unconditional. Samples and draws are the same for every trial of a data set.
    """
    generator = torch.Generator(model.device).manual_seed(_COLUMNS_SEED)
    samples = split.draw(40 * split.num_classes, generator)
    columns = [int((samples.labels == label).nonzero()[0]) for label in range(split.num_classes)]
    x = {name: samples.batch(slice(None)).x[name][columns] for name in model.modalities}
    rows = [(name, _tiles(values)) for name, values in x.items()]
    for each in representations(model.modalities, _SUBSETS_PER_SIZE):
        if each.posterior == "mixture":
            continue
        generated = model.generate({name: x[name] for name in each.subset}, None, "product", generator)
        rows += [
            (f"{each.given} to {name}", _tiles(values))
            for name, values in generated.items()
            if name not in each.subset
        ]
    unconditional = model.generate(None, len(columns), None, generator)
    rows += [(f"random {name}", _tiles(values)) for name, values in unconditional.items()]
    return _draw(rows)


def _tiles(values: Tensor) -> list[Image.Image]:
    """One picture a sample: images as they are, text written out."""
    if values.ndim == 2:
        return [_write(text) for text in decode_text(values.cpu())]
    pixels = (values.clamp(0, 1) * 255).round().byte().cpu().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    return [Image.fromarray(each.numpy()).resize((_SCALE * (_TILE - 2),) * 2) for each in pixels]


def _write(text: str) -> Image.Image:
    side = _SCALE * (_TILE - 2)
    tile = Image.new("RGB", (side, side), "white")
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(tile).text((side / 2, side / 2), text.strip(), "black", font, anchor="mm")
    return tile


def _draw(rows: Sequence[tuple[str, list[Image.Image]]]) -> npt.NDArray[np.uint8]:
    step = _SCALE * _TILE
    font = ImageFont.load_default(size=18)
    left = round(max(font.getlength(label) for label, _ in rows)) + 24
    canvas = Image.new("RGB", (left + step * len(rows[0][1]), step * len(rows)), (235, 235, 235))
    for row, (label, tiles) in enumerate(rows):
        place = (left - 12, row * step + step / 2)
        ImageDraw.Draw(canvas).text(place, label, "black", font, anchor="rm")
        for column, tile in enumerate(tiles):
            canvas.paste(tile, (left + column * step + _SCALE, row * step + _SCALE))
    return np.asarray(canvas)
