"""What SECURITY.md promises: no code from files, no path out of a run's folder, no secret for other users."""

import ast
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.reading import load
from cluster.launcher import _Loader
from study import files, joining, store
from study.files import Bucket, FilesError
from study.search import Search
from study.store import StoreError
from tests.nodes import ROOT
from tests.studies import run, study
from tests.test_architecture import TREES, imports

UNSAFE = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "torch.serialization"}
CALLS = {"eval", "exec", "compile", "__import__"}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}


@pytest.mark.parametrize("name", sorted(TREES))
def test_no_module_reads_what_may_run_code(name):
    found = {module for module in imports(name) if module in UNSAFE}
    assert found == (
        {"pickle"} if name == "study.tuner" else set()
    )  # what Ray has just written, for the driver
    for function, keywords in calls(TREES[name]):
        assert function not in CALLS, function
        assert function not in ("os.system", "os.popen")
        assert keywords.get("shell") != "True"
        assert keywords.get("allow_pickle") != "True"
        if function == "torch.load":
            assert keywords["weights_only"] == "True"
        if function.startswith("yaml.") and "load" in function:
            assert (name, function) == ("cluster.launcher", "yaml.load")


def test_yaml_makes_no_objects():
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        yaml.load("a: !!python/object/apply:os.getcwd []", _Loader)


PATHS = ["../x", "..", "/etc", "a/b", "a\\b", ".hidden", "", "a\nb", "a\0b", "~"]


@pytest.mark.parametrize("name", PATHS)
def test_a_trial_whose_name_is_a_path_is_refused_by_whoever_reads_the_tables(tmp_path, name):
    run(Search(study(tmp_path)), limit=1)
    table = store.read(tmp_path).trials.slice(0, 1)
    column = table.column_names.index("trial_id")
    table = table.set_column(column, table.schema.field(column), pa.array([name]))
    pq.write_table(table, tmp_path / "results" / "trials" / "stranger.parquet")
    for read in (load, lambda out: Search(study(out)), store.read):
        with pytest.raises(StoreError, match=r"stranger\.parquet names a trial .* move it out of the folder"):
            read(tmp_path)


@given(st.from_regex(store._TRIAL_ID, fullmatch=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_name_that_is_read_is_one_part_of_a_path(tmp_path, name):
    assert (tmp_path / name).parent == tmp_path
    assert name not in (".", "..")


def test_what_a_study_removes_lies_in_its_folder(tmp_path):
    """A finished study that keeps no checkpoint, beside folders that it must leave alone."""
    for name in ("beside", "run/checkpoints/stranger"):
        (tmp_path / name).mkdir(parents=True)
    run(Search(study(tmp_path / "run", keep_checkpoints=0)))
    assert (tmp_path / "beside").is_dir()
    assert (tmp_path / "run" / "checkpoints" / "stranger").is_dir()


@pytest.mark.parametrize("name", ["../../x", "results/../../x", "a//b", "./x"])
def test_an_object_whose_name_leads_out_of_the_folder_is_refused(monkeypatch, name):
    class System:
        def get_file_info(self, selector):
            from pyarrow import fs

            return [fs.FileInfo(f"bucket/run/{name}", type=fs.FileType.File, size=1)]

    monkeypatch.setattr(files.Bucket, "_open", lambda self: System())
    with pytest.raises(FilesError, match="which is no file of a run; remove it"):
        Bucket("s3://bucket/run").entries()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_token_is_for_its_owner_alone(home):
    joining._make_token()
    file = home / ".ray" / "auth_token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    token = file.read_text()
    assert len(token) == 64
    file.chmod(0o644)  # as Ray makes it
    joining._make_token()
    assert (stat.S_IMODE(file.stat().st_mode), file.read_text()) == (0o600, token)


@pytest.mark.parametrize(
    "setting", [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/x")]
)
def test_no_token_is_made_where_another_is_used(home, monkeypatch, setting):
    monkeypatch.setenv(*setting)
    joining._make_token()
    assert not (home / ".ray").exists()


def test_every_promise_names_a_test_that_is_there():
    named = [word for word in (ROOT / "SECURITY.md").read_text().split("`") if word.startswith("tests/")]
    assert named
    assert all((ROOT / name).is_file() for name in named)
