"""The embedded faces: people with visible attributes of CelebA, drawn in colours and shapes that vary."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

VERSION = 1
"""Raised with every change of the drawing, so that prepared copies of older drawings are left alone."""

COUNTS = {"train": 5_000, "validation": 1_000, "test": 1_000}
"""Faces of each split."""

ATTRIBUTES = (
    "arched eyebrows", "bald", "bangs", "black hair", "blond hair", "brown hair", "bushy eyebrows",
    "eyeglasses", "goatee", "gray hair", "heavy makeup", "male", "mouth slightly open", "mustache",
    "no beard", "pale skin", "rosy cheeks", "smiling", "wavy hair", "wearing earrings", "wearing hat",
    "wearing lipstick", "wearing necktie", "young",
)  # fmt: skip
"""Names and order are CelebA's."""

Images = npt.NDArray[np.uint8]
Flags = Mapping[str, npt.NDArray[np.bool_]]
Points = npt.NDArray[np.float64]
Colour = tuple[int, ...]

_SEED = 20_200_617
_SIZE, _OVERSAMPLING = 64, 4

_HAIR = {
    "black hair": ((28, 24, 26), (52, 42, 40)),
    "brown hair": ((84, 52, 30), (128, 84, 52)),
    "blond hair": ((196, 156, 84), (238, 208, 138)),
    "gray hair": ((136, 136, 138), (202, 202, 204)),
    "": ((140, 58, 24), (178, 84, 40)),
}
"""Between which two colours hair lies; red if it is none of the named ones."""

_SKIN = np.array([(255, 214, 184), (233, 184, 148), (203, 148, 108), (150, 100, 70), (104, 68, 48)], float)
_PALE = np.array((255, 236, 226), float)


def draw(split: str) -> tuple[Images, npt.NDArray[np.uint8]]:
    """Images `[face, 3, 64, 64]` of one split, and their attributes `[face, attribute]`; always the same."""
    rng = np.random.default_rng((_SEED, list(COUNTS).index(split)))
    flags = draw_attributes(COUNTS[split], rng)
    images = np.stack([_draw_face(_Face(flags, index, rng)) for index in range(COUNTS[split])])
    known = np.stack([flags[name] for name in ATTRIBUTES], axis=1)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), known.astype(np.uint8)


def draw_attributes(count: int, rng: np.random.Generator) -> Flags:
    """Which attributes each of so many people has, about as often, and as often together, as in CelebA."""

    def chance(probability: float | npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = rng.random(count) < probability
        return found

    def pick(shares: Points) -> npt.NDArray[np.intp]:
        """The number of one choice for each person, by shares `[person, choice]`."""
        edges = np.cumsum(shares, axis=1)
        chosen: npt.NDArray[np.intp] = (rng.random((count, 1)) * edges[:, -1:] > edges).sum(axis=1)
        return chosen

    male = chance(0.42)
    young = chance(np.where(male, 0.66, 0.86))
    bald = chance(np.where(male, np.where(young, 0.03, 0.16), 0))
    colours = ("black hair", "brown hair", "blond hair", "gray hair", "")
    of_young = np.where(male[:, None], (0.40, 0.32, 0.10, 0.0, 0.06), (0.26, 0.30, 0.28, 0.0, 0.08))
    of_old = np.where(male[:, None], (0.20, 0.16, 0.06, 0.45, 0.03), (0.18, 0.24, 0.30, 0.24, 0.05))
    colour = pick(np.where(young[:, None], of_young, of_old))
    no_beard, _, goatee, mustache, both = range(5)
    beard = pick(np.where(male[:, None], (0.62, 0.13, 0.10, 0.06, 0.09), (1.0, 0, 0, 0, 0)))
    makeup = chance(np.where(male, 0, np.where(young, 0.66, 0.46)))
    smiling = chance(np.where(male, 0.40, 0.54))
    found = {name: (colour == number) & ~bald for number, name in enumerate(colours) if name}
    return found | {
        "arched eyebrows": chance(np.where(makeup, 0.60, np.where(male, 0.06, 0.28))),
        "bald": bald,
        "bangs": chance(np.where(male, 0.08, 0.24)) & ~bald,
        "bushy eyebrows": chance(np.where(male, 0.28, 0.05)),
        "eyeglasses": chance(np.where(young, 0.06, 0.20)),
        "goatee": (beard == goatee) | (beard == both),
        "heavy makeup": makeup,
        "male": male,
        "mouth slightly open": chance(np.where(smiling, 0.74, 0.26)),
        "mustache": (beard == mustache) | (beard == both),
        "no beard": beard == no_beard,
        "pale skin": chance(0.08),
        "rosy cheeks": chance(np.where(makeup, 0.30, 0.03)),
        "smiling": smiling,
        "wavy hair": chance(np.where(male, 0.14, 0.46)) & ~bald,
        "wearing earrings": chance(np.where(male, 0.02, 0.34)),
        "wearing hat": chance(np.where(male, 0.11, 0.05)),
        "wearing lipstick": chance(np.where(makeup, 0.94, np.where(male, 0, 0.42))),
        "wearing necktie": chance(np.where(male, 0.22, 0)),
        "young": young,
    }


@dataclass(frozen=True)
class _Look:
    """What varies between people besides their attributes."""

    skin: Points
    hair: Points
    iris: Points
    clothes: Points
    background: Points
    """`[2, channel]`: above and below."""


class _Face:
    """One person's attributes, colours and measures, in pixels of the picture from the face's middle."""

    def __init__(self, flags: Flags, index: int, rng: np.random.Generator) -> None:
        self.has = {name: bool(each[index]) for name, each in flags.items()}
        tone = rng.choice(4) + rng.random()
        skin = np.stack([np.interp(tone, range(5), channel) for channel in _SKIN.T])
        if self.has["pale skin"]:
            skin = _PALE
        dark, light = _HAIR[next((name for name in _HAIR if name and self.has[name]), "")]
        share = rng.random()
        self.look = _Look(
            skin=skin * rng.uniform(0.96, 1.0),
            hair=share * np.array(dark, float) + (1 - share) * np.array(light),
            iris=np.array(((88, 58, 36), (60, 100, 140), (74, 110, 66))[rng.choice(3, p=(0.6, 0.25, 0.15))]),
            clothes=rng.uniform(40, 220, 3),
            background=rng.uniform(150, 225, 3) * rng.uniform(0.85, 1.1, (2, 1)),
        )
        broad = 1.0 if self.has["male"] else 0.0
        self.half_width = rng.normal(14.2 + 0.8 * broad, 0.5)
        self.half_height = rng.normal(18.2 + 0.5 * broad, 0.6)
        self.jaw = 2.1 + 0.9 * broad
        self.middle = np.array((31.5, 32.0)) + rng.normal(0, 0.9, 2).clip(-2, 2)
        self.angle = rng.normal(0, 0.06)
        self.scale = rng.normal(1.1, 0.035)
        self.gaze = rng.normal(0, 0.4)
        self.phase = rng.uniform(0, 2 * np.pi)


class _Brush:
    """Draws shapes around a face's middle, turned and sized with it, on a canvas of finer pixels."""

    def __init__(self, face: _Face) -> None:
        from PIL import Image, ImageDraw  # here, because what lists data sets starts without

        rows = np.linspace(0, 1, _SIZE * _OVERSAMPLING)[:, None]
        above, below = face.look.background
        shades = ((1 - rows) * above + rows * below).clip(0, 255)
        canvas = np.broadcast_to(shades[:, None], (len(rows), len(rows), 3))
        self.image = Image.fromarray(np.rint(canvas).astype(np.uint8))
        self._draw = ImageDraw.Draw(self.image, "RGBA")
        cos, sin = np.cos(face.angle) * face.scale, np.sin(face.angle) * face.scale
        self._turn = np.array(((cos, sin), (-sin, cos)))
        self._middle = face.middle

    def shape(self, points: Points, colour: Points, opacity: float = 1.0) -> None:
        """A filled polygon."""
        self._draw.polygon(self._place(points), fill=_rgba(colour, opacity))

    def line(self, points: Points, width: float, colour: Points, opacity: float = 1.0) -> None:
        """A line with round joints."""
        thickness = max(1, round(width * _OVERSAMPLING))
        self._draw.line(self._place(points), fill=_rgba(colour, opacity), width=thickness, joint="curve")

    def _place(self, points: Points) -> list[tuple[float, float]]:
        placed = (points @ self._turn + self._middle) * _OVERSAMPLING
        return [(float(x), float(y)) for x, y in placed]


def _draw_face(face: _Face) -> Images:
    """`[64, 64, 3]`, from the back of the head to the hat."""
    brush = _Brush(face)
    _draw_back_hair(brush, face)
    _draw_body(brush, face)
    _draw_head(brush, face)
    _draw_beard(brush, face)
    _draw_eyes(brush, face)
    _draw_mouth(brush, face)
    _draw_front_hair(brush, face)
    _draw_glasses(brush, face)
    if face.has["wearing hat"]:
        _draw_hat(brush, face)
    return np.asarray(brush.image.reduce(_OVERSAMPLING))


def _draw_back_hair(brush: _Brush, face: _Face) -> None:
    w, h, has = face.half_width, face.half_height, face.has
    if has["bald"]:
        return
    hair = 0.82 * face.look.hair
    if has["male"]:
        brush.shape(_ellipse(0, -0.32 * h, w + 2.0, 0.86 * h, wave=_wave(face)), hair)
        return
    brush.shape(_ellipse(0, -0.24 * h, w + 4.2, h + 0.6, wave=_wave(face)), hair)
    for side in (-1, 1):
        brush.shape(_ellipse(side * (w + 0.6), 0.75 * h, 5.0, 1.25 * h, wave=_wave(face)), hair)


def _draw_body(brush: _Brush, face: _Face) -> None:
    w, h, look = face.half_width, face.half_height, face.look
    neck = 0.62 * w if face.has["male"] else 0.46 * w
    brush.shape(_box(neck, 0.5 * h, neck, 1.5 * h), 0.86 * look.skin)
    brush.shape(_ellipse(0, 2.2 * h, 2.1 * w, 1.02 * h), look.clothes)
    if not face.has["wearing necktie"]:
        brush.shape(_ellipse(0, 1.14 * h, 0.8 * neck, 0.26 * h), 0.86 * look.skin)
        return
    white, tie = np.array((246.0, 246, 248)), 0.25 * look.clothes[::-1] + (90, 0, 10)
    brush.shape(_box(8, 1.12 * h, 5, 2.6 * h), white)
    brush.shape(_box(2.4, 1.14 * h, 1.5, 1.28 * h), 0.8 * tie)
    brush.shape(_box(1.6, 1.28 * h, 3.8, 2.6 * h), tie)


def _draw_head(brush: _Brush, face: _Face) -> None:
    w, h, skin, has = face.half_width, face.half_height, face.look.skin, face.has
    for side in (-1, 1):
        brush.shape(_ellipse(side * (w + 0.4), 0.5, 2.2, 3.6), 0.92 * skin)
        if has["wearing earrings"]:
            gold = np.array((250.0, 208, 84))
            brush.shape(_ellipse(side * (w + 1.3), 6.2, 1.5, 2.3), gold)
            brush.shape(_ellipse(side * (w + 1.3), 6.4, 0.7, 1.1), 0.75 * gold)
    brush.shape(_outline(face), skin)
    brush.shape(_ellipse(-0.45 * w, -0.45 * h, 0.35 * w, 0.3 * h), np.full(3, 255.0), 0.07)
    if has["rosy cheeks"]:
        for side, size in ((-1, 3.9), (1, 3.9), (-1, 2.8), (1, 2.8)):
            cheek = _ellipse(side * 0.6 * w, 0.30 * h, size, 0.75 * size)
            brush.shape(cheek, np.array((236.0, 70, 90)), 0.28)
    if not has["young"]:
        for level in (-0.52, -0.43):
            brush.line(_arc(0, level * h, 0.42 * w, -0.8), 0.45, 0.72 * skin)
        for side in (-1, 1):
            fold = _points((0.34 * w, 0.24 * h), (0.47 * w, 0.36 * h), (0.46 * w, 0.50 * h))
            brush.line(fold * (side, 1), 0.55, 0.72 * skin)
            brush.line(_arc(side * 0.43 * w, 0.06 * h, 2.6, 1.3), 0.45, 0.72 * skin)
    nose = _points((0.6, -0.05 * h), (1.9, 0.25 * h), (1.2, 0.31 * h), (-1.4, 0.31 * h))
    brush.line(nose, 0.7, 0.74 * skin)


def _draw_beard(brush: _Brush, face: _Face) -> None:
    w, h, has = face.half_width, face.half_height, face.has
    if has["no beard"]:
        return
    hair = 0.9 * face.look.hair
    full = not (has["goatee"] or has["mustache"])
    if full:
        outline = _outline(face)
        low = outline[outline[:, 1] > 0.18 * h]
        inner = _ellipse(0, 0.20 * h, 0.72 * w, 0.50 * h)
        inner = inner[inner[:, 1] > 0.18 * h]
        brush.shape(np.concatenate([low[np.argsort(low[:, 0])], inner[np.argsort(-inner[:, 0])]]), hair)
        brush.shape(_ellipse(0, 0.84 * h, 0.55 * w, 0.22 * h), hair)
    if has["goatee"]:
        brush.shape(_ellipse(0, 0.84 * h, 3.9, 0.20 * h), hair)
        brush.shape(_box(3.0, 0.68 * h, 2.2, 1.08 * h), hair)
    if has["mustache"] or full:
        brush.shape(_points((0, 0.345 * h), (5.6, 0.48 * h), (0, 0.43 * h), (-5.6, 0.48 * h)), hair)
        brush.line(_points((-5.0, 0.46 * h), (0, 0.38 * h), (5.0, 0.46 * h)), 1.9, hair)


def _draw_eyes(brush: _Brush, face: _Face) -> None:
    w, h, look, has = face.half_width, face.half_height, face.look, face.has
    black, makeup = np.full(3, 18.0), has["heavy makeup"]
    for side in (-1, 1):
        x, y = side * 0.43 * w, -0.08 * h
        if makeup:
            brush.shape(_ellipse(x, y - 1.2, 4.2, 2.7), np.array((112.0, 64, 122)), 0.62)
        brush.shape(_ellipse(x, y, 3.0, 1.75), np.full(3, 250.0))
        brush.shape(_ellipse(x + face.gaze, y, 1.65, 1.65), look.iris)
        brush.shape(_ellipse(x + face.gaze, y, 0.8, 0.8), black)
        brush.shape(_ellipse(x + face.gaze + 0.5, y - 0.6, 0.4, 0.4), np.full(3, 255.0))
        brush.line(_arc(x, y - 0.7, 3.1, -1.3), 1.0 if makeup else 0.5, black)
        if makeup:
            brush.line(_points((x + side * 2.7, y - 0.5), (x + side * 4.4, y - 1.9)), 0.7, black)
        brow = 0.62 * look.hair if not has["bald"] else np.array((70.0, 52, 40))
        rise = -2.4 if has["arched eyebrows"] else -0.4
        level = y - 0.21 * h
        points = _arc(x, level + (0.9 if has["arched eyebrows"] else 0), 3.9, rise)
        brush.line(points, 2.1 if has["bushy eyebrows"] else 0.85, brow)


def _draw_mouth(brush: _Brush, face: _Face) -> None:
    h, has = face.half_height, face.has
    y, bend, half = 0.57 * h, (2.8 if has["smiling"] else 0.2), (5.4 if has["smiling"] else 4.3)
    lips = np.array((196.0, 24, 52)) if has["wearing lipstick"] else face.look.skin * (0.80, 0.60, 0.58)
    top = _arc(0, y - 0.4 * bend, half, bend)
    if not has["mouth slightly open"]:
        brush.line(top, 1.9 if has["wearing lipstick"] else 1.3, lips)
        brush.line(top, 0.4, 0.5 * lips)
        return
    bottom = _arc(0, y - 0.4 * bend, half, bend + 3.4)
    gap = np.concatenate([top, bottom[::-1]])
    brush.shape(gap, np.array((92.0, 20, 26)))
    teeth = np.concatenate([top, _arc(0, y - 0.4 * bend, half, bend + 1.5)[::-1]])
    brush.shape(teeth, np.full(3, 248.0))
    brush.line(np.concatenate([gap, gap[:2]]), 1.5 if has["wearing lipstick"] else 0.9, lips)


def _draw_front_hair(brush: _Brush, face: _Face) -> None:
    w, h, has, hair = face.half_width, face.half_height, face.has, face.look.hair
    if has["bald"]:
        brush.shape(_ellipse(-0.25 * w, -0.72 * h, 0.30 * w, 0.12 * h), np.full(3, 255.0), 0.28)
        return
    line = -0.30 * h if has["bangs"] else -0.56 * h
    side = 0.95 * w
    top = _ellipse(0, -0.40 * h, w + 1.8, 0.78 * h, wave=_wave(face))
    top = top[top[:, 1] < -0.32 * h]
    top = top[np.argsort(top[:, 0])]
    low = -0.10 * h if has["male"] else 0.45 * h
    ends = (_points((side + 1.2, low)), _points((-side - 1.2, low)))
    if has["bangs"]:
        x = np.linspace(0.86 * w, -0.86 * w, 9)
        fringe = np.stack([x, line + np.tile((1.6, -1.0), 5)[:9]], axis=1)
    else:
        fringe = _arc(0, -0.36 * h, 0.80 * w, line + 0.1 * h)[::-1]
    brush.shape(np.concatenate([top, ends[0], fringe, ends[1]]), hair)
    for share in (-0.4, 0.0, 0.4):
        strand = _points((share, -1.12 * h), (1.15 * share, -0.86 * h), (1.4 * share, line - 0.1 * h))
        brush.line(strand * (w, 1), 0.5, 1.14 * hair, 0.55)


def _draw_glasses(brush: _Brush, face: _Face) -> None:
    if not face.has["eyeglasses"]:
        return
    w, h, frame = face.half_width, face.half_height, np.array((26.0, 24, 30))
    for side in (-1, 1):
        ring = _ellipse(side * 0.43 * w, -0.06 * h, 4.9, 4.1)
        brush.shape(ring, np.array((205.0, 226, 240)), 0.22)
        brush.line(np.concatenate([ring, ring[:2]]), 1.05, frame)
        brush.line(_points((side * (0.43 * w + 4.9), -0.1 * h), (side * w, -0.14 * h)), 1.0, frame)
    brush.line(_arc(0, -0.07 * h, 0.43 * w - 4.9, -0.5), 1.0, frame)


def _draw_hat(brush: _Brush, face: _Face) -> None:
    w, h, cloth = face.half_width, face.half_height, 255 - face.look.clothes
    crown = _ellipse(0, -0.62 * h, w + 1.6, 0.80 * h)
    brush.shape(np.concatenate([crown[crown[:, 1] < -0.62 * h]]), cloth)
    brush.shape(_ellipse(0, -0.62 * h, w + 6.0, 2.5), 0.78 * cloth)
    brush.line(_arc(0, -0.72 * h, w + 1.2, 0.6), 1.6, 0.45 * cloth)


def _outline(face: _Face) -> Points:
    """The face's edge: half an ellipse above, below it the fuller the broader the jaw is."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    power = np.where(sin > 0, 2 / face.jaw, 1.0)
    x = face.half_width * np.sign(cos) * np.abs(cos) ** power
    return np.stack([x, face.half_height * np.sign(sin) * np.abs(sin) ** power], axis=1)


def _wave(face: _Face) -> tuple[float, float]:
    """How far hair's edge swings, in pixels, and where it begins."""
    return (1.5 if face.has["wavy hair"] else 0.0), face.phase


def _ellipse(
    x: float, y: float, half_width: float, half_height: float, wave: tuple[float, float] = (0.0, 0.0)
) -> Points:
    """Points of an ellipse whose edge swings, `[point, 2]`."""
    angle = np.linspace(0, 2 * np.pi, 72 if wave[0] else 36, endpoint=False)
    swing = wave[0] * np.sin(11 * angle + wave[1])
    return np.stack([x + (half_width + swing) * np.cos(angle), y + (half_height + swing) * np.sin(angle)], 1)


def _arc(x: float, y: float, half_width: float, bend: float) -> Points:
    """A parabola from left to right through (x, y + bend), its ends at height y; positive bends hang down."""
    share = np.linspace(-1, 1, 13)
    return np.stack([x + half_width * share, y + bend * (1 - share**2)], axis=1)


def _box(top_half: float, top: float, bottom_half: float, bottom: float) -> Points:
    """A trapezium in the face's middle."""
    return _points((-top_half, top), (top_half, top), (bottom_half, bottom), (-bottom_half, bottom))


def _points(*points: tuple[float, float]) -> Points:
    return np.array(points, float)


def _rgba(colour: Points, opacity: float) -> Colour:
    return (*np.rint(colour).clip(0, 255).astype(int).tolist(), round(255 * opacity))
