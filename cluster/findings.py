"""What a check found, and how the keys of nested settings are held against those that are known."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


class CheckError(ValueError):
    """Nothing could be checked; the message says why."""


@dataclass(frozen=True)
class Finding:
    """One check and what is wrong, in sentences; none: all is well."""

    check: str
    problems: tuple[str, ...] = ()
    note: str = ""
    """What is worth knowing where all is well."""


Check = Callable[[Mapping[str, Any]], Iterator[str]]
"""Yields a sentence for each thing that is wrong with a file's settings."""


def run_checks(checks: Mapping[str, Check], settings: Mapping[str, Any]) -> Iterator[Finding]:
    """One finding a check; a part of another form than a check can read is a finding too."""
    for name, check in checks.items():
        try:
            yield Finding(name, tuple(check(settings)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            form = f"something is missing or of another kind than expected ({type(error).__name__}: {error})"
            yield Finding(name, (form,))


PLACEHOLDER = "REPLACE-WITH"
"""Begins each value of a launcher file that has to be replaced before it can be used."""


def unknown_keys(settings: Any, known: Mapping[str, Any], where: str) -> Iterator[str]:
    """A sentence for each key that `known` does not have, at any depth.

    Args:
        settings: nested mappings and lists.
        known: the keys, each with a mapping of what may stand below it, or none if that is free.
        where: the path of `settings`, for the sentence.
    """
    if isinstance(settings, list):
        for each in settings:
            yield from unknown_keys(each, known, where)
        return
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if key not in known:
            guess = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {guess[0]}?" if guess else ""
            yield f"{where} has no field {key!r}{hint}"
        elif known[key] is not None:
            yield from unknown_keys(value, known[key], f"{where}.{key}")


def texts(settings: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every string of nested settings, with its path."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from texts(value, f"{where}.{key}" if where else str(key))
    elif isinstance(settings, list):
        for index, value in enumerate(settings):
            yield from texts(value, f"{where}[{index}]")
    elif isinstance(settings, str):
        yield where, settings


def placeholders(settings: Any) -> Iterator[str]:
    """A sentence for each value that has still to be replaced."""
    for where, text in texts(settings):
        if PLACEHOLDER in text:
            yield f"{where} is still {text[text.index(PLACEHOLDER) :].split('/')[0]!r}; write your own"
