"""Text as indices of characters, and how classes and attributes become text. Imports no torch."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmjsd.specs import Bytes, DataError

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+-=<>()[]{} \n"
"""The 71 characters of the reference; "-" stands twice in it, and is encoded as the first."""

PADDING = "*"
"""Stands before and behind a description."""

_INDEX = {character: ALPHABET.index(character) for character in ALPHABET}

_NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def encode_text(text: str) -> Bytes:
    """Indices into ALPHABET, `[length]`."""
    for character in text:
        if character not in _INDEX:
            raise DataError(f"text {text!r} holds {character!r}, which is not in ALPHABET")
    return np.array([_INDEX[character] for character in text], np.uint8)


def decode_text(indices: npt.ArrayLike) -> list[str]:
    """The strings of indices `[batch, length]`: nested lists, an array, or a tensor on any device."""
    rows = np.asarray(indices.tolist() if hasattr(indices, "tolist") else indices, np.intp)
    if not rows.size:
        return []
    if rows.ndim != 2:
        raise DataError(f"text to decode must have axes [batch, length], got shape {list(rows.shape)}")
    if ((rows < 0) | (rows >= len(ALPHABET))).any():
        raise DataError(f"indices of text lie in 0..{len(ALPHABET) - 1}, got {rows.min()}..{rows.max()}")
    return ["".join(ALPHABET[index] for index in row) for row in rows]


def place_numerals(length: int) -> tuple[Bytes, Bytes]:
    """Every placement of every digit's numeral among `length` characters, and the digit."""
    placed = [
        (encode_text((" " * start + numeral).ljust(length)), label)
        for label, numeral in enumerate(_NUMERALS)
        for start in range(length - len(numeral) + 1)
    ]
    return np.stack([text for text, _ in placed]), np.array([label for _, label in placed], np.uint8)


def describe(attributes: Bytes, names: Sequence[str], length: int, rng: np.random.Generator) -> Bytes:
    """What attributes `[row, attribute]` say, as texts `[row, length]`: names in order, joined by ", ".

    Only attributes that are there are named. The last are left out if there is no room for all. The names
    stand somewhere among `length` characters, with equal chances, PADDING before and behind them.
    """
    texts = [join_names(row, names, length) for row in attributes]
    starts = rng.integers(length - np.array([len(text) for text in texts]) + 1)
    return np.stack(
        [
            encode_text((PADDING * start + text).ljust(length, PADDING))
            for start, text in zip(starts, texts, strict=True)
        ]
    )


def join_names(attributes: npt.ArrayLike, names: Sequence[str], length: int) -> str:
    """The names of one row's attributes, in at most so many characters."""
    found = [name for name, here in zip(names, np.asarray(attributes), strict=True) if here]
    while len(", ".join(found)) > length:
        found.pop()
    return ", ".join(found)
