"""Studies on Ray nodes that ask for a token, and in object storage: killed, moved, resumed, reported."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from analysis.report import main as report
from study import store
from study.files import Bucket
from study.worker import MAX_FAILURES
from tests.nodes import RAY, Nodes, kill_tree, trains, wait_for
from tests.storage import Server
from tests.test_study import measurements, trials

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A cache that the module's studies share, a token, and settings of a user that are nobody's."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(64 * "b")
    token.chmod(0o600)
    server = Server()
    server.make_bucket("studies")
    yield {
        **os.environ,
        "MMJSD_CACHE": str(tmp_path_factory.mktemp("cache")),
        "RAY_AUTH_MODE": "token",
        "RAY_raylet_start_wait_time_s": "120",  # on a machine that is busy
        "RAY_AUTH_TOKEN_PATH": str(token),
        "AWS_ACCESS_KEY_ID": "key-that-nobody-has",
        "AWS_SECRET_ACCESS_KEY": "s3cret-that-nobody-has",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{server.address}",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",  # jobs run the python that they find
    }
    server.stop()


@pytest.fixture(scope="module")
def nodes(environment):
    made = Nodes(environment)
    yield made
    made.stop()


def command(out, *options):
    return [sys.executable, "study/run.py", "--space", "smoke", "--out", str(out), *options]


def run(environment, out, *options):
    return subprocess.run(
        command(out, *options), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


TWO = ("--preset", "laptop", "--gpus-per-worker", "0", "--workers", "2", "--trials", "1", "--replicates", "1")
LONG = ("--training.epochs", "4", "--data.samples_per_epoch", "3000")


def test_a_trial_whose_node_is_killed_in_mid_epoch_ends_once_with_equal_values(nodes, environment, tmp_path):
    expected, out = tmp_path / "undisturbed", tmp_path / "killed"
    options = (*TWO, *LONG, "--address", nodes.address)
    said = run(environment, expected, *options)
    assert said.returncode == 0, said.stdout + said.stderr
    process = subprocess.Popen(command(out, *options), cwd=ROOT, env=environment)
    wait_for(lambda: list(out.glob("checkpoints/*/epoch-000002")), process, 400)
    victim = next(each for each in nodes.processes[1:] if trains(each))
    kill_tree(victim)
    assert process.wait(600) == 0
    (row,) = store.read(out).trials.to_pylist()
    assert (row["state"], row["epochs"], row["workers"]) == ("COMPLETE", 4, 2)
    assert measurements(out) == measurements(expected)
    nodes.add()


def test_a_trial_that_is_preempted_more_often_than_it_may_fail_is_not_failed(nodes, environment, tmp_path):
    out = tmp_path / "preempted"
    options = (*TWO, "--training.epochs", "10", "--data.samples_per_epoch", "30000")
    process = subprocess.Popen(command(out, *options, "--address", nodes.address), cwd=ROOT, env=environment)

    saved = set()

    def watch():
        while process.poll() is None:
            saved.update(path.name for path in out.glob("checkpoints/*/epoch-*"))
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()

    def epoch():
        return max((int(name[6:12]) for name in list(saved)), default=0)

    def train_an_epoch():
        before = epoch()
        wait_for(lambda: epoch() > before, process, 400)

    for _ in range(MAX_FAILURES + 1):
        train_an_epoch()
        victim = next(each for each in nodes.processes[1:] if each.poll() is None and trains(each))
        nodes.add()
        nodes.preempt(victim)
    train_an_epoch()
    victim = next(each for each in nodes.processes[1:] if each.poll() is None and trains(each))
    nodes.add()
    victim.terminate()  # Ray takes this for a warning, too
    wait_for(lambda: victim.poll() is not None or process.poll() is not None, nodes.processes[0])
    assert process.wait(600) == 0
    (row,) = store.read(out).trials.to_pylist()
    assert (row["state"], row["epochs"], row["error"]) == ("COMPLETE", 10, "")
    assert row["lost_s"] > 0
    assert any("_" in name for name in saved), saved  # it was saved within an epoch, too


def test_a_submitted_job_trains_and_the_dashboard_asks_for_the_token(nodes, environment, tmp_path):
    out = tmp_path / "job"
    study = [
        "env",
        "MMJSD_COMMIT=abc-dirty",
        "python",
        "study/run.py",
        "--space",
        "smoke",
        "--address",
        "auto",
        "--out",
        str(out),
    ]
    place = ["--address", f"http://127.0.0.1:{nodes.dashboard}", "--working-dir", str(ROOT)]
    job = [RAY, "job", "submit", *place, "--", *study, "--preset", "laptop", "--gpus-per-worker", "0"]
    refused = subprocess.run(
        job, env=environment | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=100
    )
    assert refused.returncode != 0
    assert not out.exists()
    for _ in range(10):
        said = subprocess.run(job, env=environment, capture_output=True, text=True, timeout=600)
        if "please try again later" not in said.stderr:  # the head's agent has yet to report itself
            break
        time.sleep(10)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "4 trials complete" in said.stdout
    assert {row["state"] for row in trials(out).values()} == {"COMPLETE"}
    assert {(row["commit"], row["dirty"]) for row in trials(out).values()} == {("abc", True)}


def test_a_study_in_a_bucket_outlives_head_and_folder(environment, tmp_path):
    """Killed with all its processes, its folder lost, resumed elsewhere, replayed and reported."""
    url, options = "s3://studies/whole", ("--training.epochs", "4", "--max-concurrent", "2")
    bucket = Bucket(f"{url}?endpoint_override={environment['AWS_ENDPOINT_URL'][7:]}&scheme=http")
    os.environ |= {name: environment[name] for name in environment if name.startswith("AWS_")}
    process = subprocess.Popen(command(url, *options), cwd=ROOT, env=environment)

    def one_ended_and_another_is_in_the_middle():
        names = [entry.name.split("/") for entry in bucket.entries()]
        ended = {each[2].removesuffix(".parquet") for each in names if each[:2] == ["results", "trials"]}
        return ended and {each[1] for each in names if each[0] == "checkpoints"} - ended

    wait_for(one_ended_and_another_is_in_the_middle, process, 500)
    kill_tree(process)
    ended = {entry.name for entry in bucket.entries("results/trials")}
    elsewhere = environment | {"MMJSD_CACHE": str(tmp_path / "cache")}
    refused = run(elsewhere, url, *options)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert f"error: {url} already holds a study; add --resume" in refused.stderr
    said = run(elsewhere, url, *options, "--resume")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "4 trials complete" in said.stdout
    assert f"python analysis/report.py {url}" in said.stdout
    for name in ended:
        assert bucket.read(name) is not None
    os.environ["MMJSD_CACHE"] = elsewhere["MMJSD_CACHE"]
    rows = json.loads(bucket.read("manifest.json"))
    assert len(rows["resumed"]) == 1
    for name in _begun(bucket):
        replayed = [sys.executable, "study/run.py", "--replay", f"{url}/{name}"]
        told = subprocess.run(replayed, cwd=ROOT, env=elsewhere, capture_output=True, text=True, timeout=280)
        assert told.returncode == 0, told.stdout + told.stderr
    assert report([url, "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "data:image/png" in page
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        secret = environment[name].encode()
        assert secret not in page.encode()
        for _, content in bucket.read_all(entry.name for entry in bucket.entries()):
            assert secret not in content


def test_storage_that_refuses_in_the_middle_of_a_study_ends_it_in_a_sentence(environment):
    server = Server()
    server.make_bucket("refusing")
    address = f"http://{server.address}"
    options = ("--training.epochs", "40", "--data.samples_per_epoch", "2000")
    process = subprocess.Popen(
        command("s3://refusing/run", *options),
        cwd=ROOT,
        env=environment | {"AWS_ENDPOINT_URL": address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    listing = f"{address}/refusing?list-type=2&prefix=run/checkpoints"
    wait_for(lambda: "epoch.json" in requests.get(listing, timeout=10).text, process, 500)
    server.check_credentials(5)
    _, said = process.communicate(timeout=300)
    server.stop()
    assert process.returncode == 1
    assert re.fullmatch(r"error: .*access is denied; .*; the same command with --resume goes on\n", said), (
        said
    )


class Apart(Nodes):
    """Workers for which one folder is empty, as it would be on disks of their own."""

    WORKERS = 2

    def __init__(self, environment, hidden):
        self.hidden = hidden
        super().__init__(environment)

    def program(self, options):
        if "--head" in options:
            return super().program(options)
        hide = f"mount -t tmpfs none {self.hidden} && exec"
        return ["unshare", "--mount", "sh", "-c", f'{hide} "$0" "$@"', *super().program(options)]


@pytest.mark.skipif(os.geteuid() != 0, reason="hides a folder from a node, which takes root")
@pytest.mark.parametrize("options", [("--confirm", "1"), ("--workers", "2")], ids=["alone", "workers"])
def test_a_node_that_does_not_see_the_studys_folder_ends_the_study_in_a_sentence(
    environment, tmp_path, options
):
    (tmp_path / "own").mkdir()
    nodes = Apart(environment, tmp_path / "own")
    try:
        address = ("--address", nodes.address, "--preset", "laptop", "--gpus-per-worker", "0")
        said = run(environment, tmp_path / "own" / "run", *address, *options)
    finally:
        nodes.stop()
    assert said.returncode == 2, said.stdout + said.stderr
    assert "FAILED" not in said.stdout
    assert f"does not see the study's folder {tmp_path / 'own' / 'run'}; start again with" in said.stderr
    assert said.stderr.count("\n") == 1


def _begun(bucket):
    return sorted({entry.name.split("/")[1] for entry in bucket.entries("checkpoints")})[:2]
