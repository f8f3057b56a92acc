"""A study in object storage, nodes simulated by folders: whatever vanishes, nothing is lost or doubled."""

import contextlib
import dataclasses
import json
import os
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.tune.search import Searcher

from analysis.api import load
from mmjsd.metrics import Score
from study import record, store
from study.config import ClusterError
from study.files import Bucket, FilesError
from study.mirror import Mirror, local_folder, local_run
from study.search import Search
from study.trial import Measurement, Rescue
from study.tuner import _StudySearcher
from study.worker import train_mirrored
from tests.storage import credentials as credentials  # a fixture
from tests.storage import server as server  # a fixture
from tests.studies import LINE, measurement, study, trial

EPOCHS = 3


class Vanished(BaseException):
    """Ends a process at once, as SIGKILL does: nothing of ours catches it."""


@pytest.fixture(autouse=True)
def _setting(credentials, monkeypatch, tmp_path):
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record, "run_pack", run_pack)
    monkeypatch.setattr(record, "load_checkpoint", load_checkpoint)


def save(value, epoch, folder, notes, half=False):
    """A checkpoint as mmjsd.train writes it: three files in a folder that appears whole, and alone."""
    place = f"epoch-{epoch:06d}" + half * "_000007"
    temporary = folder / f".{place}"
    temporary.mkdir(parents=True)
    for name in ("model.safetensors", "training.safetensors"):
        (temporary / name).write_bytes(bytes([value % 256]) * 100)
    (temporary / "epoch.json").write_text(
        json.dumps({"epoch": epoch, "notes": notes, "value": value, "half": half})
    )
    for other in folder.glob("epoch-*"):
        shutil.rmtree(other)
    os.replace(temporary, folder / place)


def load_checkpoint(path):
    return None, SimpleNamespace(epoch=json.loads((path / "epoch.json").read_text())["epoch"])


def run_pack(configs, resumes, device="cpu", objectives=(), is_warned=None):
    yield from zip(*[run_trial(*each, is_warned) for each in zip(configs, resumes, strict=True)], strict=True)


def run_trial(config, resume, is_warned):
    """Takes the place of training: what an epoch shows depends on all that came before, as there."""
    epoch, value, half = 0, config.seed % 1009, False
    if resume is not None:
        kept = json.loads((resume / "epoch.json").read_text())
        assert (resume / "model.safetensors").read_bytes() == bytes([kept["value"] % 256]) * 100
        epoch, value, half = kept["epoch"], kept["value"], kept["half"]
    while epoch < EPOCHS:
        if not half:
            value = 31 * value % 1009
            if is_warned and is_warned():
                yield Rescue(partial(save, value, epoch, half=True))
                is_warned()  # what it was warned of may happen
        half = False
        epoch += 1
        value = (value + epoch) % 1009
        scores = {"train": [Score("loss", value, None, 1)], "validation": [_coherence(value)]}
        if epoch == EPOCHS:
            scores["test"] = [_coherence(value + 1)]
        yield Measurement(epoch, scores, torch.ones(1), 0.1, 0.1, 10, partial(save, value, epoch), _pictures)


def _pictures():
    return {"overview": np.zeros((2, 2, 3), np.uint8)}


def _coherence(value):
    return Score("mean_coherence", value / 1009, 0.01, 100, posterior="product")


def vanish():
    raise Vanished


class Nodes:
    """Runs a study as Ray would, each trial on the next of some nodes; `fail` may end a process."""

    def __init__(self, folder, url, nodes=3, fail=lambda: None, **changes):
        self.out = folder / "head"
        self.out.mkdir(parents=True, exist_ok=True)
        self.study = dataclasses.replace(study(self.out, LINE, "tpe", trials=2), bucket_url=url, **changes)
        self.url, self.folder, self.nodes, self.fail = url, folder, nodes, fail
        self.trained = []

    def run(self, *, is_new):
        mirror = Mirror(self.out, self.url)
        mirror.open(is_new=is_new)
        if is_new:
            (self.out / "study.json").write_text('{"study": "test", "objectives": ["mean_coherence"]}')
            (self.out / "manifest.json").write_text("{}")
        mirror.know_run()
        searcher = _StudySearcher(Search(self.study), mirror)
        while (served := searcher.suggest("name")) != Searcher.FINISHED:
            self.train(served["trials"])
            searcher.on_trial_complete("name")
        mirror.compact()

    def train(self, trials):
        self.trained += [trial.trial_id for trial in trials]
        place = self.folder / f"node{len(self.trained) % self.nodes}"
        there = [dataclasses.replace(trial, out=place) for trial in trials]
        train_mirrored(there, "cpu", lambda values: self.fail(), Mirror(place, self.url))


def numbers(run):
    tables = store.read(local_run(run))
    rows = tables.measurements.to_pylist()
    keys = ("trial_id", "epoch", "split", "metric", "given", "target")
    values = {tuple(row[key] for key in keys): row["value"] for row in rows}
    assert len(values) == len(rows)
    trials = tables.trials.to_pylist()
    states = {row["trial_id"]: (row["state"], row["objective_value"]) for row in trials}
    assert len(states) == len(trials)
    return values, states


@pytest.fixture
def expected(tmp_path):
    """What the study gives in a folder, undisturbed."""
    out = tmp_path / "undisturbed"
    nodes = Nodes(tmp_path / "folder", None)
    nodes.study = dataclasses.replace(nodes.study, out=out)
    nodes.out = out
    out.mkdir()
    nodes.train = lambda trials: train_mirrored(trials, "cpu", lambda values: None, Mirror(out, None))
    nodes.run(is_new=True)
    values, states = numbers(out)
    assert len(states) == 4
    assert {state for state, _ in states.values()} == {"COMPLETE"}
    return values, states


@pytest.mark.parametrize("pack", [1, 2])
def test_gives_what_a_folder_does(tmp_path, expected, pack):
    url = f"s3://studies/plain-{pack}"
    Nodes(tmp_path, url, pack=pack).run(is_new=True)
    assert numbers(url) == expected
    names = {entry.name for entry in Bucket(url).entries()}
    for trial_id in expected[1]:
        assert f"checkpoints/{trial_id}/epoch-{EPOCHS:06d}/model.safetensors" in names
        assert f"samples/{trial_id}/overview.png" in names
        assert any(name.startswith(f"tensorboard/{trial_id}/") for name in names)
    assert not [name for name in names if "epoch-000001" in name or "epoch-000002" in name]
    assert [name for name in names if name.startswith("results/measurements/")] == [
        "results/measurements/compacted.parquet"
    ]


@pytest.mark.parametrize("cases", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_survives_the_loss_of_everything_at_any_write(tmp_path, expected, monkeypatch, cases):
    """Before or in the middle of a write, study and nodes vanish with their folders; a new head resumes."""
    whole, write = 0, Bucket.write

    def count(self, name, content):
        nonlocal whole
        whole += 1
        write(self, name, content)

    monkeypatch.setattr(Bucket, "write", count)
    Nodes(tmp_path / "whole", f"s3://studies/whole-{cases}").run(is_new=True)
    assert whole > 40
    for place in range(3, whole, max(1, whole // cases)):
        left = place

        def vanish(self, name, content):
            nonlocal left
            left -= 1
            if left < 0:
                raise Vanished
            write(self, name, content)

        url, folder = f"s3://studies/lost-{cases}-{place}", tmp_path / f"lost-{place}"
        monkeypatch.setattr(Bucket, "write", vanish)
        first = Nodes(folder, url)
        with contextlib.suppress(Vanished):
            first.run(is_new=True)
        monkeypatch.setattr(Bucket, "write", write)
        shutil.rmtree(folder)  # head and nodes are gone
        is_new = Bucket(url).read("study.json") is None
        ended = set() if is_new else {entry.name for entry in Bucket(url).entries("results/trials")}
        second = Nodes(folder / "new", url)
        second.run(is_new=is_new)
        assert numbers(url) == expected, f"write {place} of {whole}"
        assert not {f"results/trials/{name}.parquet" for name in second.trained} & ended


def test_a_trial_goes_on_elsewhere_from_what_is_in_the_bucket(tmp_path, expected):
    """A node that has an older state, and one that has a newer one which it could not bring any more."""
    url = "s3://studies/elsewhere"
    nodes = Nodes(tmp_path, url)
    mirror = Mirror(nodes.out, url)
    mirror.open(is_new=True)
    trial = Search(nodes.study).next()
    seen = []

    def train(node, stop_at):
        there = dataclasses.replace(trial, out=tmp_path / node)

        def report(values):
            seen.append((node, values["epoch"]))
            if values["epoch"] == stop_at:
                raise Vanished

        with contextlib.suppress(Vanished):
            train_mirrored([there], "cpu", report, Mirror(tmp_path / node, url))

    train("old", 1)
    train("new", 2)
    newer = tmp_path / "old" / "checkpoints" / trial.trial_id
    shutil.rmtree(newer / "epoch-000001")
    save(5, 3, newer, {"epoch": 3})
    train("old", 9)
    assert seen == [("old", 1), ("new", 2), ("old", 3)]
    rows = store.read_measurements(tmp_path / "old", trial.trial_id)
    values = {(row["epoch"], row["split"], row["metric"]): row["value"] for row in rows}
    keys = {key: value for key, value in expected[0].items() if key[0] == trial.trial_id}
    assert values == {key[1:4]: value for key, value in keys.items()}


def test_a_trial_that_was_warned_goes_on_from_within_its_epoch(tmp_path, expected):
    url = "s3://studies/warned"
    nodes = Nodes(tmp_path, url)
    Mirror(nodes.out, url).open(is_new=True)
    trial = Search(nodes.study).next()
    answers = iter([lambda: False, lambda: True, vanish])
    doomed, other = (dataclasses.replace(trial, out=tmp_path / node) for node in ("doomed", "other"))
    with contextlib.suppress(Vanished):
        mirror = Mirror(doomed.out, url)
        train_mirrored([doomed], "cpu", lambda _: None, mirror, lambda: next(answers)())
    names = {entry.name.split("/")[2] for entry in Bucket(url).entries(f"checkpoints/{trial.trial_id}")}
    assert names == {"epoch-000001_000007"}
    seen = []
    train_mirrored([other], "cpu", lambda values: seen.append(values["epoch"]), Mirror(other.out, url))
    assert seen == [2, 3]
    rows = store.read_measurements(other.out, trial.trial_id)
    values = {(row["epoch"], row["split"], row["metric"]): row["value"] for row in rows}
    keys = {key: value for key, value in expected[0].items() if key[0] == trial.trial_id}
    assert values == {key[1:4]: value for key, value in keys.items()}


def test_storage_that_fails_does_not_fail_a_trial(tmp_path, monkeypatch):
    url = "s3://studies/failing"
    nodes = Nodes(tmp_path, url)
    Mirror(nodes.out, url).open(is_new=True)
    trial = dataclasses.replace(Search(nodes.study).next(), out=tmp_path / "node")

    def fail(self, name, content):
        raise FilesError("cannot write")

    monkeypatch.setattr(Bucket, "write", fail)
    with pytest.raises(FilesError, match="cannot write"):
        train_mirrored([trial], "cpu", lambda values: None, Mirror(tmp_path / "node", url))
    assert store.read_trial(tmp_path / "node", trial.trial_id) is None
    assert (tmp_path / "node" / "checkpoints" / trial.trial_id).is_dir()


def test_checkpoints_that_the_study_drops_go_from_the_bucket(tmp_path):
    url = "s3://studies/tidy"
    Nodes(tmp_path, url, keep_checkpoints=1).run(is_new=True)
    kept = {entry.name.split("/")[1] for entry in Bucket(url).entries("checkpoints")}
    states = numbers(url)[1]
    assert kept == {max(states, key=lambda name: states[name][1])}


def test_a_retried_trial_loses_its_old_row_and_a_diverged_one_its_checkpoint(tmp_path, expected):
    url = "s3://studies/retried"
    Nodes(tmp_path / "first", url).run(is_new=True)
    name = min(expected[1])
    copy = tmp_path / "copy"
    there = Mirror(copy, url)
    there.fetch(("results/",))
    row = store.read_trial(copy, name)
    store.write_trial(copy, {**row, "state": "DIVERGED", "objective_value": None}, {"objective.beta": 1.0})
    there.push(f"results/trials/{name}.parquet")
    second = Nodes(tmp_path / "second", url, retry=("diverged",))
    second.fail = vanish
    with pytest.raises(Vanished):
        second.run(is_new=False)
    names = {entry.name for entry in Bucket(url).entries()}
    assert f"results/trials/{name}.parquet" not in names
    assert {each.split("/")[2] for each in names if each.startswith(f"checkpoints/{name}/")} == {
        "epoch-000001"
    }
    Nodes(tmp_path / "third", url).run(is_new=False)
    assert numbers(url)[1][name] == expected[1][name]


def test_a_report_reads_it_and_only_what_is_new(tmp_path, monkeypatch):
    url = "s3://studies/report"
    Nodes(tmp_path, url).run(is_new=True)
    read, write = load(url), Mirror._write
    assert len(read.trials) == 4
    written = []
    monkeypatch.setattr(
        Mirror, "_write", lambda self, name, *rest: written.append(name) or write(self, name, *rest)
    )
    load(url)
    assert {name for name in written if "/" in name} == set()
    assert not (local_run(url) / "checkpoints").exists()
    shutil.rmtree(local_run(url) / "samples")
    load(url)
    assert len([name for name in written if name.startswith("samples/")]) == 4


def test_each_url_has_a_folder_of_its_own_that_ends_with_the_studys_name(tmp_path):
    places = [local_folder(f"s3://{each}") for each in ("a/run", "b/run", "a/deep/run")]
    assert len(set(places)) == 3
    assert {place.name for place in places} == {"run"}
    assert all(tmp_path in place.parents for place in places)
    assert local_folder("s3://a/run/") == places[0]


def test_two_workers_of_a_node_may_fetch_at_once(tmp_path):
    url = "s3://studies/two"
    nodes = Nodes(tmp_path, url)
    nodes.run(is_new=True)
    trial_id = nodes.trained[0]
    first, second = (Mirror(tmp_path / "shared", url) for _ in range(2))
    first.fetch_trial(trial_id)
    checkpoint = tmp_path / "shared" / "checkpoints" / trial_id / f"epoch-{EPOCHS:06d}" / "model.safetensors"
    before = checkpoint.stat().st_ino
    second.fetch_trial(trial_id)
    assert checkpoint.stat().st_ino == before  # not taken away under the first


def test_a_checkpoint_that_is_being_fetched_is_none_that_the_study_has_dropped(tmp_path, monkeypatch):
    url, names = (
        "s3://studies/fetched",
        {f"checkpoints/x-r0/epoch-000002/{each}" for each in ("a", "epoch.json")},
    )
    for name in names:
        Bucket(url).write(name, b"{}")
    older = tmp_path / "checkpoints" / "x-r0" / "epoch-000001"
    older.mkdir(parents=True)
    driver, read_all = Mirror(tmp_path, url), Bucket.read_all
    driver.know_run()

    def meanwhile(self, names):
        driver.push_run()
        return read_all(self, names)

    monkeypatch.setattr(Bucket, "read_all", meanwhile)
    Mirror(tmp_path, url).fetch_trial("x-r0")  # on the machine of the study's process
    assert {entry.name for entry in Bucket(url).entries()} == set(driver._names("")) == names
    assert not older.exists()


def test_a_report_that_is_made_while_a_study_ends_reads_all(tmp_path, monkeypatch):
    url, trials = "s3://studies/ending", [f"abc-r{number}" for number in range(4)]
    for name in trials:
        store.write_measurements(tmp_path, name, [measurement(0.5, name, 1)])
        store.write_trial(tmp_path, trial(name), {})
    driver, read_all = Mirror(tmp_path, url), Bucket.read_all
    driver.push(*driver._names("results"))

    def meanwhile(self, names):
        monkeypatch.setattr(Bucket, "read_all", read_all)
        driver.compact()
        return read_all(self, names)

    there = Mirror(tmp_path / "report", url)
    monkeypatch.setattr(Bucket, "read_all", meanwhile)
    there.fetch(("results/",))
    rows = store.read(there.folder).measurements.to_pylist()
    assert [row["trial_id"] for row in rows] == trials


def test_what_loggers_were_told_goes_with_the_study(tmp_path):
    url, note = "s3://studies/told", "logged/mlflow/abc-r0"
    for number, push in enumerate((Mirror.push_run, Mirror.finish)):
        driver = Mirror(tmp_path / f"{number}", url)
        (driver.folder / note).parent.mkdir(parents=True)
        (driver.folder / note).write_text(f"at {number}")
        (driver.folder / "results" / "trials").mkdir(parents=True)
        push(driver)
        other = Mirror(tmp_path / f"other{number}", url)
        other.folder.mkdir()
        other.open(is_new=False)
        assert (other.folder / note).read_text() == f"at {number}"


def test_what_a_session_finds_in_the_bucket_is_not_brought_again(tmp_path, monkeypatch):
    url = "s3://studies/once"
    for session in ("first", "second", "third"):
        driver = Mirror(tmp_path, url)
        driver.open(is_new=session == "first")
        note = tmp_path / "logged" / "mlflow" / "abc-r0"
        note.parent.mkdir(parents=True, exist_ok=True)
        if session == "first":
            note.write_text("ended")
        if session == "third":
            monkeypatch.setattr(Bucket, "write", lambda *_: pytest.fail("written again"))
        driver.push_run()
        Mirror(tmp_path, url).know_run()


def test_notes_of_a_checkpoint_that_a_trial_started_anew_from_are_dropped(tmp_path):
    url, place = "s3://studies/anew", "checkpoints/abc-r0/epoch-000003"
    driver, node = Mirror(tmp_path / "driver", url), Mirror(tmp_path / "node", url)
    for name in ("model.safetensors", "epoch.json"):
        (node.folder / place).mkdir(parents=True, exist_ok=True)
        (node.folder / place / name).write_text("{}")
    node.push_trial("abc-r0")
    driver.fetch_notes("abc-r0")
    assert driver._names("checkpoints") == [f"{place}/epoch.json"]
    (node.folder / place).rename(node.folder / place.replace("3", "1"))
    node.push_trial("abc-r0")
    driver.ended("abc-r0")
    assert driver._names("checkpoints") == [f"{place.replace('3', '1')}/epoch.json"]


def test_without_a_url_does_nothing(tmp_path):
    mirror = Mirror(tmp_path, None)
    mirror.open(is_new=True)
    mirror.know_run()
    mirror.push_run()
    mirror.ended("x")
    mirror.push_row("x")
    mirror.push_trial("x")
    assert list(tmp_path.iterdir()) == []
    assert local_run(tmp_path) == tmp_path


def test_a_node_that_does_not_see_the_studys_folder_says_so(tmp_path):
    mirror = Mirror(tmp_path, None)
    with pytest.raises(
        ClusterError, match=f"does not see the study's folder {tmp_path}; start again with an"
    ):
        mirror.fetch_trial("x")
    (tmp_path / "study.json").write_text("{}")
    mirror.fetch_trial("x")


def test_a_node_that_has_another_study_in_that_place_does_not_see_the_folder(tmp_path):
    file = tmp_path / "study.json"
    file.write_text('{"started_at": "2026-01-02", "trials": 1}')
    mirror = Mirror(tmp_path, None)
    mirror.know_run()
    file.write_text('{"started_at": "2026-01-02", "trials": 2}')  # it has grown
    mirror.fetch_trial("x")
    file.write_text('{"started_at": "2026-01-01", "trials": 1}')
    with pytest.raises(ClusterError, match="does not see the study's folder"):
        mirror.fetch_trial("x")


def test_reads_what_is_measured_elsewhere_and_leaves_what_is_written_here(tmp_path):
    url, name = "s3://studies/mirror/measured", "results/measurements/x-r0.parquet"
    for epochs, folder in ((1, "there"), (2, "here")):
        store.write_measurements(tmp_path / folder, "x-r0", [measurement(0.5, "x-r0", epochs)] * epochs)
    Bucket(url).write(name, (tmp_path / "there" / name).read_bytes())
    here = Mirror(tmp_path / "here", url)
    before = (tmp_path / "here" / name).read_bytes()
    assert len(here.read_measurements("x-r0")) == 1
    assert (tmp_path / "here" / name).read_bytes() == before
    assert here.read_measurements("none-r0") == []
