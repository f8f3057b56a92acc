"""Real studies that are killed, run out of space or find damaged files: DESIGN.md's fault matrix, row by row.

They take some ten minutes of two free cores: python -m pytest -m slow tests/test_faults.py
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

from study import store
from tests.nodes import ROOT
from tests.studies import optuna_trials
from tests.test_study import measurements

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SMALL = (
    *("--space", "smoke", "--trials", "1", "--max-concurrent", "1"),
    *("--training.epochs", "3", "--data.samples_per_epoch", "200", "--evaluation.probe_samples", "100"),
)
"""One config, two replicates one after the other, three epochs each."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A cache that the studies share."""
    cache = os.environ.get("MMJSD_CACHE", str(tmp_path_factory.mktemp("cache")))
    patient = {"OMP_WAIT_POLICY": "PASSIVE"}  # or threads that wait for others take a busy machine's time
    return {**os.environ, **patient, "MMJSD_CACHE": cache, "RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def start(environment):
    """Starts studies, with a fault or without, in sessions of their own; ends those that a test leaves."""
    started = []

    def begin(out, *options, fault=(), variables=MappingProxyType({})):
        program = ["-m", "tests.faulty", *map(str, fault)] if fault else ["study/run.py"]
        command = [sys.executable, *program, "--out", str(out), *SMALL, *options]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(
            command, cwd=ROOT, env={**environment, **variables}, start_new_session=True, **output
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()


@pytest.fixture
def run(start):
    """Runs a study to its end: its exit code and what it said."""

    def ended(out, *options, **settings):
        process = start(out, *options, **settings)
        said, _ = process.communicate(timeout=1200)
        return process.returncode, said

    return ended


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    """What a study measures that nothing disturbs."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    command = [sys.executable, "study/run.py", "--out", str(out), *SMALL]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=1200)
    return measurements(out)


def trials(out):
    if not (out / "results" / "trials").is_dir():
        return {}
    return {row["trial_id"]: row for row in store.ended_trials(out)}


def told(out):
    """The states of the configs, as Optuna knows them."""
    return [trial.state.name for trial in optuna_trials(out)]


def wait_for(flag, process, seconds=900):
    deadline = time.monotonic() + seconds
    while not flag.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_whole(out, undisturbed, configs=("COMPLETE",)):
    """All trials are there once, with the numbers of a study that nothing disturbs."""
    assert [row["state"] for row in trials(out).values()] == ["COMPLETE"] * 2
    assert measurements(out) == undisturbed
    assert told(out) == list(configs)
    assert sorted(path.name for path in (out / "results" / "measurements").iterdir()) == ["compacted.parquet"]


@pytest.fixture
def killed(start, tmp_path):
    """A study of which the driver was killed with one trial ended and the other after its second epoch."""
    out, flag = tmp_path / "killed", tmp_path / "flag"
    process = start(out, fault=("between", "wait", flag))
    wait_for(flag, process)
    process.kill()
    process.wait()
    return out


# A driver that is killed, by SIGKILL and alone ...


def test_at_every_place_in_turn_loses_nothing_and_doubles_nothing(start, run, tmp_path, undisturbed):
    out = tmp_path / "killed"
    ended = {}
    for place in ("start", "parquet", "checkpoint", "between", "end"):
        flag = tmp_path / place
        resume = ("--resume",) if (out / "study.json").exists() else ()
        process = start(out, *resume, fault=(place, "wait", flag))
        wait_for(flag, process)
        process.kill()
        process.wait()
        after = trials(out)
        assert {name: after[name] for name in ended} == ended, place
        assert len(after) == (0 if place == "start" else 1), place
        ended = after
        if ended:
            assert measurements(out).items() <= undisturbed.items(), place
    code, said = run(out, "--resume")
    assert (code, "2 trials complete" in said) == (0, True), said
    assert ended.items() <= trials(out).items()
    assert_whole(out, undisturbed)


# A process of a trial that is killed ...


@pytest.mark.parametrize("place", ["checkpoint", "end"])
def test_goes_on_in_a_new_process(run, tmp_path, undisturbed, place):
    code, said = run(tmp_path / "study", fault=(place, "die", tmp_path / "flag"))
    assert (tmp_path / "flag").exists()
    assert code == 0, said
    assert_whole(tmp_path / "study", undisturbed)
    assert len([row for row in trials(tmp_path / "study").values() if row["lost_s"]]) == 1


def test_each_time_is_given_up_and_the_study_ends(run, tmp_path):
    out = tmp_path / "study"
    code, said = run(out, fault=("checkpoint", "always", tmp_path / "flag"))
    assert code == 1
    assert "FAILED: its process vanished 3 times; memory may be short" in said
    assert "Traceback" not in said
    states = {row["state"]: row["error"] for row in trials(out).values()}
    assert set(states) == {"COMPLETE", "FAILED"}
    assert states["FAILED"] == "its process vanished 3 times; memory may be short"
    assert told(out) == ["FAIL"]


def test_for_want_of_memory_is_told_so(run, tmp_path):
    stingy = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "250"}
    out = tmp_path / "study"
    code, said = run(out, "--replicates", "1", variables=stingy)  # Ray kills what trains, whatever it needs
    assert code == 1, said
    assert "Traceback" not in said
    (row,) = trials(out).values()
    assert (row["state"], row["error"]) == ("FAILED", "its process vanished 3 times; memory may be short")
    assert told(out) == ["FAIL"]


def test_is_replaced_among_two_workers(run, tmp_path, undisturbed):
    out = tmp_path / "study"
    alone = ("--workers", "2", "--replicates", "1")
    code, said = run(out, *alone, fault=("worker", "die", tmp_path / "flag"))
    assert (tmp_path / "flag").exists()
    assert code == 0, said
    (row,) = trials(out).values()
    assert (row["state"], row["epochs"], row["workers"]) == ("COMPLETE", 3, 2)
    assert 0 < row["lost_s"] < row["wall_s"] * 2 + 60
    assert set(measurements(out)) == {key for key in undisturbed if key[0] == row["trial_id"]}


def test_whose_error_all_workers_have_is_told_after_three_attempts(run, tmp_path):
    out = tmp_path / "study"
    fault = ("error", "always", tmp_path / "flag")
    code, said = run(out, "--workers", "2", "--replicates", "1", fault=fault)
    assert code == 1, said
    (row,) = trials(out).values()
    assert row["state"] == "FAILED"
    assert "ValueError: planted" in row["error"]
    assert told(out) == ["FAIL"]


def test_that_a_scheduler_stops_leaves_its_workers_to_the_next(run, tmp_path):
    out = tmp_path / "study"
    space = ("--space", "priors", "--sampler", "qmc", "--trials", "5", "--replicates", "1")
    options = ("--workers", "2", "--scheduler", "asha", "--training.epochs", "4", "--model.width", "0.1")
    often = ("--evaluation.every", "1", "--evaluation.num_samples", "100")
    code, said = run(out, *space, *options, *often)
    assert code == 0, said
    rows = trials(out).values()
    assert {row["state"] for row in rows} == {"COMPLETE", "STOPPED"}
    for row in rows:
        epochs = {key[1] for key in measurements(out) if key[0] == row["trial_id"]}
        assert epochs >= set(range(1, row["epochs"] + 1))
        assert (row["state"] == "COMPLETE") == (row["epochs"] == 4)
    assert len(list((out / "train").iterdir())) == 1


# A disk that is full ...


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_is_told_in_a_sentence_and_costs_nothing_once_there_is_space(run, small_disk, undisturbed):
    out = small_disk / "study"
    code, said = run(out)
    assert code == 1
    assert said.splitlines()[-1].startswith(
        f"error: no space left for {out}; free some, and the same command"
    )
    assert "Traceback" not in said
    before = trials(out)
    assert all(row["state"] == "COMPLETE" for row in before.values())
    assert len(before) < 2
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, said = run(out, "--resume")
    assert code == 0, said
    assert before.items() <= trials(out).items()
    assert_whole(out, undisturbed)


# Damaged files ...


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def test_are_named_with_the_way_out_or_made_anew(killed, run, undisturbed):
    (ended,) = trials(killed)
    (begun,) = {path.name for path in (killed / "checkpoints").iterdir()} - {ended}
    results = killed / "results"
    for part in (
        results / "trials" / f"{ended}.parquet",
        results / "measurements" / f"{ended}.parquet",
        results / "measurements" / f"{begun}.parquet",
    ):
        whole = part.read_bytes()
        cut(part)
        code, said = run(killed, "--resume")
        assert code == 2
        (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert f"{part} is damaged" in sentence
        assert "delete it and start the study again with --resume" in sentence
        part.write_bytes(whole)
    row = trials(killed)[ended]
    (results / "measurements" / f"{ended}.parquet").unlink()  # as the sentence says
    cut(next((killed / "checkpoints" / begun).glob("epoch-*")) / "epoch.json")
    code, said = run(killed, "--resume")
    assert code == 0, said
    assert_whole(killed, undisturbed)
    assert trials(killed)[ended]["objective_value"] == row["objective_value"]


def cut_in_params(journal):
    """As if the driver had died while it noted what the sampler proposed: that config is proposed again."""
    before, found, after = journal.read_bytes().partition(b'"params"')
    assert found
    journal.write_bytes(before + found + after[:9])


@pytest.mark.parametrize(
    ("damage", "configs"),
    [(Path.unlink, ["COMPLETE"]), (cut, ["COMPLETE"]), (cut_in_params, ["FAIL", "COMPLETE"])],
)
def test_of_optuna_cost_no_result(killed, run, undisturbed, damage, configs):
    before = trials(killed)
    damage(killed / "optuna.journal")
    cut(next((killed / "checkpoints").glob("*/epoch-000002")) / "training.safetensors")
    code, said = run(killed, "--resume")
    assert code == 0, said
    assert before.items() <= trials(killed).items()
    assert_whole(killed, undisturbed, configs)


# Ctrl-C of a terminal, or SIGTERM of `timeout` and systemd, to the driver and all that it has started ...


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM]], ids=["C", "CC", "TERM"]
)
def test_ends_the_study_which_goes_on_later(start, run, tmp_path, undisturbed, signals):
    out = tmp_path / "study"
    process = start(out)
    wait_for(out / "results" / "trials", process)
    for number in signals:
        os.killpg(process.pid, number)
        time.sleep(0.5)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; the same command with --resume goes on"
    assert "Traceback" not in said
    before = trials(out)
    assert all(row["state"] == "COMPLETE" for row in before.values())
    code, said = run(out, "--resume")
    assert code == 0, said
    assert before.items() <= trials(out).items()
    assert_whole(out, undisturbed)


# ... or the driver alone, as Ray starts ...


@pytest.mark.parametrize("delay_s", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_the_study_before_its_first_trial(start, tmp_path, number, delay_s):
    out, folder = tmp_path / "study", tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    process = start(out, variables={"RAY_TMPDIR": folder})
    while not list(Path(folder).glob("ray/session_2*/logs/python-core-driver*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    time.sleep(delay_s)
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=100)
    shutil.rmtree(folder, ignore_errors=True)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; the same command with --resume goes on"
    assert "Traceback" not in said
