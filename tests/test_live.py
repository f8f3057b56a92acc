"""The doctor examines a cluster of two Ray nodes on this machine, which ask for a token."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray import cloudpickle
from ray._raylet import AuthenticationTokenLoader, Config
from ray.cluster_utils import Cluster

from cluster import live
from cluster.doctor import main
from cluster.findings import Finding
from study import worker
from tests.nodes import ROOT, free_port
from tests.storage import Server


@pytest.fixture(scope="module")
def cluster():
    """A head and a worker, each a Ray node of its own; one Ray for all tests of the module."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    Path("/tmp/ray").mkdir(exist_ok=True)  # Cluster expects it, wherever its own folder is
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", 64 * "a")
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "a")
        patch.setenv("AWS_REGION", "us-east-1")
        read_environment()
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.add_node(num_cpus=1)
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()
    read_environment()
    shutil.rmtree(folder, ignore_errors=True)


def read_environment():
    """Ray reads whether a token is needed, and which, when it is imported; other tests need none."""
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


@pytest.fixture
def roomy(monkeypatch):
    """No bound on free disk, since how full this machine's is must not decide a test."""
    monkeypatch.setattr(live, "MIN_FREE_GB", 0.0)


@pytest.mark.usefixtures("roomy")
def test_finds_a_cluster_well_and_leaves_nothing(cluster, tmp_path, capsys):
    out = tmp_path / "new" / "run"
    assert main(["--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = "nodes", "versions", "code", "token", "disk", "clocks", "storage", "all-reduce by gloo", "GPUs"
    assert [line.partition(":")[0] for line in lines] == [f"ok    {name}" for name in names]
    assert lines[0].startswith("ok    nodes: 2: ")
    assert "over 2 nodes" in lines[7]
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "expected"),
    [("runs/a", "{here}/runs/a"), ("~/runs", "{here}/home/runs"), ("s3://studies/a", "s3://studies/a")],
)
def test_looks_for_a_folder_where_a_study_would(tmp_path, monkeypatch, capsys, out, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(live, "_check", lambda out: iter([Finding("storage", (), out)]))
    assert main(["--out", out]) == 0
    assert capsys.readouterr().out == f"ok    storage: {expected.format(here=tmp_path)}\n"


def test_refuses_the_home_of_a_user_that_is_none(capsys):
    assert main(["--out", "~nobody-of-this-name/runs"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot find ~nobody-of-this-name/runs: ")


def test_refuses_the_folder_of_a_jobs_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "working_dir_files" / "_ray_pkg_1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "working_dir_files" / "_ray_pkg_1")
    assert main(["--out", "runs/a"]) == 2
    assert "would lie in the folder of this job's code, which Ray deletes" in capsys.readouterr().err


def failures(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]


@pytest.mark.usefixtures("roomy")
def test_nodes_that_cannot_reduce_have_their_storage_checked(cluster, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(live.Probe, "reduce", lambda self, *_: os._exit(1))
    assert main(["--out", str(tmp_path)]) == 1
    assert all(line.startswith("FAIL  all-reduce by gloo: ") for line in failures(capsys))


@pytest.mark.usefixtures("roomy")
def test_says_so_where_gpus_cannot_be_had(cluster, monkeypatch, tmp_path, capsys):
    start, listed = live._start, live._nodes

    def start_where_no_gpu_is_free(node_id, gpus):
        probe = start(node_id, 0)
        if gpus:
            ray.kill(probe)
        return probe

    monkeypatch.setattr(live, "_start", start_where_no_gpu_is_free)
    monkeypatch.setattr(live, "_nodes", lambda: (replace(node, gpus=1) for node in listed()))
    assert main(["--out", str(tmp_path)]) == 1
    failed = failures(capsys)
    assert len(failed) == 2
    assert all(line.startswith("FAIL  GPUs: ") and "does no study hold them?" in line for line in failed)
    silent = live._with_their_gpus(list(live._nodes()))
    assert live._all_reduce(silent, "nccl").problems
    assert len(live._clocks(silent).problems) == 2


def test_refuses_an_address_where_nobody_listens(monkeypatch, capsys):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    address = f"127.0.0.1:{free_port()}"
    assert main(["--address", address]) == 2
    assert capsys.readouterr().err.startswith(f"error: no Ray cluster answers at {address}")


@pytest.mark.parametrize("token", [None, 64 * "b"])
def test_refuses_a_cluster_that_asks_for_another_token(cluster, tmp_path, token):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    environment |= {"HOME": str(tmp_path), "RAY_NUM_REDIS_GET_RETRIES": "1"}  # of a second each
    if token is not None:
        environment["RAY_AUTH_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, ROOT / "cluster" / "doctor.py", "--address", cluster.address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert (
        f"error: no Ray cluster answers at {cluster.address}, or none that takes this token: " in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def nodes(cluster):
    cloudpickle.register_pickle_by_value(live)
    yield list(live._nodes())
    cloudpickle.unregister_pickle_by_value(live)


def test_names_a_clock_that_is_off_a_wrong_sum_and_a_disk_of_its_own(nodes, monkeypatch, tmp_path):
    monkeypatch.setattr(live.Probe, "clock", lambda self: time.time() + 500)
    monkeypatch.setattr(live.Probe, "reduce", lambda self, *_: (False, 0.0))
    monkeypatch.setattr(live.Probe, "write", lambda self, out, name: None)
    odd = list(live._nodes())
    assert all(re.search(r"off by (4\d\d|500)\.\d s", each) for each in problems(live._clocks(odd)))
    assert all("wrong sum" in each for each in problems(live._all_reduce(odd, "gloo")))
    assert all("is not there for this node" in each for each in problems(live._storage(odd, str(tmp_path))))


def test_names_storage_that_nodes_cannot_write(nodes, tmp_path):
    (tmp_path / "file").write_text("")
    assert problems(live._storage(nodes, str(tmp_path / "file" / "run")))
    server = Server()
    server.make_bucket("studies")
    place = f"?endpoint_override={server.address}&scheme=http"
    well, missing = (live._storage(nodes, f"s3://{name}/check{place}") for name in ("studies", "missing"))
    server.stop()
    assert well.problems == ()
    assert all("the bucket does not exist" in each for each in problems(missing))


def test_leaves_nothing_where_one_node_cannot_write(nodes, monkeypatch, tmp_path):
    write, full = live.Probe.write, f".check-{nodes[0].node_id}"

    def write_until_it_is_full(self, out, name):
        write(self, out, name)
        if name == full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(live.Probe, "write", write_until_it_is_full)
    (problem,) = live._storage(list(live._nodes()), str(tmp_path)).problems
    assert problem.startswith(nodes[0].name)
    assert list(tmp_path.iterdir()) == []


def problems(finding):
    assert len(finding.problems) == 2  # one for each node
    return finding.problems


FACTS = {
    "versions": {"python": "3.12.1", "ray": "2.60.0", "torch": "2.14.1"},
    "code": "0123abcd",
    "free_gb": {"/tmp": 40.0},
    "has_token": True,
}


@pytest.mark.parametrize(
    ("check", "change", "words"),
    [
        (
            live._versions,
            {"versions": {**FACTS["versions"], "torch": "2.13.0"}},
            "second has torch 2.13.0, first has 2",
        ),
        (live._code, {"code": "4567"}, "second has other code of the project"),
        (live._disks, {"free_gb": {"/tmp": 40.0, "/root": 1.5}}, "second has 1.5 GB free at /root"),
    ],
)
def test_names_the_node_that_differs(check, change, words):
    assert check({"first": FACTS, "second": FACTS}).problems == ()
    (problem,) = check({"first": FACTS, "second": FACTS | change}).problems
    assert problem.startswith(words)


@pytest.mark.parametrize(
    ("check", "change", "words"),
    [
        (live._versions, {"versions": {**FACTS["versions"], "torch": "missing"}}, "first lacks torch"),
        (live._code, {"code": "missing"}, "first has no code of the project"),
    ],
)
def test_names_what_all_nodes_lack(check, change, words):
    (problem,) = check({"first": FACTS | change, "second": FACTS | change}).problems
    assert problem.startswith(words)


def test_names_a_node_that_asks_for_no_token():
    finding = live._token({"first": FACTS, "second": FACTS | {"has_token": False}})
    assert [problem.partition(" asks")[0] for problem in finding.problems] == ["second"]


def test_room_of_workers_whose_watching_process_has_gone_is_given_back(cluster):
    """Of two actors that hold room one dies; the other's stays, and this process's own."""

    class Watching:
        def hold(self):
            group = ray.util.placement_group([{"CPU": 0.25}])
            ray.get(group.ready())
            return group

    def states():
        return [ray.util.placement_group_table(group)["state"] for group in groups]

    watching = [ray.remote(Watching).options(num_cpus=0).remote() for _ in range(2)]
    groups = [*ray.get([each.hold.remote() for each in watching]), Watching().hold()]
    worker._give_back()
    assert states() == ["CREATED", "CREATED", "CREATED"]
    ray.kill(watching[0])
    deadline = time.monotonic() + 30
    while states()[0] != "REMOVED" and time.monotonic() < deadline:
        worker._give_back()
        time.sleep(0.2)
    assert states() == ["REMOVED", "CREATED", "CREATED"]
    for group in groups[1:]:
        ray.util.remove_placement_group(group)
