"""optuna-dashboard shows a study that runs: served from its journal, seen in a headless browser."""

import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest

from study.search import Search
from study.space import Choice, SearchSpace, Simplex
from tests.nodes import free_port
from tests.studies import end, study

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

SPACE = SearchSpace({"objective.weights": Simplex(4), "objective.beta": Choice((1.0, 2.5))})


@pytest.fixture
def running(tmp_path):
    """A study with two configs that have ended and one that has reported and runs."""
    search = Search(study(tmp_path / "run", SPACE, "tpe", trials=3, replicates=1))
    for value in (0.25, 0.75):
        end(search, search.next(), value)
    trial = search.next()
    search.reported(trial, 1, 0.5)
    return tmp_path / "run" / "optuna.journal", trial


@pytest.fixture
def address(running):
    """Where a dashboard serves the study's journal, on this machine alone."""
    pytest.importorskip("optuna_dashboard")
    port = free_port()
    command = [sys.executable, "-m", "optuna_dashboard._cli", str(running[0]), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield wait_for(f"http://127.0.0.1:{port}/dashboard")
    finally:
        server.kill()
        server.wait()


def wait_for(address):
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        else:
            return address


def page(address, folder):
    """A page once its scripts have run."""
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,2400",
            f"--user-data-dir={folder}", "--virtual-time-budget=20000", "--dump-dom", address,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def texts(dom):
    """What a page says, piece by piece."""
    return re.findall(r">([^<>]+)<", re.sub(r"<(script|style).*?</\1>", "", dom, flags=re.S))


def test_a_running_study_is_seen_with_values_states_and_weights(running, address, tmp_path):
    said = texts(page(f"{address}/studies/0/trials?numbers=1", tmp_path / "profile"))
    assert (said.count("Running"), said.count("Best Trial")) == (
        1,
        2,
    )  # in the list, and beside the trial shown
    assert {"3 Trials", "0.75"} <= set(said)
    assert any(each.startswith("objective.beta ") for each in said)

    trial = running[1]
    said = texts(page(f"{address}/studies/0/trials?numbers=2", tmp_path / "profile"))
    for name, weight in zip(
        ("mnist", "svhn", "text", "prior"), trial.params["objective.weights"], strict=True
    ):
        assert f"objective.weights.{name} {weight}" in said


def test_its_history_is_drawn(address, tmp_path):
    dom = page(f"{address}/studies/0", tmp_path / "profile")
    assert {"History", "Timeline", "Intermediate values"} <= set(texts(dom))
    assert dom.count('class="main-svg"') > 4
    assert re.search(r'class="points"[^>]*><path', dom)  # a mark for a config that has ended
