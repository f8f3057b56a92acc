"""What the command line makes of its options, what it refuses, and what it leaves in the study's folder."""

import errno
import json
import os
import re
import resource
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from filelock import FileLock

from mmjsd import data as datasets
from study import manifest, store
from study.config import PRESETS, ClusterError
from study.run import main
from tests.test_store import trial

ROOT = Path(__file__).resolve().parents[1]
BOTH = "--objectives mean_coherence log_likelihood"
HEAVY = ("torch", "ray", "sklearn", "torchvision", "optuna", "pyarrow")


@dataclass
class Tuner:
    """Takes the place of study.tuner: notes the studies that it is given and says how they ended."""

    studies: list
    complete: int = 4
    stopped: int = 0
    diverged: int = 0
    failed: int = 0
    missing: int = 0
    budget_is_spent: bool = False
    error: BaseException | None = None

    def run_study(self, study):
        self.studies.append(study)
        if self.error:
            raise self.error
        return self

    @property
    def study(self):
        return self.studies[-1]


@pytest.fixture(autouse=True)
def tuner(monkeypatch, tmp_path):
    """A folder to run in, a machine of four CPUs without GPU, prepared data, neither Ray nor torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(manifest, "gpus", list)
    prepared = SimpleNamespace(digest="0123abcd")
    monkeypatch.setattr(datasets, "load", lambda name, folder, progress=None: prepared)
    fake, module, classifiers = Tuner([]), ModuleType("study.tuner"), ModuleType("mmjsd.classifiers")
    module.run_study = fake.run_study
    classifiers.load_classifiers = lambda data, progress: {}
    monkeypatch.setitem(sys.modules, "study.tuner", module)
    monkeypatch.setitem(sys.modules, "mmjsd.classifiers", classifiers)
    return fake


def start(line):
    """The exit code of a command line whose words hold no spaces."""
    return main(line.split())


def refused(capsys, line):
    """The sentence with which a command line is refused."""
    assert start(line) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "--dry-run",
            "--space is missing; choose one of faces, fusion, paper, priors, smoke, subspaces, or give a",
        ),
        (
            "--space subspacs",
            "unknown space 'subspacs'; did you mean 'subspaces'? choose one of faces, fusion, paper,",
        ),
        ("--space none.py", "no space file at none.py"),
        (
            "--space smoke --dataset mnistt",
            "unknown data set 'mnistt'; choose one of digits, mnist-svhn-text",
        ),
        ("--space smoke --dataset digits --data.name x", "--dataset digits and --data.name x contradict"),
        ("--space smoke --objective.bta 3", "unknown option --objective.bta; did you mean --objective.beta?"),
        ("--space smoke --objective.bta=3", "unknown option --objective.bta; did you mean --objective.beta?"),
        ("--space smoke --beta 3", "unknown option --beta; did you mean --objective.beta?"),
        ("--space smoke --gpus-per-workers 3", "did you mean --gpus-per-worker?"),
        ("--space smoke --xyz", "unknown option --xyz; see --help"),
        ("--space smoke again", "unexpected argument 'again'"),
        ("--space smoke --objective.beta much", "--objective.beta cannot be 'much'; expected FLOAT"),
        ("--space smoke --objective.beta", "--objective.beta needs a value"),
        ("--space smoke --objective.weights", "--objective.weights needs a value"),
        ("--space smoke --trials", "--trials needs a value: INT"),
        ("--space smoke --objective.beta -1", "beta must be finite and >= 0, got -1.0"),
        ("--space smoke --budget-samples 0.5", "budget_samples must be >= 1, got 0.5"),
        (
            "--space smoke --budget-samples 9 --data.samples_per_epoch 9",
            "--budget-samples and --data.samples_per_epoch contradict each other",
        ),
        ("--space smoke --budget 2d", "budget must be a time such as 90s, 30m or 2h, got '2d'"),
        (
            "--space smoke --objective.name mmjds",
            "cannot be 'mmjds'; expected one of mmjsd, mmvae, mopoe, mvae, mvtcae",
        ),
        ("--space smoke --preset desk", "--preset cannot be 'desk'; expected one of laptop, paper"),
        ("--space smoke --model.style_dim many", "--model.style_dim cannot be 'many'; expected INT or"),
        (
            "--space fusion --model.style_dim svhn 3",
            "model.style_dim names svhn; the modalities of digits are",
        ),
        (
            "--space smoke --objective.weights .3 .3 .3 .3",
            "weights must sum to one, got 0.3, 0.3, 0.3, 0.3 with",
        ),
        ("--space smoke --objective.weights .3 .3 .4", "weights must have 4 entries"),
        ("--space fusion --objective.name mvae", "gives objective.fusion a value that cannot be: mvae is"),
        ("--space subspaces --model.style_dim.svhn 3", "fix it with --model.style_dim"),
        ("--space smoke --trials 0", "trials must be >= 1, got 0"),
        ("--space smoke --replicates -1", "replicates must be >= 1, got -1"),
        ("--space smoke --workers 0", "workers must be >= 1, got 0"),
        ("--space smoke --pack 0", "pack must be >= 1, got 0"),
        ("--space smoke --pack 2 --workers 2", "--pack trains several trials in one process; leave it out"),
        ("--space smoke --seed -1", "seed must lie in [0, 2^32), got -1"),
        ("--space smoke --retry failed", "--retry goes with --resume; add it, or leave --retry out"),
        (
            "--space smoke --resume --retry stopped",
            "--retry cannot be 'stopped'; expected one of diverged, failed",
        ),
        ("--replay runs/a/b-r0 --trials 3", "--replay goes without other options; leave them out"),
        (
            "--space smoke --objectives loss",
            "--objectives cannot be 'loss'; expected one of log_likelihood, mean",
        ),
        ("--space smoke --objectives", "--objectives needs a value"),
        ("--space smoke --objectives coherence,mean_coherence", "names mean_coherence twice; leave one"),
        ("--space smoke --objectives coherence,lost", "--objectives cannot be 'lost'; expected one of"),
        ("--space smoke --objectives mean_coherence mean_coherence", "names mean_coherence twice; leave one"),
        (f"--space priors --sampler cmaes {BOTH}", "--sampler cmaes seeks one objective; choose another"),
        (f"--space smoke --scheduler asha {BOTH}", "--scheduler asha judges by one objective; leave it out"),
        (f"--space smoke --confirm 1 {BOTH}", "--confirm ranks by one objective; leave it out"),
        (
            "--space smoke --scheduler median --objectives log_likelihood",
            "log_likelihood is measured after the last epoch alone, too late for --scheduler median",
        ),
        (
            f"--space smoke --evaluation.importance_samples 0 {BOTH}",
            "log_likelihood needs evaluation.importance_samples >= 1, got 0",
        ),
        ("--space smoke --loggers wandbb", "--loggers cannot be 'wandbb'; expected one of mlflow, wandb"),
        ("--space smoke --confirm -1", "confirm must be >= 0, got -1"),
        ("--space smoke --confirm-replicates 3", "--confirm-replicates goes with --confirm; add it"),
        ("--space smoke --confirm 1 --model.style_dim 1", "the space varies no field, so there is nothing"),
        ("--space smoke --replicates 1001", "replicates must be <= 1000, got 1001"),
        ("--space smoke --budget-device-hours 0", "budget_device_hours must be > 0, got 0.0"),
        ("--space smoke --keep-checkpoints -1", "keep_checkpoints must be >= 0, got -1"),
        ("--space smoke --workers 5", "--workers 5 is more than this machine's 4 CPUs"),
        ("--space smoke --gpus-per-worker 1", "the workers need 1 GPU, this machine has 0 GPUs"),
        ("--space smoke --workers 3", "training.batch_size 50 does not split evenly over 3 workers"),
        ("--space smoke --out file", "file is a file; choose a folder for --out"),
        ("--space smoke --out taken", "taken is not empty and holds no study; choose another --out"),
        ("--space smoke --out file/below", "cannot write to"),
        ("--space smoke --resume", "nothing to resume: there is no"),
    ],
)
def test_refuses_in_one_sentence(capsys, tuner, line, sentence):
    Path("file").touch()
    Path("taken").mkdir()
    Path("taken", "letter.txt").touch()
    assert sentence in refused(capsys, line)
    assert not tuner.studies


@pytest.mark.parametrize("choice", ["--evaluation.features inception", "--space space.py"])
def test_refuses_inception_without_its_weights(capsys, monkeypatch, tuner, choice):
    def find_weights(folder, progress):
        raise datasets.DataError(f"no weights in {folder}")

    module = ModuleType("mmjsd.inception")
    module.find_weights = find_weights
    monkeypatch.setitem(sys.modules, "mmjsd.inception", module)
    Path("space.py").write_text(
        '"""Which features?"""\nfrom study.space import Choice, SearchSpace\n'
        'SPACE = SearchSpace({"evaluation.features": Choice(("classifier", "inception"))})\n'
    )
    space = "" if "space.py" in choice else "--space smoke"
    assert refused(capsys, f"{space} {choice} --out out") == "no weights in None"
    assert not tuner.studies
    assert not Path("out", "study.json").exists()
    assert start("--space smoke --out other") == 0


def test_refuses_data_that_are_not_there(capsys, tmp_path):
    sentence = refused(capsys, f"--space fusion --dataset mnist-svhn-text --data-dir {tmp_path}")
    assert str(tmp_path) in sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("raise RuntimeError('two\\nlines')", "cannot be loaded: RuntimeError: two lines"),
        ("SPACE = 1", "defines no SPACE"),
        ("SPACE = SearchSpace({'objective.bta': Uniform(1, 2)})", "did you mean 'objective.beta'?"),
        ("SPACE = SearchSpace({'objective.beta': Uniform(-1, 2)})", "beta must be finite and >= 0, got -1"),
        ("SPACE = SearchSpace({'objective.weights': Simplex(3)})", "needs a Simplex of size 4 for digits"),
        ("SPACE = SearchSpace({}, base={'model.wdth': 1})", "did you mean 'model.width'?"),
    ],
)
def test_refuses_a_space_file_that_cannot_be(capsys, text, sentence):
    Path("own.py").write_text(f"from study.space import SearchSpace, Simplex, Uniform\n{text}\n")
    assert sentence in refused(capsys, "--space own.py")


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
    sentence = refused(capsys, "--space smoke --out b --resume --confirm 0")
    assert "has 1 confirm, which can grow but not shrink to 0" in sentence
    for name in ("confirm", "confirm_replicates", "objectives"):  # as an earlier version wrote it
        del stored[name]
    Path("b/study.json").write_text(json.dumps(stored))
    assert start("--space smoke --out b --resume") == 0
    assert (tuner.study.confirm, tuner.study.objectives) == (0, ("mean_coherence",))


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
    disk = re.match(r" *about ([\d.]+) MB: 1.1 MB a trial, and 16 checkpoints of 2.6 MB", shown["disk"])
    assert float(disk[1]) == pytest.approx(16 * (1.1 + 2.6), abs=0.1)
    assert start(f"{line} --keep-checkpoints 2") == 0
    assert "3 checkpoints" in capsys.readouterr().out
    assert start(f"{line} --dataset polydigits-5") == 0
    assert "unknown before a trial has ended: there is no rule for polydigits-5" in capsys.readouterr().out
    monkeypatch.setattr(manifest, "gpus", lambda: ["H100"])
    assert start(line) == 0
    assert "unknown before a trial has ended: there is no rule for GPUs" in capsys.readouterr().out


def test_a_dry_run_of_a_study_that_goes_on_knows_its_trials(capsys, tmp_path):
    assert start("--space subspaces --out own") == 0
    for number, device_s in enumerate((50.0, 70.0)):
        store.write_trial(tmp_path / "own", trial(f"{number}-r0", device_s=device_s), {})
    assert start("--space subspaces --out own --resume --dry-run") == 0
    shown = capsys.readouterr().out
    assert (
        "about 14 min of device time for 14 trials to come, like the 2 ended here, which took 60 s" in shown
    )


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
    assert tuner.study == tuner.studies[0]  # replicates and seed come from study.json
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
    ],
)
def test_exit_code_says_how_the_study_ended(capsys, tuner, ending, code, words):
    for name, value in ending.items():
        setattr(tuner, name, value)
    assert start("--space smoke") == code
    assert capsys.readouterr().err.startswith(words)


def test_failed_trials_come_with_the_way_to_try_them_again(tuner, caplog):
    tuner.failed = 1
    with caplog.at_level("INFO"):
        assert start("--space smoke") == start("--space smoke --resume") == 1
    assert caplog.text.count("--resume --retry failed tries the failed ones again") == 2


def test_an_interrupt_while_data_are_prepared_leaves_no_study(monkeypatch):
    def interrupt(name, folder, progress):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(datasets, "load", interrupt)
        assert start("--space smoke") == 130
    assert start("--space smoke") == 0


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
