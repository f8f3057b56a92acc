"""What a model generates, as pictures: given some modalities, given none, and with styles exchanged."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmjsd.batches import Pairs
from mmjsd.model import MultimodalVae, Posterior, subsets
from mmjsd.pictures import Block, Picture, compose, tile_side, tiles

_COLUMNS, _STYLES = 10, 5
_CONDITIONAL_ROWS, _UNCONDITIONAL_ROWS = 15, 12
"""As many as a picture has room for, shared by its blocks."""

_ONE_LINE = 32
"""Characters; longer texts describe more than a word."""

_MAX_SUBSETS = 7
"""Where more could be given, a picture shows each modality alone and all of them together."""

_SAMPLES_SEED = 3


@dataclass(frozen=True)
class Shown:
    """Real samples in the columns, or before the rows, of a picture."""

    x: Mapping[str, Tensor]
    posteriors: Mapping[str, Posterior]


@torch.no_grad()
def draw_figures(model: MultimodalVae, split: Pairs) -> dict[str, Picture]:
    """Pictures of a model by name, on samples and draws that are the same for every trial of a data set.

    "overview": real samples, what subsets of their modalities generate, and unconditional samples.
    "conditional_TARGET": the target given subsets of the others, one random style a row (paper, Figure 1).
    "TARGET_from_TEXT": ten images for each of some long texts, styles random (paper, Figure 2).
    "unconditional": one draw of the content a column. "reconstruction": given all modalities.
    "styles_TARGET": the content of some samples in the style of others, of targets that have a subspace.
    Several given modalities are represented by their product.
    """
    model.eval()
    columns, rows = choose_samples(model, split)
    pictures = {"overview": _overview(model, columns)}
    if len(model.modalities) > 1:
        pictures |= {f"conditional_{name}": _conditional(model, columns, name) for name in model.modalities}
    for text in (spec.name for spec in model.specs if spec.kind == "text" and spec.shape[0] > _ONE_LINE):
        for image in (spec.name for spec in model.specs if spec.kind == "image"):
            pictures[f"{image}_from_{text}"] = _described(model, rows, image, text)
    pictures["unconditional"] = _unconditional(model)
    pictures["reconstruction"] = _reconstruction(model, columns)
    styled = [name for name, size in model.style_dims.items() if size > 0]
    return pictures | {f"styles_{name}": _styles(model, columns, rows, name) for name in styled}


def choose_samples(model: MultimodalVae, split: Pairs) -> tuple[Shown, Shown]:
    """Samples for the columns and, others, for the rows of the pictures: classes in order, evenly taken."""
    generator = torch.Generator(split.device).manual_seed(_SAMPLES_SEED)
    num_classes = max(split.num_classes, 1)
    samples = split.draw(40 * num_classes, generator)
    labels = samples.labels.tolist() if split.num_classes else [0] * len(samples)
    free = list(range(len(labels)))

    def take(count: int) -> Shown:
        chosen = []
        for number in range(count):
            label = number * num_classes // count
            chosen.append(next(index for index in free if labels[index] == label))
            free.remove(chosen[-1])
        x = {name: values[chosen] for name, values in everything.items() if name in model.modalities}
        return Shown(x, model.posteriors(x))

    everything = samples.batch(slice(None)).x
    return take(_COLUMNS), take(_STYLES)


def given_subsets(others: Sequence[str]) -> list[tuple[str, ...]]:
    """The subsets of the modalities beside a target that a picture shows as given, the smallest first."""
    every = subsets(others)
    return every if len(every) <= _MAX_SUBSETS else [(name,) for name in others] + [tuple(others)]


def conditional_samples(
    model: MultimodalVae, columns: Shown, target: str, given: Sequence[str], noise: tuple[Tensor, Tensor]
) -> Tensor:
    """Samples of the target, `[row, column, ...]`, from the content that the given modalities tell.

    Args:
        noise: of the content and of the target's style, standard normal, `[row, column, latent]`, where an
            axis of size one is shared.
    """
    content = model.fuse({name: columns.posteriors[name] for name in given}, "product")
    return _decode(model, target, content.sample(noise[0]), noise[1])


def swapped_styles(model: MultimodalVae, columns: Shown, rows: Shown, name: str) -> Tensor:
    """One modality with the columns' content and the rows' styles, both means: `[row, column, ...]`."""
    content, style = columns.posteriors[name].content.mu, rows.posteriors[name].style.mu
    return _decode(model, name, content[None], style[:, None])


def _decode(model: MultimodalVae, name: str, content: Tensor, style: Tensor) -> Tensor:
    """Means of one modality, `[row, column, ...]`, of content and style that broadcast to these axes."""
    rows, columns = (max(content.shape[axis], style.shape[axis]) for axis in (0, 1))
    content, style = (each.expand(rows, columns, each.shape[2]).flatten(0, 1) for each in (content, style))
    means = model.means(content, {name: style})[name]
    return means.reshape(rows, columns, *means.shape[1:])


def _conditional(model: MultimodalVae, columns: Shown, target: str) -> Picture:
    side, others = tile_side(model.specs), [name for name in model.modalities if name != target]
    noise = _Noise(model, f"conditional {target}")
    subsets_given, has_style = given_subsets(others), model.style_dims[target] > 0
    rows = max(3, _CONDITIONAL_ROWS // len(subsets_given))
    draws = noise.content(1 if has_style else rows, _COLUMNS), noise.style(target, rows, 1)
    blocks = [Block([f"{name}, given" for name in others], [tiles(columns.x[name], side) for name in others])]
    for given in subsets_given:
        values = conditional_samples(model, columns, target, given, draws)
        blocks.append(Block([f"from {_joined(given, others)}"], [tiles(row, side) for row in values]))
    note = "Each row has one random style, each column the content inferred from the sample above."
    if not has_style:
        note = "There is no style: each row is another draw of the content inferred from the samples above."
    return compose(f"{target} from other modalities", note, blocks)


def _overview(model: MultimodalVae, columns: Shown) -> Picture:
    side, names = tile_side(model.specs), model.modalities
    blocks = [Block([f"{name}, real" for name in names], [tiles(columns.x[name], side) for name in names])]
    for target in names if len(names) > 1 else ():
        others = [name for name in names if name != target]
        noise = _Noise(model, f"overview {target}")
        draws = noise.content(1, _COLUMNS), noise.style(target, 1, _COLUMNS)
        groups = given_subsets(others)
        if len(groups) < len(subsets(others)):
            groups = groups[-1:]
        made = [conditional_samples(model, columns, target, given, draws)[0] for given in groups]
        labels = [f"{target} from {_joined(given, others)}" for given in groups]
        blocks.append(Block(labels, [tiles(values, side) for values in made]))
    random = _random(model, "overview", 1)
    blocks.append(
        Block([f"{name}, random" for name in names], [tiles(random[name][0], side) for name in names])
    )
    note = "Each column: one sample, and what is generated from its modalities in a random style."
    return compose("Real, conditional and unconditional samples", note, blocks)


def _described(model: MultimodalVae, rows: Shown, image: str, text: str) -> Picture:
    side, noise = tile_side(model.specs), _Noise(model, f"{image} from {text}")
    content = model.fuse({text: rows.posteriors[text]}, "product").mu[:, None]
    made = _decode(model, image, content, noise.style(image, len(content), _COLUMNS))
    block = Block([f"{text}, given"], [tiles(each, side) for each in made], heads=tiles(rows.x[text], side))
    note = f"Each row: one text, and what is generated from it in {_COLUMNS} random styles."
    return compose(f"{image} from {text}", note, [block])


def _unconditional(model: MultimodalVae) -> Picture:
    side, names = tile_side(model.specs), model.modalities
    random = _random(model, "unconditional", max(1, _UNCONDITIONAL_ROWS // len(names)))
    blocks = [
        Block(names, [tiles(random[name][band], side) for name in names])
        for band in range(len(random[names[0]]))
    ]
    note = "Nothing is given; within a block, each column is one draw of the content."
    return compose("Unconditional samples", note, blocks)


def _reconstruction(model: MultimodalVae, columns: Shown) -> Picture:
    side, blocks = tile_side(model.specs), []
    content = model.fuse(columns.posteriors, "product").mu[None]
    for name in model.modalities:
        again = _decode(model, name, content, columns.posteriors[name].style.mu[None])[0]
        blocks.append(Block([name, "reconstructed"], [tiles(columns.x[name], side), tiles(again, side)]))
    note = "Means of the posteriors: the content's given all modalities, the style's own."
    return compose("Real samples and their reconstructions", note, blocks)


def _styles(model: MultimodalVae, columns: Shown, rows: Shown, name: str) -> Picture:
    side = tile_side(model.specs)
    swapped = swapped_styles(model, columns, rows, name)
    blocks = [
        Block(["content of"], [tiles(columns.x[name], side)]),
        Block(["style of"], [tiles(row, side) for row in swapped], heads=tiles(rows.x[name], side)),
    ]
    note = "Each column has the content of the sample above, each row the style of the sample on its left."
    return compose(f"{name} with exchanged styles", note, blocks)


def _random(model: MultimodalVae, figure: str, rows: int) -> dict[str, Tensor]:
    """Unconditional samples of every modality, `[row, column, ...]`."""
    noise = _Noise(model, f"random {figure}")
    content = noise.content(rows, _COLUMNS)
    return {
        name: _decode(model, name, content, noise.style(name, rows, _COLUMNS)) for name in model.modalities
    }


class _Noise:
    """Standard normal draws for one picture, whatever the other pictures draw, and on whatever device."""

    def __init__(self, model: MultimodalVae, picture: str) -> None:
        self._model, self._picture = model, picture

    def content(self, rows: int, columns: int) -> Tensor:
        return self._draw("", rows, columns, self._model.config.content_dim)

    def style(self, name: str, rows: int, columns: int) -> Tensor:
        return self._draw(name, rows, columns, self._model.style_dims[name])

    def _draw(self, what: str, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._picture} {what}".encode()))
        return torch.randn(shape, generator=generator).to(self._model.device)


def _joined(given: Sequence[str], others: Sequence[str]) -> str:
    """A subset as a label: its modalities, or "all others" where there are too many to name."""
    return "all others" if len(given) == len(others) > 2 else " + ".join(given)
