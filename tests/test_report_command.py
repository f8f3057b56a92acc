"""The command line of reports: what it refuses, in one sentence, and what it does without."""

import errno
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis import report
from analysis.reading import ReportError, load
from analysis.report import main, write_report
from study import store
from tests.reports import SUBSPACES, shortcut
from tests.reports import subspaces as subspaces  # a fixture
from tests.synthetic import write_study

ROOT = Path(__file__).resolve().parents[1]


def test_a_picture_of_another_config_is_not_called_the_bests(tmp_path):
    run = write_study(tmp_path / "run", SUBSPACES[:4], shortcut)
    configs = load(run).configs
    for config in configs[1:3]:
        for trial in config.trials:
            folder = run / "samples" / trial.trial_id
            folder.mkdir(parents=True)
            for name in ("overview", "conditional_svhn"):
                (folder / f"{name}.png").write_bytes(b"a picture")
    page = write_report(run).read_text(encoding="utf-8")
    assert "Median: config 2" in page
    assert "Best: config" not in page
    assert "Worst: config" not in page
    assert "svhn is missing" not in page
    shown = {f"samples_{configs[1].trials[0].trial_id}_overview.png"}
    assert {file.name for file in (run / "report" / "figures").glob("samples_*")} == shown


def test_command_refuses_in_one_sentence_what_it_cannot_read(tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "hollow" / "results").mkdir(parents=True)
    write_study(tmp_path / "torn", SUBSPACES[:1], shortcut)
    (tmp_path / "torn" / "study.json").write_text('{"study":')
    for name, words in (
        ("missing", "no folder"),
        ("nothing", "holds no results"),
        ("hollow", "holds no results and no study.json"),
        ("torn", "study.json is damaged"),
    ):
        assert main([str(tmp_path / name)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert words in captured.err
    with pytest.raises(ReportError, match="no folder"):
        write_report(tmp_path / "missing")
    run = write_study(tmp_path / "run", SUBSPACES[:1], shortcut)
    (tmp_path / "file").touch()
    (tmp_path / "there" / "figures").mkdir(parents=True)
    (tmp_path / "there" / "index.html").mkdir()  # as little to be written as another user's
    for out in ("file", "file/report", "there"):
        assert main([str(run), "--out", str(tmp_path / out)]) == 2
        assert f"the report cannot be written to {tmp_path / out}" in capsys.readouterr().err


def test_command_names_a_foreign_and_an_older_file_and_the_way_out(tmp_path, capsys, monkeypatch):
    run = write_study(tmp_path / "run", SUBSPACES[:1], shortcut)
    foreign = run / "results" / "trials" / "foreign.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(foreign)
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert f"{foreign} is not a results file: it lacks study" in error
    assert "move it out of the folder" in error
    foreign.unlink()
    with monkeypatch.context() as patch:
        patch.setitem(store._METADATA, b"mmjsd.schema_version", b"0")
        write_study(run, SUBSPACES[1:2], shortcut)
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "has schema version 0; expected 1: read it with the commit that manifest.json names" in error


def test_command_runs_as_a_script_and_refuses_a_damaged_file(tmp_path):
    run = write_study(tmp_path / "run", SUBSPACES[:1], shortcut)
    (run / "results" / "trials" / "torn.parquet").write_bytes(b"PAR1 torn")
    done = subprocess.run(
        [sys.executable, "analysis/report.py", str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "torn.parquet is damaged" in done.stderr


def test_command_imports_neither_torch_nor_ray(subspaces):
    script = (
        "import runpy, sys\n"
        "sys.argv = ['analysis/report.py', sys.argv[1]]\n"
        "try:\n    runpy.run_path('analysis/report.py', run_name='__main__')\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "heavy = {'torch', 'ray'}\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & heavy))\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(subspaces)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["[]", "False"]


def test_command_leaves_a_users_own_figures_and_tables_alone(tmp_path, capsys):
    run = write_study(tmp_path / "run", SUBSPACES[:1], shortcut)
    paper = tmp_path / "paper"
    for name in ("figures/architecture.svg", "tables/hand.tex"):
        (paper / name).parent.mkdir(parents=True)
        (paper / name).write_text("mine")
        assert main([str(run), "--out", str(paper)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{paper} holds {name}, which no report wrote; choose another --out" in error
        assert (paper / name).read_text() == "mine"
        (paper / name).unlink()
    for _ in range(2):
        assert main([str(run), "--out", str(paper)]) == 0
        (paper / "figures" / "weights_1.svg").write_text("old")
    assert main([str(run), "--out", str(paper)]) == 0
    assert not (paper / "figures" / "weights_1.svg").exists()


@pytest.mark.parametrize("step", ["_write_figures", "_write_tables"])
def test_a_report_that_was_interrupted_can_be_written_again(tmp_path, monkeypatch, step):
    run, paper = write_study(tmp_path / "run", SUBSPACES[:1], shortcut), tmp_path / "paper"
    write = getattr(report, step)

    def interrupted(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_report(run, out=paper)
    assert write_report(run, out=paper).is_file()


@pytest.mark.parametrize("name", ["run", "study.json", "trials", "trial"])
def test_command_names_what_may_not_be_read_and_does_not_call_it_damaged(tmp_path, capsys, monkeypatch, name):
    run = write_study(tmp_path / "run", SUBSPACES[:1], shortcut)
    closed = {"run": run, "study.json": run / "study.json"}
    closed["trials"] = run / "results" / "trials"
    closed["trial"] = next(closed["trials"].glob("*.parquet"))

    def refused(method):
        def refuse(path, *rest, **named):
            if path == closed[name]:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return method(path, *rest, **named)

        return refuse

    for method in ("is_dir", "iterdir", "read_text", "read_bytes"):
        monkeypatch.setattr(Path, method, refused(getattr(Path, method)))
    assert main([str(run)]) == 2
    told = f"error: {closed[name]} cannot be read (Permission denied); make it readable and try again\n"
    assert capsys.readouterr().err == told
