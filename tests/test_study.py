"""Whole studies with a real Ray, as a user starts them: finished, killed and resumed, on two workers."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.compute as pc
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from mmjsd.model import load
from mmjsd.train import read_notes
from study import store
from tests.nodes import ROOT, kill_tree

LENGTH = ("--training.epochs", "4", "--evaluation.every", "2")
"""Options of the studies that are held against the undisturbed one."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A cache that the module's studies share, and a short temporary folder for Ray's sockets."""
    folder = tmp_path_factory.mktemp("cache")
    settings = {"MMJSD_CACHE": str(folder), "RAY_AUTH_MODE": "disabled"}
    # Threads that wait awake for others take the core that these need, where other tests run beside.
    return {**os.environ, **settings, "OMP_WAIT_POLICY": "passive"}


def command(out, *options, space="smoke"):
    return [sys.executable, "study/run.py", "--space", space, "--out", str(out), *options]


def run(environment, out, *options, space="smoke"):
    return subprocess.run(
        command(out, *options, space=space),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def replayed(environment, path):
    command = [sys.executable, "study/run.py", "--replay", str(path)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    """A smoke study that nothing disturbs, after one whose Ray was killed: its folder and what it said.

    It has a bucket's keys in its environment, of which Ray's logs may know nothing.
    """
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # sockets need a short path
        left = Path(folder, "ray", "ray_current_cluster")
        left.parent.mkdir()
        left.write_text("127.0.0.1:9")  # where nothing listens
        keys = {"AWS_ACCESS_KEY_ID": "of-nobody", "AWS_SECRET_ACCESS_KEY": "known-to-nobody"}
        said = run(environment | keys | {"RAY_TMPDIR": folder}, out, *LENGTH)
        logs = [file.read_text(errors="replace") for file in Path(folder).rglob("*.log")]
        assert any("Creating runtime env" in log for log in logs)
        assert not any(key in log for key in keys.values() for log in logs)
        return out, said


def measurements(out):
    """Every measured value by all that names it; raises on doubles."""
    rows = store.read(out).measurements.to_pylist()
    keys = ("trial_id", "epoch", "split", "metric", "posterior", "given", "target")
    values = {tuple(row[key] for key in keys): (row["value"], row["standard_error"]) for row in rows}
    assert len(values) == len(rows)
    return values


def trials(out):
    return {row["trial_id"]: row for row in store.read(out).trials.to_pylist()}


def test_a_study_does_not_wait_for_a_killed_ray_and_ends_with_every_trial_in_the_tables(undisturbed):
    out, said = undisturbed
    assert said.returncode == 0, said.stderr
    assert "4 trials complete, 0 diverged, 0 failed" in said.stdout
    assert "Traceback" not in said.stdout + said.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["ended_at"] > manifest["started_at"]
    rows = trials(out)
    assert len(rows) == 4
    assert {row["state"] for row in rows.values()} == {"COMPLETE"}
    assert {row["replicate"] for row in rows.values()} == {0, 1}
    assert {row["param.model.style_dim"] for row in rows.values()} == {0, 2}
    for row in rows.values():
        assert row["epochs"] == 4
        assert row["samples_per_s"] > 0
        assert 0 < row["evaluation_s"] < row["wall_s"]
        assert 0 <= row["objective_value"] <= 1


def test_the_objective_is_the_validation_score_of_the_last_epoch(undisturbed):
    out, _ = undisturbed
    values = measurements(out)
    for name, row in trials(out).items():
        key = (name, 4, "validation", "mean_coherence", "product", "", "")
        assert row["objective_value"] == values[key][0]
        assert (name, 4, "test", "mean_coherence", "product", "", "") in values
        assert not [k for k in values if k[0] == name and k[2] == "test" and k[1] < 4]


def test_each_trial_leaves_a_model_pictures_and_its_curves(undisturbed):
    out, _ = undisturbed
    for name, row in trials(out).items():
        (checkpoint,) = (out / "checkpoints" / name).iterdir()
        assert set(load(checkpoint).generate(num_samples=2)) == set(load(checkpoint).modalities)
        pictures = {path.name for path in (out / "samples" / name).iterdir()}
        assert {"overview.png", "unconditional.png", "reconstruction.png"} < pictures
        assert len([each for each in pictures if each.startswith("conditional_")]) == 3
        styles = [each for each in pictures if each.startswith("styles_")]
        assert len(styles) == (3 if row["param.model.style_dim"] else 0)
        board = EventAccumulator(str(out / "tensorboard" / name)).Reload()
        assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
        assert {f"samples/{each.removesuffix('.png')}" for each in pictures} == {*board.Tags()["images"]}
        content = board.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
        assert start.group_name == name.partition("-")[0]  # replicates are one group
        assert start.hparams["model.style_dim"].number_value == row["param.model.style_dim"]


def test_configs_in_one_pack_learn_what_they_learn_alone(undisturbed, environment, tmp_path):
    alone, out = undisturbed[0], tmp_path / "packed"
    said = run(environment, out, *LENGTH, "--replicates", "1", "--pack", "2", "--max-concurrent", "1")
    assert "2 trials complete, 0 diverged, 0 failed" in said.stdout, said.stderr
    for row in trials(out).values():  # rows are written one after the other
        assert row["device_s"] == pytest.approx(row["wall_s"] / 2, rel=0.05)
    expected, packed = measurements(alone), measurements(out)
    assert packed.keys() == {key for key in expected if key[0] in trials(out)}
    for name in trials(out):
        loss = (name, 1, "train", "loss", "", "", "")
        assert packed[loss][0] == pytest.approx(expected[loss][0], rel=1e-3)


def test_a_finished_study_is_not_trained_again(undisturbed, environment):
    out, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in (out / "results").rglob("*.parquet")}
    said = run(environment, out, *LENGTH, "--resume")
    assert said.returncode == 0, said.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (out / "results").rglob("*.parquet")}


def test_a_trial_that_is_replayed_alone_gives_the_same_numbers(undisturbed, environment):
    out, _ = undisturbed
    name = min(trials(out))
    count = sum(key[0] == name for key in measurements(out))
    said = replayed(environment, out / name)
    assert (said.returncode, said.stdout.splitlines()[-1]) == (0, f"{count} values equal"), said.stderr


def test_a_replay_tells_numbers_that_differ(undisturbed, environment, tmp_path):
    out, _ = undisturbed
    name = min(trials(out))
    (tmp_path / "results" / "trials").mkdir(parents=True)
    row = store.read(out).trials.filter(pc.equal(store.read(out).trials["trial_id"], name)).to_pylist()[0]
    config = json.loads(row["config"])
    config["training"]["epochs"] = 1
    config["evaluation"]["probe_samples"] = 100
    store.write_trial(tmp_path, {**row, "config": json.dumps(config)}, {})
    rows = [each for each in store.read_measurements(out, name) if each["epoch"] == 1]
    rows[-1]["value"] += 1e-12
    rows[0]["metric"] = "invented"
    store.write_measurements(tmp_path, name, rows)
    said = replayed(environment, tmp_path / name)
    assert said.returncode == 1, said.stderr
    assert f"{rows[-1]['value']!r}" in said.stdout
    assert "epoch 1 train invented: " in said.stdout
    assert re.search(r"values? equal, \d+ differences", said.stdout)
    assert not (tmp_path / "checkpoints").exists()


def test_a_killed_study_resumes_to_the_values_of_an_undisturbed_one(undisturbed, environment, tmp_path):
    expected, _ = undisturbed
    out, flag = tmp_path / "killed", tmp_path / "flag"
    options = (*LENGTH, "--max-concurrent", "2")
    faulty = [sys.executable, "-m", "tests.faulty", "between", "wait", str(flag)]
    process = subprocess.Popen([*faulty, *command(out, *options)[2:]], cwd=ROOT, env=environment)
    deadline = time.monotonic() + 200
    while not flag.exists():  # one has ended, and another waits after its second epoch
        assert process.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill_tree(process)
    ended = trials(out)
    begun = {path.parent.name: path for path in out.glob("checkpoints/*/epoch-*")}
    spent = {name: read_notes(path)["evaluation_s"] for name, path in begun.items() if name not in ended}
    assert 1 <= len(ended) < 4
    assert spent

    said = run(environment, out, *options, "--resume")
    assert said.returncode == 0, said.stderr
    after = trials(out)
    assert {name: after[name] for name in ended} == ended
    assert {name: row["state"] for name, row in after.items()} == dict.fromkeys(trials(expected), "COMPLETE")
    assert measurements(out) == measurements(expected)
    for name, evaluation_s in spent.items():
        # It went on: the curve's first part was written by the process that was killed.
        assert len(list((out / "tensorboard" / name).iterdir())) == 2
        assert 0 < evaluation_s <= after[name]["evaluation_s"] < after[name]["wall_s"]
    assert any(evaluation_s < after[name]["evaluation_s"] for name, evaluation_s in spent.items())
    for name, row in after.items():
        assert row["objective_value"] == trials(expected)[name]["objective_value"]


def test_two_workers_measure_what_one_does_and_stay_for_the_next_trial(undisturbed, environment, tmp_path):
    expected, _ = undisturbed
    out = tmp_path / "two"
    options = (*LENGTH, "--workers", "2", "--trials", "1")
    said = run(environment, out, *options)
    assert said.returncode == 0, said.stderr
    shared, alone = measurements(out), measurements(expected)
    assert [row["workers"] for row in trials(out).values()] == [2, 2]
    assert set(shared) == {key for key in alone if key[0] in trials(out)}
    assert len(list((out / "train").iterdir())) == 1
    difference = {key: abs(value - alone[key][0]) for key, (value, _) in shared.items()}
    probes = [far for key, far in difference.items() if key[3] == "probe_accuracy"]
    assert sum(probes) / len(probes) < 0.01  # one may jump, where rounding ends its fit a step earlier
    for key, far in difference.items():
        if "coherence" in key[3]:
            assert far < 0.025, key  # two of a hundred samples
        elif key[3].startswith(("precision", "recall")):
            assert far < 0.01, key  # likewise one that lies between two clusters
        elif key[3] != "probe_accuracy":
            assert far <= 1e-4 * abs(alone[key][0]), key


def test_a_scheduler_stops_trials_what_they_showed_is_kept_and_the_best_is_confirmed(environment, tmp_path):
    out = tmp_path / "halving"
    options = ("--scheduler", "asha", "--sampler", "qmc", "--confirm", "1")
    size = ("--trials", "5", "--replicates", "1", "--max-concurrent", "1", "--training.epochs", "4")
    small = ("--data.samples_per_epoch", "300", "--model.width", "0.1", "--evaluation.num_samples", "100")
    often = ("--evaluation.every", "1", "--evaluation.probe_samples", "100")
    few = ("--evaluation.importance_samples", "1")
    said = run(environment, out, *options, *size, *small, *often, *few, space="priors")
    assert said.returncode == 0, said.stderr
    rows = trials(out)
    fresh = [row for row in rows.values() if row["phase"] == "confirm"]
    assert {row["replicate"] for row in fresh} == {1000}
    assert [row["state"] for row in fresh] == ["COMPLETE"] * 2  # the best config and the base config
    stopped = {name for name, row in rows.items() if row["state"] == "STOPPED"}
    assert stopped
    assert {row["state"] for row in rows.values()} == {"COMPLETE", "STOPPED"}
    for name in stopped:
        assert 1 <= rows[name]["epochs"] < 4
        assert rows[name]["wall_s"] > 0
        seen = {key[1] for key in measurements(out) if key[0] == name}
        assert seen == set(range(1, rows[name]["epochs"] + 1))
