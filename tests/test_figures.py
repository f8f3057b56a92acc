"""Pictures: rows share a style, columns a content, and everything lies where it should, readable."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmjsd import figures
from mmjsd.batches import Pairs
from mmjsd.config import ModelConfig, ObjectiveConfig
from mmjsd.data import ALPHABET, DATASETS, Examples, Modality, encode_text
from mmjsd.figures import (
    Shown,
    choose_samples,
    conditional_samples,
    draw_figures,
    given_subsets,
    swapped_styles,
)
from mmjsd.model import MultimodalVae
from mmjsd.networks import NETWORKS
from mmjsd.pictures import Block, compose, tile_side, tiles
from tests.conftest import TINY, seeded

DIGITS = DATASETS["digits"].modalities


def split_of(specs, num_classes=3, size=40) -> Pairs:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(num_classes), size).astype(np.uint8)
    values = {
        spec.name: rng.integers(0, 71 if spec.kind == "text" else 256, (len(labels), *spec.shape), np.uint8)
        for spec in specs
    }
    return Pairs({name: Examples(each, labels) for name, each in values.items()})


def digits_model(style_dim=2, seed=0, **objective) -> MultimodalVae:
    torch.manual_seed(seed)
    sizes = ModelConfig(content_dim=4, style_dim=style_dim, width=0.1)
    return MultimodalVae(DIGITS, sizes, ObjectiveConfig(**objective))


def linear_samples(linear, given, rows=4):
    """Samples of "red" by a linear decoder, so that content and style add up: `[row, column, pixel]`."""
    model = linear(3, 2)
    columns, _ = choose_samples(model, split_of(TINY[:3]))
    noise = torch.randn(1, 10, 2, generator=seeded(1)), torch.randn(rows, 1, 2, generator=seeded(2))
    with torch.no_grad():
        return conditional_samples(model, columns, "red", given, noise).flatten(2), model, columns, noise


# Conditional samples ...


def test_have_one_style_a_row_and_one_content_a_column(linear):
    samples, *_ = linear_samples(linear, ("green", "blue"))
    assert samples.shape == (4, 10, 6)
    by_style, by_content = samples.diff(dim=0), samples.diff(dim=1)
    torch.testing.assert_close(by_style, by_style[:, :1].expand_as(by_style))
    torch.testing.assert_close(by_content, by_content[:1].expand_as(by_content))
    assert (by_style.abs().sum(-1) > 1e-3).all()
    assert (by_content.abs().sum(-1) > 1e-3).all()


def test_take_the_content_from_the_product_of_what_is_given(linear):
    samples, model, columns, noise = linear_samples(linear, ("green", "blue"))
    first, second = (columns.posteriors[name].content for name in ("green", "blue"))
    precisions = torch.exp(-first.logvar), torch.exp(-second.logvar)
    variance = 1 / sum(precisions)
    mean = variance * (precisions[0] * first.mu + precisions[1] * second.mu)
    content = mean + variance.sqrt() * noise[0][0]
    expected = model.means(content, {"red": noise[1][2].expand(10, -1)})["red"].flatten(1)
    torch.testing.assert_close(samples[2], expected)


def test_depend_on_nothing_that_is_not_given(linear):
    samples, model, columns, noise = linear_samples(linear, ("green",))
    other = {name: columns.posteriors["green" if name == "green" else "blue"] for name in model.modalities}
    with torch.no_grad():
        again = conditional_samples(model, Shown({}, other), "red", ("green",), noise)
    assert torch.equal(again.flatten(2), samples)


def test_swapped_styles_add_a_rows_style_to_a_columns_content(linear):
    model = linear(2, 1)
    columns, rows = choose_samples(model, split_of(TINY[:2]))
    with torch.no_grad():
        swapped = swapped_styles(model, columns, rows, "green").flatten(2)
        own = swapped_styles(model, rows, rows, "green").flatten(2)
        means = {"green": rows.posteriors["green"].style.mu}
        again = model.means(rows.posteriors["green"].content.mu, means)["green"].flatten(1)
    assert swapped.shape == (5, 10, 3)
    by_style = swapped.diff(dim=0)
    torch.testing.assert_close(by_style, by_style[:, :1].expand_as(by_style))
    torch.testing.assert_close(own.diagonal().T, again)  # a sample in its own style is its reconstruction


@pytest.mark.parametrize("ignored", ["content", "style"])
def test_in_the_picture_share_their_rows_style_and_their_columns_content(linear, monkeypatch, ignored):
    composed = {}
    blank = np.zeros((1, 1, 3), np.uint8)
    monkeypatch.setattr(
        figures, "compose", lambda title, note, blocks: composed.setdefault(title, blocks) is None or blank
    )
    model = linear(3, 2)
    with torch.no_grad():
        weight = model.decoders["red"][0].weight
        weight[:, slice(0, 2) if ignored == "content" else slice(2, 4)] = 0
    draw_figures(model, split_of(TINY[:3]))
    given, *blocks = composed["red from other modalities"]
    assert [*given.labels] == ["green, given", "blue, given"]
    assert [block.labels[0] for block in blocks] == ["from green", "from blue", "from green + blue"]
    for block in blocks:
        shown = np.array([[np.asarray(tile) for tile in row] for row in block.rows])
        assert shown.shape[:2] == (5, 10)
        across_rows, across_columns = ((shown != shown.take([0], axis)).any() for axis in (0, 1))
        assert (across_rows, across_columns) == ((True, False) if ignored == "content" else (False, True))


# The samples in pictures ...


@pytest.mark.parametrize(
    ("num_classes", "expected"),
    [(10, list(range(10))), (2, [0] * 5 + [1] * 5), (1, [0] * 10), (30, list(range(0, 30, 3)))],
)
def test_are_of_classes_taken_evenly(num_classes, expected):
    model, split = digits_model(), split_of(DIGITS, num_classes)
    columns, rows = choose_samples(model, split)
    values = split.values["svhn"].float() / 255

    def example(x):
        return int((values == x).flatten(1).all(1).nonzero()[0])

    found = [example(x) for x in columns.x["svhn"]]
    assert [index // 40 for index in found] == expected
    assert [example(x) // 40 for x in rows.x["svhn"]] == [place * num_classes // 5 for place in range(5)]
    pairs = [
        tuple(
            example(x) if name == "svhn" else x.sum().item() for name, x in zip(shown.x, sample, strict=True)
        )
        for shown in (columns, rows)
        for sample in zip(*shown.x.values(), strict=True)
    ]
    assert len({*pairs}) == len(pairs)  # none is shown twice


def test_and_draws_are_the_same_for_every_model_of_a_data_set():
    split = split_of(DIGITS)
    pictures = draw_figures(digits_model(), split)
    torch.manual_seed(5)
    again = draw_figures(digits_model(), split)
    assert all(np.array_equal(again[name], picture) for name, picture in pictures.items())
    # Another model, of other sizes: the real samples are the same, and only they.
    other = draw_figures(digits_model(style_dim=7, seed=1, name="mvae"), split)
    tall = 3 * 60
    assert np.array_equal(other["overview"][:tall], pictures["overview"][:tall])
    assert not np.array_equal(other["overview"], pictures["overview"])


def test_leave_torchs_randomness_alone():
    model, before = digits_model(), torch.get_rng_state()
    draw_figures(model, split_of(DIGITS))
    assert torch.equal(before, torch.get_rng_state())


# The pictures ...


def test_are_drawn_of_every_modality_and_of_styles_where_there_are_any():
    names = {"overview", "unconditional", "reconstruction"}
    names |= {f"conditional_{spec.name}" for spec in DIGITS}
    assert set(draw_figures(digits_model(style_dim=0), split_of(DIGITS))) == names
    sizes = {"mnist": 2, "svhn": 0, "text": 1}
    drawn = set(draw_figures(digits_model(style_dim=sizes), split_of(DIGITS)))
    assert drawn == names | {"styles_mnist", "styles_text"}


def test_show_ten_images_for_each_long_text_in_random_styles(monkeypatch):
    specs, seen = DATASETS["faces"].modalities, {}
    rng = np.random.default_rng(0)
    known = rng.integers(0, 2, (30, 5), np.uint8)
    split = Pairs(
        {spec.name: Examples(rng.integers(0, 71, (30, *spec.shape), np.uint8), known) for spec in specs}
    )
    model = MultimodalVae(specs, ModelConfig(content_dim=4, style_dim=2, width=0.03), ObjectiveConfig())
    compose = figures.compose
    monkeypatch.setattr(figures, "compose", lambda *args: seen.update({args[0]: args[2]}) or compose(*args))
    pictures = draw_figures(model, split)
    assert {"face_from_words", "conditional_face", "styles_words"} <= set(pictures)
    (block,) = seen["face from words"]
    assert [len(row) for row in block.rows] == [10] * 5
    assert len(block.heads) == 5
    for row in block.rows:
        assert len({tile.tobytes() for tile in row}) == 10


def test_show_every_subset_of_few_modalities_and_a_bounded_number_of_many(monkeypatch):
    assert given_subsets(("a", "b")) == [("a",), ("b",), ("a", "b")]
    assert len(given_subsets("abc")) == 7
    assert given_subsets("abcd") == [("a",), ("b",), ("c",), ("d",), tuple("abcd")]
    specs = [Modality(name=f"camera{number}", kind="image", shape=(3, 32, 32)) for number in range(8)]
    for spec in specs:
        monkeypatch.setitem(NETWORKS, spec.name, NETWORKS["svhn"])
    model = MultimodalVae(specs, ModelConfig(width=0.1), ObjectiveConfig())
    for picture in draw_figures(model, split_of(specs)).values():
        assert picture.shape[0] < (7 + 8 * 3 + 4) * 70
        assert picture.shape[1] < 1000


def test_of_one_modality_lack_what_would_need_a_second(tiny):
    assert {*draw_figures(tiny(1), split_of(TINY[:1]))} == {
        "overview",
        "unconditional",
        "reconstruction",
        "styles_red",
    }


# Tiles ...


def test_show_an_images_pixels_and_keep_its_proportions():
    image = torch.zeros(1, 3, 16, 32)
    image[0, 0, :, 16:] = 1
    (tile,) = tiles(image, 64)
    shown = np.asarray(tile)
    assert shown.shape == (64, 64, 3)
    assert (shown[:16] == 255).all()  # paper above and below
    assert (shown[16:48, :32] == 0).all()
    assert (shown[16:48, 32:] == [255, 0, 0]).all()


@pytest.mark.parametrize(("length", "side"), [(6, 64), (64, 128), (128, 256), (1000, 256), (100_000, 256)])
def test_of_a_signal_are_no_larger_than_a_picture_can_hold(length, side):
    signal = Modality(name="signal", kind="image", shape=(1, 1, length))
    assert tile_side([signal]) == side
    (tile,) = tiles(torch.zeros(1, *signal.shape), side)
    shown = np.asarray(tile.convert("L"))
    assert shown.shape == (side, side)
    height = max(1, side // length)
    assert (shown < 128).sum() == pytest.approx(side * height, rel=0.5)
    assert (shown[: side // 2 - height] == 255).all()


def test_shades_are_at_most_two_off():
    values = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    (tile,) = tiles(values, 16)
    assert np.abs(np.asarray(tile)[..., 0].astype(int).ravel() - np.arange(256)).max() <= 2


def text(*lines, length=8):
    return torch.stack([torch.from_numpy(encode_text(line.ljust(length))) for line in lines])


def ink(tile) -> np.ndarray:
    """Columns and rows that the letters of a tile touch: left, right, top, bottom."""
    rows, columns = np.nonzero(np.asarray(tile.convert("L")) < 128)
    return np.array([columns.min(), columns.max(), rows.min(), rows.max()])


def test_of_descriptions_lack_the_stars_around():
    padded, bare = (encode_text(text) for text in ("**bald, male******", "bald, male"))
    shown, expected = (tiles(torch.from_numpy(text)[None], 64)[0] for text in (padded, bare))
    assert shown.tobytes() == expected.tobytes()


def test_of_one_line_show_where_a_word_stands():
    left, right = tiles(text("two", "     two"), 64)
    assert ink(right)[0] - ink(left)[0] == pytest.approx(5 * 7, abs=4)
    assert ink(right)[1] < 64


@pytest.mark.parametrize("length", [8, 20, 64, 256, 1000])
def test_hold_a_whole_text_of_any_length(length):
    words = ("blond hair, smiling, narrow eyes, " * 40)[:length]
    side = tile_side([Modality(name="text", kind="text", shape=(length,))])
    tile, blank, odd = tiles(text(words, "", "\n" * length, length=length), side)
    assert tile.width == side <= 128
    assert tile.size == blank.size == odd.size
    left, right, top, bottom = ink(tile)
    assert (left >= 1, right < side - 1, top >= 1, bottom < tile.height - 1) == (True,) * 4


def test_hold_every_character_unbroken_or_not():
    (tile,) = tiles(torch.arange(len(ALPHABET))[None], 64)
    assert ink(tile)[1] < 64


@pytest.mark.parametrize("shade", ["white", "black"])
def test_end_where_a_frame_shows_it_whatever_their_colour(shade):
    tile = Image.new("RGB", (64, 64), shade)
    picture = compose("", "", [Block(["samples"], [[tile] * 3] * 2, heads=[tile] * 2)])
    is_frame = ((picture > 200) & (picture < 220)).all(-1)
    rows, columns = (np.nonzero(is_frame.sum(axis) > 64)[0] for axis in (1, 0))
    assert (rows - rows[0]).tolist() == [0, 65, 66, 131]
    heads, samples = np.split(columns, [2])
    assert (heads - heads[0]).tolist() == [0, 65]
    assert (samples - samples[0]).tolist() == [0, 65, 66, 131, 132, 197]
    assert is_frame[rows[0] :, columns[0] :].sum() == (2 + 6) * 4 * 65  # no pixel of a tile


def test_stand_in_rows_and_columns_with_heads_before_them():
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    picture = compose("title", "note", [Block(["one", "two"], [[red] * 3, [blue] * 3], heads=[blue, red])])
    is_red, is_blue = (
        (picture == Image.new("RGB", (1, 1), colour).getpixel((0, 0))).all(-1) for colour in ("red", "blue")
    )
    assert is_red.sum() == is_blue.sum() == 4 * 64 * 64
    assert np.argmax(is_blue.any(0)) == np.argmax(is_red.any(0))
    rows = np.nonzero(is_red.sum(1) >= 3 * 64)[0]
    assert len(rows) == 64
    assert (is_blue[rows].sum(1) == 64).all()
