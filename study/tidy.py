"""Keeps a study's folder small: of ended trials, the checkpoints of the best alone."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Values = tuple[float, ...]
"""A trial's objectives, in the study's order; more is better."""


class Checkpoints:
    """Removes the checkpoints of trials that have ended, but for the `keep` best and for failed ones.

    A trial that failed may go on from its checkpoint when it is tried again.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._best: dict[str, Values] = {}

    def ended(self, row: Mapping[str, Any], values: Values | None) -> None:
        """Take note of a trial whose row is in the table; `values` are none unless it completed."""
        name = row["trial_id"]
        if row["state"] == "FAILED":
            return
        if values is None:
            self._remove(name)
        elif (self._folder / name).is_dir():
            self._best[name] = values
            if len(self._best) > self._keep:
                worst = _worst(self._best)
                del self._best[worst]
                self._remove(worst)

    def _remove(self, name: str) -> None:
        shutil.rmtree(self._folder / name, ignore_errors=True)


def _worst(trials: Mapping[str, Values]) -> str:
    """The trial that most others dominate; of several the one whose first objective is least."""

    def rank(name: str) -> tuple[int, float, str]:
        values = trials[name]
        return -sum(_dominates(other, values) for other in trials.values()), values[0], name

    return min(trials, key=rank)


def _dominates(first: Iterable[float], second: Iterable[float]) -> bool:
    """Whether the first is at least as good in all objectives and better in one."""
    pairs = list(zip(first, second, strict=True))
    return all(one >= other for one, other in pairs) and any(one > other for one, other in pairs)
