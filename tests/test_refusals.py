"""What the command line refuses: in one sentence, before anything starts."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from mmjsd import data as datasets
from study.config import ClusterError
from tests.command_line import BOTH, refused, start
from tests.command_line import tuner as tuner  # a fixture


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
        (
            "--space fusion --sampler cmaes",
            "--sampler cmaes seeks among numbers, of which the space varies none; choose tpe, or",
        ),
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
        (
            "--space smoke --scheduler asha --evaluation.every 9",
            "--scheduler asha stops configs between evaluations, but evaluation.every 9 leaves only that",
        ),
        (
            "--space smoke --out s3:/bucket/run",
            "s3:///bucket/run names no folder in a bucket; expected s3://",
        ),
        (
            "--space smoke --out ~nobody-here/run",
            "cannot find ~nobody-here/run: ~nobody-here is no user's home; choose another --out",
        ),
        (
            "--space smoke --data-dir ~nobody-here/data",
            "~nobody-here is no user's home; choose another --data-dir",
        ),
        ("--replay ~nobody-here/run/abc-r0", "~nobody-here is no user's home; choose another --replay"),
        ("--space smoke --loggers wandbb", "--loggers cannot be 'wandbb'; expected one of mlflow, wandb"),
        ("--space smoke --confirm -1", "confirm must be >= 0, got -1"),
        ("--space smoke --confirm-replicates 3", "--confirm-replicates goes with --confirm; add it"),
        ("--space smoke --confirm 1 --model.style_dim 1", "the space varies no field, so there is nothing"),
        ("--space smoke --replicates 1001", "replicates must be <= 1000, got 1001"),
        ("--space smoke --budget-device-hours 0", "budget_device_hours must be > 0, got 0.0"),
        ("--space smoke --keep-checkpoints -1", "keep_checkpoints must be >= 0, got -1"),
        ("--space smoke --workers 5", "--workers 5 is more than this machine's 4 CPUs"),
        ("--space smoke --gpus-per-worker 1", "the workers need 1 GPU, this machine has 0 GPUs"),
        ("--space smoke --gpus-per-worker 2", "gpus_per_worker must be 0 or 1, or a share between"),
        ("--space smoke --gpus-per-worker nan", "gpus_per_worker must be 0 or 1, or a share between"),
        ("--space smoke --gpus-per-worker 0.5 --workers 2", "got 0.5 for workers 2; a worker trains on one"),
        ("--space smoke --workers 3", "training.batch_size 50 does not split evenly over 3 workers"),
        (
            "--space smoke --workers 3 --evaluation.num_samples 2",
            "evaluation.num_samples 2 are too few for 3 workers; raise it, or take fewer --workers",
        ),
        ("--space smoke --out file", "file is a file; choose a folder for --out"),
        ("--space smoke --out foreign", "foreign is not empty and holds no study; choose another --out"),
        ("--space smoke --out taken", "taken is not empty and holds no study; choose another --out"),
        ("--space smoke --out file/below", "cannot write to"),
        ("--space smoke --out=", "--out is empty; name a folder, or leave --out out"),
        (
            "--space smoke --address ray://127.0.0.1:10001",
            "--address ray://127.0.0.1:10001 is Ray's client, through which no study can run; give HOST:PORT",
        ),
        ("--space smoke --resume", "nothing to resume: there is no"),
        ("--space smoke --out lost --resume", "lost/study.json; put back a copy, or choose another --out"),
        *(
            (
                f"--space smoke --storage {url}",
                "--storage keeps SQLite's database in memory, where it is lost",
            )
            for url in (
                "sqlite://",
                "sqlite:///",
                "sqlite:///:memory:",
                "sqlite+pysqlite:///file::memory:?uri=true",
            )
        ),
    ],
)
def test_refuses_in_one_sentence(capsys, tuner, line, sentence):
    Path("file").touch()
    Path("taken").mkdir()
    Path("lost/results").mkdir(parents=True)
    Path("taken", "letter.txt").touch()
    Path("foreign").mkdir()
    Path("foreign", "manifest.json").write_text('{"name": "of a web page"}')
    assert sentence in refused(capsys, line)
    assert not tuner.studies


def test_refuses_a_ray_of_its_own_in_a_submitted_job(capsys, monkeypatch, tuner):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert refused(capsys, "--space smoke") == "this is a job of a Ray cluster; add --address auto"
    assert start("--space smoke --address auto") == 0


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("", "--out"),
        ("--out own", "--out"),
        ("--out {tmp_path}/own --storage sqlite:///own.db", "--storage"),
        ("--out {tmp_path}/own --storage sqlite:////own.db", None),
        ("--help", None),
    ],
)
def test_keeps_nothing_beside_the_code_of_a_submitted_job(capsys, monkeypatch, tuner, tmp_path, line, option):
    monkeypatch.setattr("study.storage.check_storage", lambda study: None)
    code = tmp_path / "working_dir_files" / "_ray_pkg_1"
    code.mkdir(parents=True)
    monkeypatch.chdir(code)
    line = f"--space smoke {line.format(tmp_path=tmp_path)}"
    if option is None:
        with nullcontext() if "--out" in line else pytest.raises(SystemExit):
            assert start(line) == 0
        return
    assert refused(capsys, line) == (
        f"{option} would lie in the folder of this job's code, which Ray deletes; give it an absolute path "
        "that every node sees"
    )
    assert not [*code.iterdir()]


def test_refuses_an_objective_that_takes_several_modalities(capsys, monkeypatch, tuner):
    one = replace(datasets.DATASETS["faces"], modalities=datasets.DATASETS["faces"].modalities[:1])
    monkeypatch.setitem(datasets.DATASETS, "faces", one)
    assert refused(capsys, "--space smoke --dataset faces") == (
        "mean_average_precision is not measured on faces, which has one modality; choose other --objectives"
    )
    assert start("--space smoke --dataset faces --objectives mean_probe_average_precision") == 0


@pytest.mark.parametrize(
    "choice",
    [
        "--space smoke --evaluation.features inception",
        "--space varied.py",
        "--space confirmed.py --preset laptop --confirm 1",
    ],
)
def test_refuses_inception_without_its_weights(capsys, monkeypatch, tuner, choice):
    def find_weights(folder, progress):
        raise datasets.DataError(f"no weights in {folder}")

    module = ModuleType("mmjsd.inception")
    module.find_weights = find_weights
    monkeypatch.setitem(sys.modules, "mmjsd.inception", module)
    text = "from study.space import Choice, SearchSpace\nSPACE = SearchSpace({'evaluation.features': %s)\n"
    Path("varied.py").write_text(text % "Choice(('classifier', 'inception'))}")
    preset = "presets={'laptop': {'evaluation.features': 'inception'}}"
    Path("confirmed.py").write_text(text % f"Choice(('classifier',))}}, {preset}")
    assert refused(capsys, f"{choice} --out out") == "no weights in None"
    assert not tuner.studies
    assert not Path("out", "study.json").exists()
    assert start("--space smoke --out other") == 0


def test_a_study_that_is_refused_leaves_no_folder_that_was_not_there(capsys, monkeypatch, tuner):
    def load(name, folder, progress):
        raise datasets.DataError(f"cannot download {name}")

    Path("empty").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "load", load)
        for out in ("runs/own", "empty"):
            assert refused(capsys, f"--space smoke --out {out}") == "cannot download digits"
    assert not Path("runs/own").exists()
    assert Path("empty").is_dir()
    tuner.error = ClusterError("the cluster has no room")
    assert refused(capsys, "--space smoke --out runs/own") == "the cluster has no room"
    assert not Path("runs/own").exists()
    tuner.error = None
    assert start("--space smoke --out runs/own") == 0
    assert Path("runs/own/study.json").exists()


def test_refuses_an_objective_that_a_config_would_not_measure(capsys, tuner):
    Path("own.py").write_text(
        "from study.space import Choice, SearchSpace\n"
        "SPACE = SearchSpace({'evaluation.importance_samples': Choice((4, 0))})\n"
    )
    sentence = refused(capsys, "--space own.py --objectives log_likelihood")
    assert sentence == "log_likelihood needs evaluation.importance_samples >= 1, got 0"
    assert start("--space own.py") == 0


@pytest.mark.parametrize(
    ("varied", "sentence"),
    [
        (
            "{'training.batch_size': Choice((33, 66))}",
            "training.batch_size 32 does not split evenly over 3 workers",
        ),
        (
            "{'evaluation.num_samples': Choice((3, 6))}, "
            "presets={'laptop': {'evaluation.num_samples': 2, 'training.batch_size': 33}}",
            "evaluation.num_samples 2 are too few for 3 workers; raise it, or take fewer --workers",
        ),
    ],
)
def test_refuses_a_base_config_that_can_be_searched_around_but_not_confirmed(capsys, tuner, varied, sentence):
    Path("own.py").write_text(f"from study.space import Choice, SearchSpace\nSPACE = SearchSpace({varied})\n")
    assert refused(capsys, "--space own.py --preset laptop --workers 3 --confirm 1") == sentence
    assert start("--space own.py --preset laptop --workers 3") == 0


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
        (
            "SPACE = SearchSpace({'objective.beta': (1, 2)})",
            "cannot be loaded: ValueError: search space gives",
        ),
    ],
)
def test_refuses_a_space_file_that_cannot_be(capsys, text, sentence):
    Path("own.py").write_text(f"from study.space import SearchSpace, Simplex, Uniform\n{text}\n")
    assert sentence in refused(capsys, "--space own.py")


def test_refuses_a_name_that_is_too_long(capsys, tuner):
    told = refused(capsys, f"--space smoke --out {'x' * 256}")
    assert told.endswith("x has too long a name; choose a shorter one")
    assert not tuner.studies
