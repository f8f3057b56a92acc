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
    """One finding a check; what it cannot read, or finds of another form, is a problem beside its others."""
    for name, check in checks.items():
        problems: list[str] = []
        try:
            problems.extend(check(settings))
        except OSError as error:
            problems.append(f"cannot read {error.filename}: {error.strerror}")
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            problems.append(
                f"something is missing or of another kind than expected ({type(error).__name__}: {error})"
            )
        yield Finding(name, tuple(problems))


PLACEHOLDER = "REPLACE-WITH"
"""Begins each value of a launcher file that has to be replaced before it can be used."""


NEARLY = 0.8
"""How alike, from 0 to 1, a name is to one that it misspells, and mostly not to another that is new."""


def free(names: str) -> dict[str, Any]:
    """These names, below which anything may stand; for `unknown_keys`."""
    return dict.fromkeys(names.split())


def unknown_keys(
    settings: Any, known: Mapping[str, Any], where: str, is_complete: bool = True
) -> Iterator[str]:
    """A sentence for each key that `known` does not have, at any depth.

    Args:
        settings: nested mappings and lists.
        known: the keys, each with a mapping of what may stand below it, or none if that is free.
        where: the path of `settings`, for the sentence.
        is_complete: whether `known` is all there is; if not, only keys that are nearly a known one are told.
    """
    if isinstance(settings, list):
        for each in settings:
            yield from unknown_keys(each, known, where, is_complete)
        return
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if key not in known:
            guess = get_close_matches(str(key), known, n=1, cutoff=0.6 if is_complete else NEARLY)
            hint = f"; did you mean {guess[0]}?" if guess else ""
            if guess or is_complete:
                yield f"{where} has no field {key!r}{hint}"
        elif known[key] is not None:
            yield from unknown_keys(value, known[key], f"{where}.{key}", is_complete)


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
