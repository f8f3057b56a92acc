"""Joins a Ray cluster, or starts a Ray on this machine."""

import errno
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.tune.execution import class_cache

from study.config import ClusterError, Study
from study.interrupts import uninterrupted
from study.record import is_disk_full

ROOT = Path(__file__).resolve().parents[1]
"""The project's folder, from which trials import."""

_START_S = 120.0
"""Seconds within which Ray should have started a process on this machine."""

ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""Variables by which the GNU C library keeps what a trial's process frees for what comes next. Else it gives
large blocks back to the system in each step, and gets others from there, zeroed page by page."""

_ON_CLUSTERS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",  # a node that has yet to be started takes minutes
}
"""Settings of Ray Train in the processes of trials, which have other environments than the study's."""

_EXCLUDED = [".venv", ".git", "runs", "*.npz", "**/__pycache__"]


def join_or_start(study: Study) -> bool:
    """Connect to the cluster at `study.address`, or start Ray on this machine; whether either was needed.

    What Ray refuses is a ClusterError.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # not every epoch is evaluated
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")  # nothing is ever read from Ray's own snapshots
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the display takes the place of Ray's own
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # and names a trial that fails, with its reason
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Ray Tune would send a bucket's keys to each trial, and Ray write them into a log that all may read.
    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in os.environ if name.startswith("AWS_")}
    ray._private.utils.set_sigterm_handler = lambda _: None  # by which the study would end without a word
    logging.getLogger("ray").setLevel(logging.ERROR)
    for name in (
        "tune",
        "execution.experiment_state",
    ):  # the display says what failed; nobody reads snapshots
        logging.getLogger(f"ray.tune.{name}").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if study.address:
            way = f"join a Ray cluster at {study.address}; check --address, the token and the nodes' versions"
            environment: dict[str, Any] = {"env_vars": _ON_CLUSTERS | ALLOCATOR}
            if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a submitted job brings its code itself
                environment |= {"working_dir": str(ROOT), "excludes": _EXCLUDED}
            with uninterrupted():
                ray.init(address=study.address, runtime_env=environment, **quiet)
        else:
            way = "start Ray on this machine; check HOME, and what the environment says of Ray's token"
            _make_token()
            paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths), **ALLOCATOR}}
            # "local": else Ray would join another study's instance here, or wait for one that is gone.
            with uninterrupted():
                ray.init(address="local", runtime_env=environment, include_dashboard=True, **quiet)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        if is_disk_full(error):  # whatever Ray made of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise ClusterError(f"cannot {way} ({error})") from None
    if not study.address:
        _await_process()
    return True


def _await_process() -> None:
    """Ray tries again and again to start a process that cannot run, and a study would wait without a word."""
    try:
        ray.get(ray.remote(num_cpus=0)(lambda: None).remote(), timeout=_START_S)
    except GetTimeoutError:
        logs = Path(ray._private.worker._global_node.get_logs_dir_path())
        ray.shutdown()
        raise ClusterError(
            f"Ray started no process on this machine within {_START_S:.0f} s; {logs / 'raylet.err'} says why"
        ) from None


def _make_token() -> None:
    """The user's token for Ray on this machine, for his eyes alone; Ray would let every user read it."""
    elsewhere = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if elsewhere or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, secrets.token_hex(32).encode())
        os.close(descriptor)
    file.chmod(0o600)
