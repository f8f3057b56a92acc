"""A command line in the place of a user's, with a machine, data and a tuner that are played."""

import os
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest

from mmjsd import data as datasets
from study import manifest
from study.run import main

BOTH = "--objectives mean_coherence log_likelihood"
"""Options of a study with two objectives."""


@dataclass
class Tuner:
    """Takes the place of study.tuner: notes the studies that it is given and says how they ended."""

    studies: list
    complete: int = 4
    stopped: int = 0
    diverged: int = 0
    failed: int = 0
    missing: int = 0
    budget_is_spent: bool = False
    error: BaseException | None = None

    def run_study(self, study):
        self.studies.append(study)
        if self.error:
            raise self.error
        return self

    @property
    def study(self):
        return self.studies[-1]


@pytest.fixture(autouse=True)
def tuner(monkeypatch, tmp_path):
    """A folder to run in, a machine of four CPUs without GPU, prepared data, neither Ray nor torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(manifest, "gpus", list)
    prepared = SimpleNamespace(digest="0123abcd")
    monkeypatch.setattr(datasets, "load", lambda name, folder, progress=None: prepared)
    fake, module, classifiers = Tuner([]), ModuleType("study.tuner"), ModuleType("mmjsd.classifiers")
    module.run_study = fake.run_study
    classifiers.load_classifiers = lambda data, progress: {}
    monkeypatch.setitem(sys.modules, "study.tuner", module)
    monkeypatch.setitem(sys.modules, "mmjsd.classifiers", classifiers)
    return fake


def start(line):
    """The exit code of a command line whose words hold no spaces."""
    return main(line.split())


def refused(capsys, line):
    """The sentence with which a command line is refused."""
    assert start(line) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip()
