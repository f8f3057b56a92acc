"""What a study leaves in its folder when it starts, and what of it a resumed one may change."""

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from mmjsd import data as datasets
from study import manifest
from study.config import ClusterError
from tests.command_line import refused, start
from tests.command_line import tuner as tuner  # a fixture


def test_writes_what_was_asked_and_what_carries_it_out(tuner, tmp_path):
    assert start("--space subspaces --objective.beta 1 --replicates 3 --seed 7 --out own") == 0
    study = json.loads(Path("own/study.json").read_text())
    assert study["base"]["objective"].pop("reconstruction_weights").keys() == {"mnist", "svhn", "text"}
    assert {
        name: study[name] for name in ("study", "space", "preset", "sampler", "trials", "replicates", "seed")
    } == {
        "study": "own",
        "space": "subspaces",
        "preset": "laptop",
        "sampler": "grid",
        "trials": 4,
        "replicates": 3,
        "seed": 7,
    }
    assert study["objective_metric"] == "mean_coherence"
    assert study["question"].startswith("How large may the subspaces be")
    assert "MMVAE+" in study["description"]
    assert study["command"][:3] == ["study/run.py", "--space", "subspaces"]
    assert study["domains"] == {"model.style_dim": {"type": "Choice", "options": [0, 1, 4, 16]}}
    assert study["base"]["objective"]["beta"] == 1.0
    assert study["base"]["objective"]["fusion"] == "mixture"
    assert study["base"]["objective"]["weights"] == [0.25] * 4
    record = json.loads(Path("own/manifest.json").read_text())
    assert record["data"] == {"name": "digits", "digest": "0123abcd", "num_classes": 10}
    assert {"ray", "torch", "optuna"} <= record["versions"].keys()
    assert record["hardware"].keys() == {"cpu", "cores", "memory_gib", "gpus"}
    assert record["started_at"] == study["started_at"]
    assert record["commit"] == tuner.study.commit
    assert bool(record["diff"]) <= record["dirty"]
    written = sorted(file.name for file in (tmp_path / "own").iterdir())
    assert written == [".lock", "manifest.json", "study.json"]


def test_without_git_there_is_no_commit(monkeypatch, tuner):
    monkeypatch.setenv("PATH", "")
    assert start("--space smoke") == 0
    assert (tuner.study.commit, tuner.study.dirty) == ("", False)


@pytest.mark.parametrize(("told", "known"), [("abc", ("abc", False)), ("abc-dirty", ("abc", True))])
def test_code_that_travels_without_its_repository_is_told_its_commit(monkeypatch, tuner, told, known):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("MMJSD_COMMIT", told)
    assert start("--space smoke") == 0
    assert (tuner.study.commit, tuner.study.dirty) == known


def test_a_taken_folder_is_resumed_only_on_request(capsys, tuner):
    assert start("--space smoke --replicates 3 --seed 5") == 0
    written = Path("runs/smoke/study.json").stat().st_mtime_ns
    assert "already holds a study; add --resume to go on with it" in refused(capsys, "--space smoke")
    assert start("--space smoke --resume") == 0
    first = dataclasses.replace(tuner.studies[0], is_new=False)
    assert tuner.study == first  # replicates and seed come from study.json
    assert Path("runs/smoke/study.json").stat().st_mtime_ns == written
    sessions = json.loads(Path("runs/smoke/manifest.json").read_text())["resumed"]
    assert [session["command"][-1] for session in sessions] == ["--resume"]
    assert start("--space smoke --resume --retry failed diverged") == 0
    assert tuner.study.retry == ("failed", "diverged")


def test_a_cluster_that_does_not_answer_is_refused_before_anything_is_written(capsys, tuner, tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, but nothing listens
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        said = refused(capsys, f"--space smoke --preset laptop --address {address}")
    assert said.startswith(f"no Ray cluster answers at {address}")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_never_work_on_one_study(capsys, tuner, tmp_path):
    start("--space smoke --out taken")
    with FileLock(tmp_path / "taken" / ".lock"):
        assert "another process is at work" in refused(capsys, "--space smoke --out taken --resume")
    assert start("--space smoke --out taken --resume") == 0


def test_a_study_grows_but_never_changes(capsys, tuner):
    line = "--space priors --trials 4 --out own"
    assert start(line) == 0
    assert start(f"{line} --resume --trials 6 --replicates 3") == 0
    assert (tuner.study.trials, tuner.study.replicates) == (6, 3)
    stored = json.loads(Path("own/study.json").read_text())
    assert (stored["trials"], stored["replicates"]) == (6, 3)
    for change, sentence in [
        ("--trials 5", "has 6 trials, which can grow but not shrink to 5"),
        ("--replicates 2", "has 3 replicates, which can grow but not shrink to 2"),
        ("--seed 1", "has seed 0, not 1; resume with the same settings"),
        ("--sampler random", "has sampler 'tpe', not 'random'"),
        ("--objective.beta 3", "has objective.beta 2.5, not 3.0"),
        (
            "--objective.weights .1 .2 .3 .4",
            "the domain of objective.weights 'Simplex(size=4, lower=0.02)', not 'fixed'",
        ),
        ("--space fusion", "has space 'priors', not 'fusion'"),
    ]:
        command = f"--space priors --out own --resume {change}"
        assert sentence in refused(capsys, command), change
    assert len(tuner.studies) == 2


@pytest.mark.parametrize("error", [ClusterError("no room"), ConnectionError("no Ray"), ValueError("no key")])
def test_a_study_that_may_not_go_on_stays_as_it_was(capsys, tuner, error):
    line, files = "--space priors --out own", (Path("own/study.json"), Path("own/manifest.json"))
    assert start(f"{line} --trials 4") == 0
    manifest.write_ended(tuner.study.out)
    before = [file.read_bytes() for file in files]
    tuner.error = error
    assert refused(capsys, f"{line} --resume --trials 6 --confirm 1") == str(error)
    assert [file.read_bytes() for file in files] == before
    tuner.error = None
    assert start(f"{line} --resume --trials 5") == 0


def test_a_study_that_was_refused_after_it_had_served_trials_stays_grown(capsys, tuner, monkeypatch):
    def serve(study):
        (study.out / "tune" / "trial").mkdir(parents=True)
        raise ClusterError("a node does not see the folder")

    line = "--space priors --out own"
    assert start(f"{line} --trials 4") == 0
    monkeypatch.setattr(sys.modules["study.tuner"], "run_study", serve)
    refused(capsys, f"{line} --resume --trials 6")
    assert json.loads(Path("own/study.json").read_text())["trials"] == 6
    assert json.loads(Path("own/manifest.json").read_text())["resumed"][0]["grown"] == {"trials": 6}


def test_a_folder_that_was_renamed_holds_the_same_study(tuner, tmp_path):
    assert start("--space smoke --out first") == 0
    Path("first").rename("second")
    assert start("--space smoke --out second --resume") == 0
    assert (tuner.study.name, tuner.study.out) == ("first", tmp_path / "second")


def test_notices_a_space_file_that_was_edited(capsys):
    text = "from study.space import *\nSPACE = SearchSpace({'model.style_dim': Choice((%s))})\n"
    Path("own.py").write_text(text % "0, 1")
    assert start("--space own.py --out mine") == 0
    Path("own.py").write_text(text % "0, 2")
    sentence = refused(capsys, "--space own.py --out mine --resume")
    assert "the domain of model.style_dim 'Choice(options=[0, 1])', not 'Choice(options=[0, 2])'" in sentence


def test_notices_other_data(capsys, monkeypatch):
    assert start("--space smoke") == 0
    monkeypatch.setattr(datasets, "load", lambda name, folder, progress: SimpleNamespace(digest="ffff"))
    assert "started on other data (digest 0123abcd, now ffff)" in refused(capsys, "--space smoke --resume")


@pytest.mark.parametrize("text", ["{", "{}", '{"space": "smoke"}'])
def test_refuses_a_damaged_study_file(capsys, text):
    Path("own").mkdir()
    Path("own/study.json").write_text(text)
    assert "own/study.json is damaged: it" in refused(capsys, "--space smoke --out own --resume")


def test_faults_of_slow_tests_are_planted_where_the_code_is(tmp_path):
    """What they replace is there: else it shows hours later, when studies are killed for it."""
    code = "from tests import faulty\nfor faulty.PLACE in ('checkpoint', 'parquet', 'end'): faulty.plant()"
    command = [sys.executable, "-c", code, "none", "wait", str(tmp_path / "flag")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
