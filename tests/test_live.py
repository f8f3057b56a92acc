"""The doctor examines a cluster of two Ray nodes on this machine, which ask for a token."""

import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import ray
from ray import cloudpickle
from ray._raylet import AuthenticationTokenLoader, Config
from ray.cluster_utils import Cluster

from cluster import live
from cluster.doctor import main
from tests.storage import Server

ROOT = Path(__file__).resolve().parents[1]


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


def test_finds_a_cluster_well_and_leaves_nothing(cluster, tmp_path, capsys):
    out = tmp_path / "new" / "run"
    assert main(["--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = "nodes", "versions", "code", "token", "disk", "clocks", "all-reduce by gloo", "GPUs", "storage"
    assert [line.partition(":")[0] for line in lines] == [f"ok    {name}" for name in names]
    assert lines[0].startswith("ok    nodes: 2: ")
    assert "over 2 nodes" in lines[6]
    assert list(out.iterdir()) == []


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
