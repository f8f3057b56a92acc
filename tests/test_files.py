"""Object storage over its real protocol: writes are whole, faults are bridged, refusals are one sentence."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study import files
from study.files import Bucket, FilesError, is_url
from tests.storage import Proxy
from tests.storage import credentials as credentials  # a fixture
from tests.storage import google as google  # a fixture
from tests.storage import server as server  # a fixture

SMALL = b"small" * 1000
BIG = bytes(range(256)) * 4 * 2**10 * 6  # 6 MiB: more than one part of an upload


@pytest.fixture(scope="module")
def proxy(server):
    return Proxy(server.port)


pytestmark = pytest.mark.usefixtures("credentials")


def bucket(place, folder="runs/a", name="studies"):
    return Bucket(f"s3://{name}/{folder}?endpoint_override={place.address}&scheme=http")


names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=6)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.dictionaries(st.tuples(names, names).map("/".join), st.binary(max_size=200), max_size=4),
    folder=names,
)
def test_gives_back_what_was_written_and_lists_it_with_its_size(server, contents, folder):
    there = bucket(server, f"laws/{folder}")
    there.remove([entry.name for entry in there.entries()])
    for name, content in contents.items():
        there.write(name, b"before")
        there.write(name, content)
    assert {entry.name: entry.size for entry in there.entries()} == {
        name: len(content) for name, content in contents.items()
    }
    assert dict(there.read_all(contents)) == contents
    there.remove(contents)
    assert there.entries() == []


def test_a_folder_is_not_another_whose_name_begins_alike(server):
    bucket(server, "runs/one").write("x", b"1")
    bucket(server, "runs/one-more").write("x", b"2")
    assert [entry.name for entry in bucket(server, "runs/one").entries()] == ["x"]


def test_what_is_not_there_is_nothing(server):
    there = bucket(server, "nothing")
    assert there.read("none") is None
    assert there.entries("none") == []
    assert list(there.read_all(["none"])) == []
    there.remove(["none"])


def test_what_goes_while_it_is_read_is_nothing(server, monkeypatch):
    there, open_to_read = bucket(server, "gone"), Bucket._open_to_read

    def meanwhile(self, path):
        stream = open_to_read(self, path)
        self.remove(["x"])
        return stream

    there.write("x", SMALL)
    monkeypatch.setattr(Bucket, "_open_to_read", meanwhile)
    assert there.read("x") is None


def test_travels_to_other_processes(server):
    there = bucket(server)
    there.write("x", b"1")
    assert pickle.loads(pickle.dumps(there)).read("x") == b"1"


@pytest.mark.parametrize(
    ("fault", "count", "content"),
    [("busy", 2, SMALL), ("stalled", 1, BIG), ("cut", 2, SMALL), ("cut", 2, BIG)],
    ids=["busy", "stalled", "cut small", "cut big"],
)
def test_bridges_faults_that_pass(server, proxy, monkeypatch, fault, count, content):
    monkeypatch.setattr(files, "REQUEST_TIMEOUT_S", 0.5)
    there = bucket(proxy, f"bridged/{fault}")
    with proxy.fault(fault, count):
        there.write("x", content)
    assert proxy.suffered >= count
    assert bucket(server, f"bridged/{fault}").read("x") == content


@pytest.mark.parametrize(
    ("fault", "content"),
    [("busy", SMALL), ("stalled", SMALL), ("cut", SMALL), ("cut", BIG)],
    ids=["busy", "stalled", "cut small", "cut big"],
)
def test_a_write_that_fails_leaves_what_was_there(server, proxy, monkeypatch, fault, content):
    monkeypatch.setattr(files, "ATTEMPTS", 2)
    monkeypatch.setattr(files, "REQUEST_TIMEOUT_S", 0.5)
    folder = f"failed/{fault}-{len(content)}"
    bucket(server, folder).write("x", b"before")
    there = bucket(proxy, folder)
    with (
        proxy.fault(fault),
        pytest.raises(FilesError, match=r"cannot write s3://studies/failed/.*/x: storage does not"),
    ):
        there.write("x", content)
    assert bucket(server, folder).read("x") == b"before"
    assert there.read("x") == b"before"  # and it goes on as soon as the storage does


def test_readers_see_a_whole_object_while_it_is_written_anew(server):
    sees_whole_objects(bucket(server, "race").url)


def test_so_do_googles_readers(google):
    sees_whole_objects(f"gs://studies/race?endpoint_override={google}&scheme=http")


def sees_whole_objects(url):
    there, seen = Bucket(url), set()
    begun, done = threading.Event(), threading.Event()
    versions = [bytes([number]) * 100_000 for number in range(20)]
    there.write("x", versions[0])

    def read():
        while not done.is_set():
            seen.add(Bucket(url).read("x"))
            begun.set()

    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(read)
        assert begun.wait(60)
        for version in versions:
            there.write("x", version)
        done.set()
        reader.result()
    assert seen <= set(versions)


def test_refuses_a_bucket_that_is_missing_and_credentials_that_are_wrong(server):
    with pytest.raises(FilesError, match="the bucket does not exist; make it, or correct --out"):
        bucket(server, name="missing").check()
    server.check_credentials(after=0)
    try:
        with pytest.raises(FilesError, match="the credentials are not accepted") as refused:
            bucket(server).check()
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)
    finally:
        server.check_credentials(after=float("inf"))
    bucket(server).check()
    assert not [entry for entry in bucket(server).entries() if entry.name.startswith(".check")]


def test_speaks_googles_protocol_too(google):
    there = Bucket(f"gs://studies/runs/a?endpoint_override={google}&scheme=http")
    there.check()
    for name, content in (("results/a", SMALL), ("b", b"old"), ("b", BIG)):
        there.write(name, content)
    assert {entry.name: entry.size for entry in there.entries()} == {"results/a": len(SMALL), "b": len(BIG)}
    assert dict(there.read_all(["results/a", "b", "nothing"])) == {"results/a": SMALL, "b": BIG}
    there.remove(["b", "nothing"])
    assert [entry.name for entry in there.entries()] == ["results/a"]
    missing = Bucket(f"gs://missing/runs?endpoint_override={google}&scheme=http")
    with pytest.raises(FilesError, match="the bucket does not exist; make it, or correct --out"):
        missing.check()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/run", "must come without credentials"),
        ("s3://bucket", "names no folder"),
        ("s3:///run", "names no folder"),
        ("s3://bucket/../other", "names no folder"),
        ("http://bucket/run", "no storage that is known"),
        ("s3://bucket/run?secret_key=s", "cannot have 'secret_key'"),
    ],
)
def test_refuses_a_url_in_one_sentence_without_secrets(url, words):
    with pytest.raises(FilesError, match=words) as refused:
        Bucket(url)
    assert ":secret" not in str(refused.value)


def test_tells_urls_from_paths():
    assert is_url("s3://bucket/run")
    assert is_url("gs://bucket/run")
    assert is_url("S3://bucket/run")
    assert is_url("s3:/bucket/run")
    assert Bucket("S3://bucket/run").url == "s3://bucket/run"
    assert not is_url("runs/s3")
    assert not is_url("/runs/a")
    assert not is_url("C:/runs")
