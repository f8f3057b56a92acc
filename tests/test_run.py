"""What the command line makes of its options, and how it says that a study has ended."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis.provenance import commands
from mmjsd import data as datasets
from study import manifest, store
from study.config import PRESETS, ClusterError
from study.run import _run, main
from tests.command_line import BOTH, refused, start
from tests.command_line import tuner as tuner  # a fixture
from tests.nodes import ROOT
from tests.studies import trial

HEAVY = ("torch", "ray", "sklearn", "torchvision", "optuna", "pyarrow")


def test_later_layers_win(tuner):
    assert main(["--space", "smoke", "--preset", "paper", "--training.epochs", "3"]) == 0
    base = tuner.study.base
    assert base.training.learning_rate == PRESETS["paper"]["training.learning_rate"]  # preset over default
    assert base.model.width == 0.1  # space over preset
    assert base.data.name == "digits"
    assert base.training.epochs == 3  # command line over space
    assert base.objective.beta == 2.5  # default


@pytest.mark.parametrize(
    ("gpus", "line", "preset", "gpus_per_worker"),
    [
        ([], "", "laptop", 0),
        (["H100"], "", "paper", 1),
        ([], "--address auto", "paper", 1),
        (["H100"], "--preset laptop --gpus-per-worker 0.5", "laptop", 0.5),
    ],
)
def test_preset_and_gpus_follow_the_machine(monkeypatch, tuner, gpus, line, preset, gpus_per_worker):
    monkeypatch.setattr(manifest, "gpus", lambda: gpus)
    assert main(["--space", "smoke", *line.split()]) == 0
    assert (tuner.study.preset, tuner.study.gpus_per_worker) == (preset, gpus_per_worker)


def test_takes_hyphens_and_underscores_words_and_equals_signs(tuner):
    line = "--space fusion --objective.prior-samples=2 --training.batch_size 64 --gpus_per_worker 0"
    assert start(f"{line} --max-concurrent=2") == 0
    assert tuner.study.base.objective.prior_samples == 2
    assert tuner.study.base.training.batch_size == 64
    assert tuner.study.max_concurrent == 2


def test_sets_the_size_of_all_modalities_or_of_one(tuner):
    start("--space fusion --out a --model.style_dim 8")
    assert tuner.study.base.model.style_dim == 8
    start("--space fusion --out b --model.style_dim.svhn 8 --objective.style_weights.text 2")
    assert tuner.study.base.model.style_dim == {"mnist": 4, "svhn": 8, "text": 4}
    assert tuner.study.base.objective.style_weights == {"mnist": 1.0, "svhn": 1.0, "text": 2.0}
    start("--space fusion --out c --model.style_dim.svhn 8 --model.style_dim 2")
    assert tuner.study.base.model.style_dim == {"mnist": 2, "svhn": 8, "text": 2}
    start("--space fusion --out d --model.style_dim mnist 1 svhn 2 text 3")
    assert tuner.study.base.model.style_dim == {"mnist": 1, "svhn": 2, "text": 3}
    start("--space fusion --out e --objective.weights 0.3 0.3 0.2 0.2")
    assert tuner.study.base.objective.weights == (0.3, 0.3, 0.2, 0.2)


def test_a_part_counts_beside_its_whole_and_both_more_than_in_the_space(tuner):
    text = "from study.space import *\nSPACE = SearchSpace({}, base={%s})\n"
    Path("part.py").write_text(text % "'model.style_dim.svhn': 2")
    start("--space part.py --out a --model.style_dim 8 --model.style_dim.svhn 3")
    assert tuner.study.base.model.style_dim == {"mnist": 8, "svhn": 3, "text": 8}
    Path("both.py").write_text(text % "'model.style_dim': 4, 'model.style_dim.svhn': 2")
    start("--space both.py --out b --model.style_dim 8")
    assert tuner.study.base.model.style_dim == 8


def test_configs_of_a_grid_that_cannot_be_are_skipped_and_counted(tuner, caplog):
    domains = (
        "{'objective.name': Choice(('mmvae', 'mmjsd')), 'objective.importance_samples': Choice((None, 4))}"
    )
    Path("cross.py").write_text(f"from study.space import *\nSPACE = SearchSpace({domains})\n")
    with caplog.at_level("INFO"):
        assert start("--space cross.py --confirm 9") == 0
    assert "1 config of the grid cannot be and will be skipped: importance_samples" in caplog.text
    assert (tuner.study.trials, tuner.study.confirm) == (4, 2)  # of three configs one is the base config


def test_a_field_of_the_command_line_is_no_longer_varied(tuner):
    start("--space subspaces --out a --objective.beta 1")
    assert list(tuner.study.space.domains) == ["model.style_dim"]
    assert (tuner.study.trials, tuner.study.base.objective.beta) == (4, 1.0)
    start("--space subspaces --out b --objective.beta 2.5 --model.style_dim 4 --sampler tpe")
    assert not tuner.study.space.domains
    assert (tuner.study.sampler, tuner.study.trials) == ("grid", 1)
    start("--space priors --out c --objective.weights .1 .2 .3 .4")
    assert tuner.study.space.grid() == [{}]


def test_cases_show_in_a_dry_run_and_yield_to_the_command_line(capsys, tuner):
    assert start("--space paper --preset paper --dataset digits --dry-run") == 0
    last = [line.split() for line in capsys.readouterr().out.splitlines()][-7:]
    assert last[0] == ["objective.name", "subspaces"]
    assert last[-1] == ["mmjsd", "4", "each"]
    start("--space paper --preset paper --dataset digits --out a --training.learning_rate 0.01")
    rates = {
        tuner.study.space.decode(params, tuner.study.base).training.learning_rate
        for params in tuner.study.space.grid()
    }
    assert rates == {0.01}


def test_a_budget_of_samples_is_cut_into_the_same_number_of_epochs(capsys, tuner, tmp_path):
    start("--space subspaces --out a --training.epochs 8 --budget-samples 1e6")
    base = tuner.study.base
    assert (base.training.epochs, base.data.samples_per_epoch) == (8, 125_000)
    space = "from study.space import *\nSPACE = SearchSpace({'training.epochs': Choice((1, 2))})\n"
    (tmp_path / "own.py").write_text(space)
    line = "--space own.py --budget-samples 100"
    assert refused(capsys, line).startswith("--budget-samples needs equal epochs, which the space varies")
    start(f"{line} --training.epochs 4 --out b")
    assert tuner.study.base.data.samples_per_epoch == 25


def test_sampler_and_number_of_trials_follow_the_space(tuner):
    for line, sampler, trials in [
        ("--space subspaces --out a", "grid", 8),
        ("--space subspaces --out b --trials 3", "grid", 3),
        ("--space subspaces --out c --trials 99", "grid", 8),
        ("--space subspaces --out d --sampler random", "random", 20),
        ("--space priors --out e", "tpe", 20),
        ("--space priors --out f --trials 5", "tpe", 5),
        ("--space priors --out g --sampler grid", "grid", 35),
    ]:
        assert start(line) == 0
        assert (tuner.study.sampler, tuner.study.trials) == (sampler, trials)


def test_a_study_by_cma_es_says_once_what_it_draws_at_random(tuner, caplog):
    caplog.set_level("INFO")
    Path("mixed.py").write_text(
        "from study.space import Cases, Choice, LogUniform, SearchSpace\n"
        "SPACE = SearchSpace({'objective.fusion': Choice(('mixture', 'product')),\n"
        "    'subspaces': Cases({'no': {'model.style_dim': 0}, 'yes': {}}),\n"
        "    'objective.beta': LogUniform(0.25, 4.0)})\n"
    )
    for line in ("", " --resume"):
        assert start(f"--space mixed.py --sampler cmaes --out own{line}") == 0
    told = "--sampler cmaes seeks among numbers alone and draws objective.fusion, subspaces at random"
    assert [each for each in caplog.messages if "at random" in each] == [told]
    assert start("--space mixed.py --sampler tpe --out other") == 0
    assert start("--space priors --sampler cmaes --out third") == 0
    assert caplog.text.count("at random") == 1


def test_a_study_by_cma_es_goes_on_though_its_space_has_no_number(monkeypatch, tuner, capsys):
    with monkeypatch.context() as patched:
        patched.setattr("study.run.check_sampler", lambda sampler, space: [])
        assert start("--space fusion --sampler cmaes --out own") == 0
    assert start("--space fusion --out own --resume") == 0
    assert tuner.study.sampler == "cmaes"
    refused(capsys, "--space fusion --sampler cmaes --out other")


def test_studies_of_attributes_maximise_average_precision(tuner, capsys):
    for line, objectives in [
        ("--space faces --out a", ("mean_average_precision",)),
        ("--space smoke --out b", ("mean_coherence",)),
        ("--space faces --out c --objectives log_likelihood", ("log_likelihood",)),
    ]:
        assert start(f"{line} --preset laptop") == 0
        assert tuner.study.objectives == objectives
    sentence = refused(capsys, "--space faces --preset laptop --out d --objectives probe_accuracy")
    assert sentence == (
        "probe_accuracy is not measured on faces, whose samples have attributes and no class; "
        "choose other --objectives"
    )
    sentence = refused(capsys, "--space smoke --out d --objectives mean_average_precision")
    assert "whose samples have a class and no attributes" in sentence


def test_a_space_says_what_a_preset_is_for_it(tuner):
    assert start("--space faces --preset laptop --out a") == 0
    laptop = tuner.study.base
    assert (laptop.data.name, laptop.training.batch_size) == ("faces", 32)  # the preset's own batch size
    assert (laptop.model.width, laptop.training.learning_rate) == (0.125, 2e-3)  # the space over the preset
    assert start("--space faces --preset laptop --out b --model.width 0.2") == 0
    assert tuner.study.base.model.width == 0.2
    assert laptop.objective.reconstruction_weights == {"face": 1.0, "words": 16.0}


@pytest.mark.parametrize(
    "words",
    [
        "--objectives mean_coherence log_likelihood",
        "--objectives coherence,log_likelihood",
        "--objectives=coherence,log_likelihood",
        "--objectives coherence, log_likelihood",
    ],
)
def test_several_objectives_are_told_apart_by_spaces_or_commas(tuner, words):
    assert start(f"--space smoke {words} --seed 3") == 0
    assert (tuner.study.objectives, tuner.study.seed) == (("mean_coherence", "log_likelihood"), 3)


def test_a_confirmation_and_objectives_are_kept_when_a_study_is_resumed(tuner, capsys):
    assert start(f"--space smoke --out a {BOTH}") == 0
    assert start("--space smoke --out a --resume") == 0
    assert [study.objectives for study in tuner.studies] == [("mean_coherence", "log_likelihood")] * 2
    sentence = refused(capsys, "--space smoke --out a --resume --objectives mean_coherence")
    assert "has objectives ['mean_coherence', 'log_likelihood'], not ['mean_coherence']" in sentence
    assert start("--space smoke --out b --replicates 3") == 0
    assert (tuner.study.confirm, tuner.study.confirm_replicates) == (0, 0)
    assert start("--space smoke --out b --resume --confirm 1") == 0
    assert start("--space smoke --out b --resume") == 0
    assert [(study.confirm, study.confirm_replicates) for study in tuner.studies[-2:]] == [(1, 3)] * 2
    assert start("--space subspaces --out c --confirm 99") == 0
    assert tuner.study.confirm == 7  # of the grid's eight configs one is the base config
    stored = json.loads(Path("b/study.json").read_text())
    assert (stored["confirm"], stored["confirm_replicates"]) == (1, 3)
    assert start("--space smoke --out b --resume --confirm-replicates 4") == 0
    assert (tuner.study.confirm, tuner.study.confirm_replicates) == (1, 4)
    sentence = refused(capsys, "--space smoke --out a --resume --confirm-replicates 3")
    assert sentence.startswith("--confirm-replicates goes with --confirm; add it")
    sentence = refused(capsys, "--space smoke --out b --resume --confirm 0")
    assert "has 1 confirm, which can grow but not shrink to 0" in sentence
    for name in ("confirm", "confirm_replicates", "objectives"):  # as an earlier version wrote it
        del stored[name]
    Path("b/study.json").write_text(json.dumps(stored))
    assert start("--space smoke --out b --resume") == 0
    assert (tuner.study.confirm, tuner.study.objectives) == (0, ("mean_coherence",))


def test_a_data_set_is_kept_when_a_study_is_resumed(tuner, capsys):
    assert start("--space fusion --dataset faces --out a") == 0
    assert start("--space fusion --out a --resume") == 0
    assert [study.base.data.name for study in tuner.studies] == ["faces"] * 2
    assert tuner.studies[0].base == tuner.studies[1].base
    sentence = refused(
        capsys, "--space fusion --out a --resume --dataset polydigits-2 --objectives coherence"
    )
    assert sentence.startswith("the study in ")


@pytest.mark.parametrize("content", [None, "{}", '{"data": {"dig', '{"data": 1}'])
def test_a_study_whose_manifest_is_missing_or_damaged_is_refused(tuner, capsys, content):
    assert start("--space smoke") == 0
    file = Path("runs/smoke/manifest.json")
    file.unlink() if content is None else file.write_text(content)
    sentence = refused(capsys, "--space smoke --resume")
    assert (
        "smoke/manifest.json is missing or damaged, so what the study was started on is unknown" in sentence
    )
    assert len(tuner.studies) == 1


def test_a_study_goes_on_though_its_scheduler_was_never_asked(tuner, capsys):
    """As earlier versions let it start."""
    every = "--evaluation.every 9"
    assert start(f"--space smoke {every}") == 0
    file = Path("runs/smoke/study.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scheduler": "asha"}))
    assert start(f"--space smoke {every} --resume") == 0
    assert tuner.study.scheduler == "asha"


def test_a_study_that_goes_on_has_not_ended(tuner):
    assert start("--space smoke") == 0
    manifest.write_ended(tuner.study.out)
    file = Path("runs/smoke/manifest.json")
    assert json.loads(file.read_text())["ended_at"]
    assert start("--space smoke --resume") == 0
    assert json.loads(file.read_text())["ended_at"] is None


def test_folders_are_absolute(tuner, tmp_path):
    Path("mine").mkdir()
    start("--space smoke --data-dir mine")
    assert tuner.study.out == tmp_path / "runs" / "smoke"
    assert tuner.study.base.data.dir == tmp_path / "mine"


def test_dry_run_shows_the_configs_and_writes_nothing(capsys, tuner, tmp_path):
    assert start("--space subspaces --replicates 3 --dry-run") == 0
    shown = capsys.readouterr().out
    assert "8 configs x 3 replicates = 24 trials" in shown
    assert start("--space subspaces --confirm 2 --confirm-replicates 5 --dry-run") == 0
    size = "8 configs x 2 replicates + 3 to confirm x 5 replicates = 31 trials"
    assert size in capsys.readouterr().out
    assert [line.split() for line in shown.splitlines()][-2:] == [["16", "2.5"], ["16", "10"]]
    assert str(tmp_path / "runs" / "subspaces") in shown
    assert start("--space priors --dry-run") == 0
    assert "objective.weights  Simplex(size=4, lower=0.02)" in capsys.readouterr().out
    assert not tuner.studies
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_a_study_may_cost_and_how_that_is_known(capsys, monkeypatch):
    line = "--space subspaces --preset laptop --dry-run"
    assert start(line) == 0
    shown = dict(each.split("  ", 1) for each in capsys.readouterr().out.splitlines() if "  " in each)
    cost = re.match(r" *about ([\d.]+) min of device time for the base config, by a rule", shown["cost"])
    # 16 trials took two cores 9 min 34 s in all, so at most twice that; the rule knows it to a factor of two.
    assert 19 / 2 < float(cost[1]) < 19 * 2
    disk = re.match(r" *about ([\d.]+) MB: 2.1 MB a trial, and 16 checkpoints of 2.6 MB", shown["disk"])
    assert float(disk[1]) == pytest.approx(16 * (2.1 + 2.6), abs=0.1)
    assert start(f"{line} --keep-checkpoints 2") == 0
    assert "3 checkpoints" in capsys.readouterr().out
    assert start(f"{line} --dataset polydigits-5") == 0
    assert "unknown before a trial has ended: there is no rule for polydigits-5" in capsys.readouterr().out
    monkeypatch.setattr(manifest, "gpus", lambda: ["H100"])
    assert start(line) == 0
    assert "unknown before a trial has ended: there is no rule for GPUs" in capsys.readouterr().out


def test_a_dry_run_of_a_study_that_goes_on_counts_what_ended_otherwise(capsys, tmp_path):
    assert start("--space subspaces --out own") == 0
    for number, state in enumerate(("COMPLETE", "STOPPED", "FAILED")):
        store.write_trial(tmp_path / "own", trial(f"{number}-r0", state=state, device_s=60.0), {})
        store.write_measurements(tmp_path / "own", f"{number}-r0", [])
    assert start("--space subspaces --out own --resume --dry-run") == 0
    assert "for 13 trials to come, like the 1 complete here" in capsys.readouterr().out
    assert start("--space subspaces --out own --resume --retry failed --dry-run") == 0
    assert "for 14 trials to come, like the 1 complete here" in capsys.readouterr().out


def test_a_dry_run_counts_trials_whose_measurements_were_deleted_as_to_come(capsys, tmp_path):
    assert start("--space subspaces --out own") == 0
    for number, state in enumerate(("COMPLETE", "COMPLETE", "STOPPED", "DIVERGED")):
        store.write_trial(tmp_path / "own", trial(f"{number}-r0", state=state, device_s=60.0), {})
    store.write_measurements(tmp_path / "own", "0-r0", [])
    assert start("--space subspaces --out own --resume --dry-run") == 0
    assert "for 14 trials to come, like the 1 complete here" in capsys.readouterr().out


def test_a_dry_run_of_a_study_that_goes_on_knows_its_trials(capsys, tmp_path):
    assert start("--space subspaces --out own") == 0
    for number, device_s in enumerate((50.0, 70.0)):
        store.write_trial(tmp_path / "own", trial(f"{number}-r0", device_s=device_s), {})
        store.write_measurements(tmp_path / "own", f"{number}-r0", [])
    assert start("--space subspaces --out own --resume --dry-run") == 0
    shown = capsys.readouterr().out
    assert (
        "about 14 min of device time for 14 trials to come, like the 2 complete here, which took 60 s"
        in shown
    )


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ({}, 0, ""),
        ({"diverged": 1}, 0, ""),
        ({"failed": 1}, 1, ""),
        ({"missing": 3, "budget_is_spent": True}, 0, ""),
        ({"missing": 3}, 130, "interrupted; the same command with --resume goes on"),
        ({"error": KeyboardInterrupt()}, 130, "interrupted"),
        ({"error": ClusterError("the cluster has no room")}, 2, "error: the cluster has no room"),
        (
            {"error": OSError(errno.ENOSPC, "No space left on device", "runs/smoke")},
            1,
            "error: no space left for runs/smoke; free some, and the same command with --resume goes on",
        ),
        ({"error": ConnectionError("no Ray\nat auto")}, 2, "error: no Ray at auto"),
        (
            {"error": PermissionError(errno.EACCES, "Permission denied", "/root/x")},
            2,
            "error: cannot read or write /root/x: Permission denied",
        ),
        (
            {"complete": 0},
            1,
            "error: nothing was trained: every config that the sampler proposed was refused",
        ),
    ],
)
def test_exit_code_says_how_the_study_ended(capsys, tuner, ending, code, words):
    for name, value in ending.items():
        setattr(tuner, name, value)
    assert start("--space smoke") == code
    assert capsys.readouterr().err.startswith(words)


def test_says_where_results_are_and_how_a_shell_takes_the_folder(tuner, caplog, tmp_path):
    caplog.set_level("INFO")
    assert main(["--space", "smoke", "--out", "own runs/a"]) == 0
    assert f"results: {tmp_path}/own runs/a/results" in caplog.messages
    assert f"report:  python analysis/report.py '{tmp_path}/own runs/a'" in caplog.messages
    url = "s3://studies/a?endpoint_override=127.0.0.1:9000&scheme=http"
    assert _run(replace(tuner.study, bucket_url=url)) == 0
    assert "results: s3://studies/a/results" in caplog.messages
    assert f"report:  python analysis/report.py '{url}'" in caplog.messages


def test_failed_trials_come_with_the_way_to_try_them_again(tuner, caplog):
    tuner.failed = 1
    with caplog.at_level("INFO"):
        assert start("--space smoke") == start("--space smoke --resume") == 1
    assert caplog.text.count("--resume --retry failed tries the failed ones again") == 2


def test_a_study_for_which_a_cluster_has_no_room_leaves_the_folder_free(tuner, capsys):
    tuner.error = ClusterError("the cluster has no room")
    assert refused(capsys, "--space smoke") == "the cluster has no room"
    tuner.error = None
    assert start("--space smoke") == 0


@pytest.mark.parametrize("file", ["manifest.json", "study.json"])
def test_a_disk_that_is_full_at_the_start_costs_one_more_start(monkeypatch, capsys, file):
    def replace(source, target):
        if target.name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        source.rename(target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        assert start("--space smoke") == 1
    told = capsys.readouterr().err
    assert told == "error: no space left; free some, and the same command starts again\n"
    assert not list(Path("runs/smoke").glob(".*.json.*"))
    assert start("--space smoke") == 0


def test_a_replay_that_is_interrupted_starts_again(monkeypatch, capsys):
    def interrupt(path, run):
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "study.replay", SimpleNamespace(replay=interrupt))
    assert start("--replay runs/smoke/abc-r0") == 130
    assert capsys.readouterr().err == "interrupted; the same command starts again\n"


def test_an_interrupt_while_data_are_prepared_leaves_no_study(monkeypatch, capsys):
    def interrupt(name, folder, progress):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(datasets, "load", interrupt)
        assert start("--space smoke") == 130
    assert capsys.readouterr().err == "interrupted; the same command starts again\n"
    assert start("--space smoke") == 0


def test_data_that_crash_the_classifiers_leave_no_study(monkeypatch, tuner):
    def crash(data, progress):
        raise IndexError("label 10 of 10 classes")

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["mmjsd.classifiers"], "load_classifiers", crash)
        with pytest.raises(IndexError):
            start("--space smoke")
    assert start("--space smoke") == 0


def test_a_study_keeps_its_sqlite_file_from_wherever_it_goes_on(monkeypatch, tuner, tmp_path, capsys):
    monkeypatch.setattr("study.storage.check_storage", lambda study: None)
    own = f"sqlite:///{tmp_path}/own.db"
    assert start("--space smoke --out a --storage sqlite:///own.db") == 0
    assert json.loads(Path("a/study.json").read_text())["storage"] == tuner.study.storage == own
    Path("other").mkdir()
    monkeypatch.chdir("other")
    assert start("--space smoke --out ../a --resume") == 0
    assert tuner.study.storage == own
    sentence = refused(capsys, "--space smoke --out ../a --resume --storage sqlite:///own.db")
    assert f"has storage '{own}', not 'sqlite:///{tmp_path}/other/own.db'" in sentence
    monkeypatch.chdir("..")
    file = Path("a/study.json")  # as an earlier version wrote it
    file.write_text(json.dumps(json.loads(file.read_text()) | {"storage": "sqlite:///own.db"}))
    assert start("--space smoke --out a --resume --storage sqlite:///own.db") == 0


@pytest.mark.parametrize(
    "url",
    ["sqlite:////own.db", "sqlite:///file:x?uri=true", "mysql:///x"],
)
def test_other_databases_stay_where_they_are(monkeypatch, tuner, url):
    monkeypatch.setattr("study.storage.check_storage", lambda study: None)
    assert start(f"--space smoke --storage {url}") == 0
    assert tuner.study.storage == url


def test_the_commands_of_a_report_make_the_study_what_it_became(tuner, tmp_path, monkeypatch):
    for options in ("--trials 1 --seed 3", "--resume", "--trials 2 --resume", "--replicates 3 --resume"):
        assert start(f"--space subspaces --out own {options}") == 0
    study, record = (json.loads(Path("own", name).read_text()) for name in ("study.json", "manifest.json"))
    lines = commands(SimpleNamespace(runs=[SimpleNamespace(study=study, manifest=record)])).splitlines()
    words = [line.removeprefix("python study/run.py ") for line in lines]
    assert [each.partition("own ")[2] for each in words] == [
        "--trials 1 --seed 3",
        "--trials 2 --resume",
        "--replicates 3 --resume",
    ]
    assert start(words[-1]) == 0
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert [start(each) for each in words] == [0, 0, 0]
    again = json.loads(Path("own", "study.json").read_text())
    assert again | {"started_at": study["started_at"]} == study


def test_each_session_keeps_the_code_that_it_ran(tuner, tmp_path, monkeypatch):
    def git(*arguments, at="code", **more):
        author = ["-c", "user.name=of-nobody", "-c", "user.email=of-nobody@example.org"]
        subprocess.run(
            ["git", *author, *arguments], cwd=tmp_path / at, check=True, capture_output=True, **more
        )

    code = tmp_path / "code"
    code.mkdir()
    git("init")
    (code / "old.py").write_text("first = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(manifest, "__file__", str(code / "study" / "manifest.py"))
    assert start("--space smoke --out own") == 0
    (code / "old.py").write_text("second = 2\n")
    (code / "new.py").write_text("third = 3\n")
    (code / "data.npz").write_bytes(bytes(1000))
    assert start("--space smoke --out own --resume") == 0
    record = json.loads((tmp_path / "own" / "manifest.json").read_text())
    (session,) = record["resumed"]
    assert (record["dirty"], record["diff"], session["dirty"]) == (False, "", True)
    assert session["versions"] == record["versions"]
    git("clone", "code", "copy", at=".")
    git("apply", at="copy", input=session["diff"].encode())
    texts = {file.name: file.read_text() for file in (tmp_path / "copy").glob("*.py")}
    assert texts == {"old.py": "second = 2\n", "new.py": "third = 3\n"}
    assert "data.npz" not in session["diff"]


def run(*argv, cwd):
    """study/run.py in a process of its own, which names the heavy modules that it has; its CPU seconds."""
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        f"finally: sys.stderr.write(' '.join(sorted(sys.modules.keys() & set({HEAVY!r}))))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code, str(ROOT / "study" / "run.py"), *argv]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--help"], "--objective.beta_content FLOAT"),
        (["--space", "smoke", "--help"], "(default: 0.1)"),
        (["--space", "subspaces", "--dry-run"], "8 configs x 2 replicates = 16 trials"),
    ],
)
def test_starts_in_two_seconds_without_heavy_imports(tmp_path, argv, words):
    done, cpu_s = run(*argv, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert words in done.stdout
    assert cpu_s < 2


def test_ends_quietly_when_nobody_reads_on(tmp_path):
    command = [sys.executable, str(ROOT / "study" / "run.py"), "--help"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert "Traceback" not in told
    assert "Exception" not in told


@pytest.mark.slow
def test_refuses_where_ray_can_start_no_process(tmp_path):
    code = (
        "import sys; from study import joining, run\n"
        "joining._START_S = 5; joining.ALLOCATOR['PYTHONHOME'] = '/nowhere'\n"  # with which no Python starts
        "sys.exit(run.main(sys.argv[1:]))"
    )
    argv = ["--space", "smoke", "--preset", "laptop", "--out", str(tmp_path / "run")]
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": folder}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "error: Ray started no process on this machine within 5 s; " in done.stderr
    log = Path(done.stderr.split("within 5 s; ")[1].split(" says why")[0])
    assert "No module named" in log.read_text()
    assert "Traceback" not in done.stderr
    shutil.rmtree(folder)


def test_runs_from_anywhere_without_pythonpath(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "study" / "run.py"), "--space", "smoke", "--objective.bta", "3"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: unknown option --objective.bta; did you mean --objective.beta?\n"
