"""One process at a time works on a study in object storage, which has no locks."""

import dataclasses
import json
import signal
import threading
import time
from pathlib import Path

import pytest

from study import claim
from study.claim import claimed
from study.files import Bucket
from tests.storage import credentials as credentials  # a fixture
from tests.storage import server as server  # a fixture
from tests.studies import study


@pytest.fixture(autouse=True)
def _quick(credentials, monkeypatch):
    monkeypatch.setattr(claim, "BEAT_S", 0.3)
    monkeypatch.setattr(claim, "SETTLED_S", 0.05)


def on(node, folder, url):
    """The study, as a node works on it."""
    return dataclasses.replace(study(folder / node), bucket_url=url)


def test_another_node_is_refused_while_one_works_and_may_go_on_afterwards(tmp_path, monkeypatch):
    url = "s3://studies/one-at-a-time"
    with claimed(on("first", tmp_path, url)):
        refused = (
            r"another process is at work on the study in .*, as process \d+ on .* says; wait until it ends"
        )
        with pytest.raises(ValueError, match=refused), claimed(on("second", tmp_path, url)):
            pass
        assert Bucket(url).read("claim.json") is not None
    monkeypatch.setattr(claim, "BEAT_S", 5.0)
    started = time.monotonic()
    with claimed(on("second", tmp_path, url)):
        assert time.monotonic() - started < 2 * claim.BEAT_S  # nobody's sign of life was waited for
    assert Bucket(url).read("claim.json") is None


@pytest.mark.parametrize("left", [b'{"owner": "process 7 on gone (00)", "beats": 3}', b"{", b'{"beats": 1}'])
def test_a_claim_without_signs_of_life_is_taken_over(tmp_path, left):
    url = "s3://studies/killed"
    Bucket(url).write("claim.json", left)
    with claimed(on("other", tmp_path, url)):
        assert "gone" not in json.loads(Bucket(url).read("claim.json"))["owner"]


def test_one_that_has_slept_meanwhile_is_interrupted(tmp_path, monkeypatch):
    url, interrupted = "s3://studies/asleep", threading.Event()
    monkeypatch.setattr(claim.os, "kill", lambda pid, number: number == signal.SIGINT and interrupted.set())
    with claimed(on("asleep", tmp_path, url)):
        Bucket(url).write("claim.json", b'{"owner": "process 8 on other (01)", "beats": 1}')
        assert interrupted.wait(20)
    assert b"other" in Bucket(url).read("claim.json")


def test_of_two_that_start_at_once_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "SETTLED_S", 1.0)
    url, both, outcomes = "s3://studies/at-once", threading.Barrier(2), []

    def work(node):
        both.wait()
        try:
            with claimed(on(node, tmp_path, url)):
                time.sleep(2)
                outcomes.append("worked")
        except ValueError:
            outcomes.append("refused")

    threads = [threading.Thread(target=work, args=(node,)) for node in ("left", "right")]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(outcomes) == ["refused", "worked"]


def test_one_that_is_refused_leaves_the_folder_to_who_works_there(tmp_path, monkeypatch):
    """Both find none; the lock of the first comes between the other's look and its try."""
    first, second = study(tmp_path / "new"), study(tmp_path / "new")
    there = Path.exists
    with claimed(first):
        monkeypatch.setattr(Path, "exists", lambda path: path != second.out and there(path))
        with pytest.raises(ValueError, match="another process is at work"), claimed(second):
            pass
        monkeypatch.undo()
        assert (first.out / ".lock").exists()
        (first.out / "study.json").touch()
    assert first.out.exists()


def test_a_new_folder_in_which_nothing_came_is_removed_and_an_old_one_is_not(tmp_path):
    own = study(tmp_path / "new")
    own.out.rmdir()
    with claimed(own):
        assert own.out.exists()
    assert not own.out.exists()
    own.out.mkdir()
    with claimed(own):
        pass
    assert own.out.exists()
