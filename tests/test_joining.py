"""A study joins a Ray cluster or starts a Ray of its own: what it tells Ray, and what Ray refuses."""

import errno
import inspect
import os
import platform
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import AuthenticationError
from ray.tune import Trainable
from ray.tune.execution import class_cache

from study import joining
from study.config import ClusterError
from study.joining import join_or_start


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setattr(joining.ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("address", ["", "auto"])
def test_processes_of_trials_get_the_allocators_variables(monkeypatch, address):
    told = {}
    monkeypatch.setattr(joining.ray, "init", lambda **options: told.update(options))
    monkeypatch.setattr(joining, "_make_token", lambda: None)
    monkeypatch.setattr(joining, "_await_process", lambda: None)
    assert join_or_start(SimpleNamespace(address=address))
    assert joining.ALLOCATOR.items() <= told["runtime_env"]["env_vars"].items()


def test_processes_of_trials_find_what_the_study_found(monkeypatch):
    told = {}
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    monkeypatch.setattr(joining.ray, "init", lambda **options: told.update(options))
    monkeypatch.setattr(joining, "_make_token", lambda: None)
    monkeypatch.setattr(joining, "_await_process", lambda: None)
    join_or_start(SimpleNamespace(address=""))
    paths = told["runtime_env"]["env_vars"]["PYTHONPATH"]
    assert paths.split(os.pathsep) == [str(joining.ROOT), "/somewhere/else"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_a_process_is_not_left_to_ray(monkeypatch, number):
    rays_own = ray._private.utils.set_sigterm_handler
    monkeypatch.setattr(ray._private.utils, "set_sigterm_handler", rays_own)  # put back in the end
    assert "ray._private.utils.set_sigterm_handler(" in inspect.getsource(ray.init)

    def init(**_):
        ray._private.utils.set_sigterm_handler(lambda *_: sys.exit(15))
        signal.raise_signal(number)
        started.append(True)

    started = []
    monkeypatch.setattr(joining.ray, "init", init)
    monkeypatch.setattr(joining, "_make_token", lambda: None)
    before = signal.signal(number, signal.default_int_handler)  # Ctrl-C may be ignored here
    try:
        with pytest.raises(KeyboardInterrupt):
            join_or_start(SimpleNamespace(address=""))
        assert started  # Ray is not cut in half
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_keys_of_a_bucket_are_no_part_of_what_ray_tells_its_logs(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "that nobody has")
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", set(class_cache.ENV_VARS_TO_PROPAGATE))
    monkeypatch.setattr(joining.ray, "init", lambda **options: None)
    monkeypatch.setattr(joining, "_make_token", lambda: None)
    monkeypatch.setattr(joining, "_await_process", lambda: None)
    join_or_start(SimpleNamespace(address=""))
    actor = class_cache._ActorClassCache().get(Trainable)
    assert "PL_DISABLE_FORK" in actor._default_options["runtime_env"]["env_vars"]
    assert "that nobody has" not in str(actor._default_options)


@pytest.mark.parametrize(
    ("address", "refusal", "sentence"),
    [
        (
            "foo",
            ValueError("Invalid address format: foo"),
            "cannot join a Ray cluster at foo; check --address",
        ),
        (
            "auto",
            ConnectionError("Could not find any running Ray instance"),
            "cannot join a Ray cluster at auto",
        ),
        (
            "auto",
            RuntimeError("Version mismatch: Python 3.12"),
            r"nodes' versions \(Version mismatch: Python 3.12\)",
        ),
        ("auto", AuthenticationError("no token was found"), r"the token .*\(no token was found"),
        ("", AuthenticationError("no token was found"), "cannot start Ray on this machine; .* Ray's token"),
    ],
)
def test_what_ray_refuses_is_told_in_a_sentence(monkeypatch, address, refusal, sentence):
    def init(**_):
        raise refusal

    monkeypatch.setattr(joining.ray, "init", init)
    monkeypatch.setattr(joining, "_make_token", lambda: None)
    with pytest.raises(ClusterError, match=sentence):
        join_or_start(SimpleNamespace(address=address))


def test_a_full_disk_is_one_whatever_ray_makes_of_it(monkeypatch):
    def init(**_):
        raise RuntimeError("Failed to upload working_dir: [Errno 28] No space left on device")

    monkeypatch.setattr(joining.ray, "init", init)
    with pytest.raises(OSError, match="No space left on device") as raised:
        join_or_start(SimpleNamespace(address="auto"))
    assert raised.value.errno == errno.ENOSPC


def test_a_home_that_cannot_be_written_is_told_in_a_sentence(monkeypatch, tmp_path):
    home = tmp_path / "file"
    home.touch()
    monkeypatch.setenv("HOME", str(home))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ClusterError, match=r"cannot start Ray on this machine; check HOME, .*Not a directory"
    ):
        join_or_start(SimpleNamespace(address=""))
    monkeypatch.setenv("HOME", str(tmp_path / "new" / "home"))
    joining._make_token()
    assert (tmp_path / "new" / "home" / ".ray" / "auth_token").is_file()


BLOCKS = """
import ctypes, resource, threading
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def use():
    block = ctypes.c_void_p(libc.malloc(40 * 2**20))
    libc.memset(block, 1, 40 * 2**20)
    libc.free(block)

def run():
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        use()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=run)  # as Ray Tune runs a trial
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are the GNU C library's")
def test_the_allocators_variables_keep_freed_memory():
    def page_faults(**variables):
        environment = {**os.environ, **variables}
        said = subprocess.run(
            [sys.executable, "-c", BLOCKS], env=environment, capture_output=True, check=True
        )
        return int(said.stdout)

    kept = page_faults(**joining.ALLOCATOR)
    assert kept < 50
    assert page_faults() > kept + 100  # ten times 40 MiB, in pages of 2 MiB at most
