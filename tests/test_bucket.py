"""The command line with --out in object storage: what it refuses, says and leaves in the bucket."""

import json
import os
import sys

import pytest

from analysis import report
from study import claim, store
from study.config import ClusterError
from study.files import Bucket, FilesError
from study.mirror import Mirror, local_folder
from tests.command_line import refused, start
from tests.command_line import tuner as tuner  # a fixture
from tests.storage import credentials as credentials  # a fixture
from tests.storage import server as server  # a fixture
from tests.studies import trial

SMOKE = "--space smoke --preset laptop --out"

pytestmark = pytest.mark.usefixtures("credentials")


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pushing(tuner, monkeypatch):
    """The fake tuner, which brings to the bucket what the true one would first of all."""
    run_study = tuner.run_study

    def push(study):
        Mirror(study.out, study.bucket_url).know_run()
        return run_study(study)

    monkeypatch.setattr(sys.modules["study.tuner"], "run_study", push)
    return tuner


def test_a_study_starts_in_a_folder_of_this_machine_and_says_where_it_is_kept(pushing, capsys, caplog):
    caplog.set_level("INFO")
    url = "s3://studies/cli/begun"
    assert start(f"{SMOKE} {url}") == 0
    assert (pushing.study.bucket_url, pushing.study.name) == (url, "begun")
    assert pushing.study.out == local_folder(url)
    assert f"results: {url}/results" in caplog.text
    assert f"python analysis/report.py {url}" in caplog.text
    kept = {entry.name: Bucket(url).read(entry.name).decode() for entry in Bucket(url).entries()}
    assert set(kept) == {"study.json", "manifest.json"}
    assert json.loads(kept["study.json"])["command"][-1] == url
    written = "".join(kept.values()) + caplog.text + capsys.readouterr().out
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in written
    assert os.environ["AWS_ACCESS_KEY_ID"] not in written


def test_a_study_that_the_bucket_holds_is_resumed_from_it_alone(pushing, capsys, tmp_path, monkeypatch):
    url = "s3://studies/cli/held"
    assert start(f"{SMOKE} {url}") == 0
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path / "elsewhere"))
    assert refused(capsys, f"{SMOKE} {url}").startswith(f"{url} already holds a study; add --resume")
    assert start(f"{SMOKE} {url} --resume") == 0
    assert len(json.loads((local_folder(url) / "manifest.json").read_text())["resumed"]) == 1
    sentence = refused(capsys, f"{SMOKE} {url} --resume --seed 3")
    assert sentence.startswith(f"the study in {url} has seed 0, not 3")


def test_a_folder_that_was_left_here_is_no_study_of_the_bucket(pushing):
    url = "s3://studies/cli/left"
    (local_folder(url) / "results" / "trials").mkdir(parents=True)
    (local_folder(url) / "results" / "trials" / "old-r0.parquet").write_text("")
    assert start(f"{SMOKE} {url}") == 0
    assert not (local_folder(url) / "results").exists()


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("s3://key:hidden@studies/run", "s3://studies/run must come without credentials"),
        ("s3://studies", "s3://studies names no folder in a bucket"),
        ("ftp://studies/run", "ftp://studies/run is in no storage that is known"),
        ("s3://missing/run", "cannot write s3://missing/run/"),
    ],
)
def test_refuses_what_cannot_be_before_anything_starts(tuner, capsys, out, sentence):
    told = refused(capsys, f"{SMOKE} {out}")
    assert told.startswith(sentence)
    assert "hidden" not in told
    assert tuner.studies == []


def test_refuses_a_folder_that_holds_something_else_and_a_study_that_is_not_there(capsys):
    Bucket("s3://studies/cli/other").write("notes.txt", b"mine")
    assert "is not empty and holds no study" in refused(capsys, f"{SMOKE} s3://studies/cli/other")
    assert Bucket("s3://studies/cli/other").read("notes.txt") == b"mine"
    told = refused(capsys, f"{SMOKE} s3://studies/cli/none --resume")
    assert told.startswith("nothing to resume: there is no s3://studies/cli/none/study.json")


def test_a_claim_of_a_process_that_was_killed_before_its_study_began_takes_no_folder(pushing, monkeypatch):
    monkeypatch.setattr(claim, "BEAT_S", 0.1)
    url = "s3://studies/cli/killed"
    Bucket(url).write("claim.json", b'{"owner": "process 7", "beats": 1}')
    assert start(f"{SMOKE} {url}") == 0
    assert "study.json" in {entry.name for entry in Bucket(url).entries()}


def test_a_study_for_which_a_cluster_has_no_room_leaves_the_folder_free(tuner, capsys):
    url = "s3://studies/cli/room"
    tuner.error = ClusterError("the cluster has no room")
    assert refused(capsys, f"{SMOKE} {url}") == "the cluster has no room"
    assert Bucket(url).entries() == []
    tuner.error = None
    assert start(f"{SMOKE} {url}") == 0


def test_a_study_that_is_interrupted_before_it_trains_is_in_the_bucket(tuner):
    url = "s3://studies/cli/early"
    tuner.error = KeyboardInterrupt()
    assert start(f"{SMOKE} {url}") == 130
    tuner.error = None
    assert start(f"{SMOKE} {url} --resume") == 0


def test_storage_that_is_lost_ends_a_study_that_can_go_on(tuner, capsys):
    tuner.error = FilesError("cannot write s3://studies/x: storage does not answer")
    assert start(f"{SMOKE} s3://studies/cli/lost") == 1
    told = capsys.readouterr().err
    assert (
        told == "error: cannot write s3://studies/x: storage does not answer; "
        "the same command with --resume goes on\n"
    )


def test_a_dry_run_names_the_url_and_writes_nothing(capsys):
    url = "s3://studies/cli/dry"
    assert start(f"{SMOKE} {url} --dry-run") == 0
    assert url in capsys.readouterr().out
    assert Bucket(url).entries() == []


def test_a_dry_run_knows_the_trials_of_the_bucket_and_of_no_other_study(
    pushing, capsys, tmp_path, monkeypatch
):
    url = "s3://studies/cli/counted"
    row = trial("0-r0", device_s=60.0)
    store.write_trial(local_folder(url), row, {})  # an earlier study's, of which the bucket has nothing more
    assert start(f"{SMOKE} {url} --dry-run") == 0
    assert "for the base config, by a rule" in capsys.readouterr().out
    assert start(f"{SMOKE} {url}") == 0
    store.write_trial(local_folder(url), row, {})
    store.write_measurements(local_folder(url), "0-r0", [])
    Mirror(local_folder(url), url).push("results/measurements/0-r0.parquet", "results/trials/0-r0.parquet")
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path / "elsewhere"))
    assert start(f"{SMOKE} {url} --resume --dry-run") == 0
    assert "like the 1 complete here" in capsys.readouterr().out
    assert not local_folder(url).exists()


def test_a_report_of_what_is_not_there_is_refused(capsys):
    assert report.main(["s3://studies/cli/nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
