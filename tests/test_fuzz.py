"""Hostile input: whatever a file or an option says, there is a result or one clear sentence, no traceback.

Files are damaged at random: bytes are overwritten, cut out, put in, cut off, and in JSON whole values are
replaced. The slow tests try 2,000 cases of each kind.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.findings import CheckError
from cluster.launcher import check_file
from mmjsd.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmjsd.data import DATASETS, DataError, load
from mmjsd.model import MultimodalVae
from mmjsd.train import fit, load_checkpoint, read_notes, save_checkpoint
from study import manifest, run, store
from study.config import TrialConfig, field_paths
from study.run import main
from tests.nodes import ROOT
from tests.studies import measurement, trial
from tests.test_data import FILES, made_up
from tests.test_train import pairs

FEW, MANY = 25, 2_000

cases = pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3_600)])]
)


def tried(count: int) -> Callable[..., Any]:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """The bytes with up to four changes."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.sampled_from((1, 1, 4, 16, len(content))))
        piece = draw(st.binary(min_size=1, max_size=8))
        how = draw(st.sampled_from(("overwrite", "insert", "cut out", "repeat")))
        if how == "overwrite":
            content[start : start + len(piece)] = piece
        elif how == "insert":
            content[start:start] = piece
        elif how == "cut out":
            del content[start : start + length]
        else:
            content[start:start] = content[start : start + length]
    return bytes(content)


def damaged_text(whole: str) -> st.SearchStrategy[str]:
    """Likewise, with characters that files of text hold."""
    return damaged(whole.encode()).map(lambda content: content.decode(errors="replace"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged_json(draw: Any, value: Any) -> Any:
    """A value of JSON in which one part is another value, or is gone."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 4)) == 0:
        return draw(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    copy = value.copy()
    if draw(st.integers(0, 4)) == 0:
        del copy[key]
    else:
        copy[key] = draw(damaged_json(value[key]))
    return copy


@contextmanager
def refusals(kind: type[Exception], name: str) -> Iterator[None]:
    """Lets an error of this kind pass, if it names the file."""
    try:
        yield
    except kind as refused:
        if name not in str(refused):
            raise


def refused_or_planned(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run says what it would do, or why not in one sentence."""
    code = main([*arguments, "--dry-run"])
    said = capsys.readouterr()
    assert code in (0, 2), said
    if code == 2:
        assert said.err.startswith("error: "), said
        assert said.err.count("\n") == 1, said


@cases
def test_a_space_file_is_planned_or_refused_in_one_sentence(count, tmp_path, capsys):
    whole = (ROOT / "search_spaces" / "priors.py").read_text()
    file = tmp_path / "space.py"

    @tried(count)
    @given(damaged_text(whole))
    def check(text: str) -> None:
        file.write_text(text)
        refused_or_planned(["--space", str(file), "--out", str(tmp_path / "out")], capsys)
        assert {path.name for path in tmp_path.iterdir()} <= {"space.py", "__pycache__"}

    check()


@cases
def test_an_option_is_planned_or_refused_in_one_sentence(count, tmp_path, capsys):
    @tried(count)
    @given(st.sampled_from(field_paths(TrialConfig())), VALUES.map(str) | VALUES.map(json.dumps))
    def check(path: str, value: str) -> None:
        refused_or_planned(["--space", "smoke", "--out", str(tmp_path / "out"), f"--{path}={value}"], capsys)

    check()


@cases
def test_a_study_json_is_planned_or_refused_in_one_sentence(count, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["--space", "smoke", "--out", str(out)]
    out.mkdir()
    whole = study_json(command)

    @tried(count)
    @given(damaged_json(whole).map(json.dumps) | damaged_text(json.dumps(whole, indent=2)))
    def check(text: str) -> None:
        (out / "study.json").write_text(text)
        refused_or_planned([*command, "--resume"], capsys)

    check()


def study_json(command: list[str]) -> dict[str, Any]:
    request = run.read_command_line(command)
    study = run.plan(request)
    return json.loads(json.dumps(manifest.study_values(study, request.question, command, manifest.JOURNAL)))


@cases
@pytest.mark.parametrize("table", ["trials", "measurements"])
def test_a_file_of_results_is_read_or_refused_by_name(count, table, tmp_path):
    store.write_trial(tmp_path, trial(objective_value=0.25), {"objective.beta": 2.5})
    store.write_measurements(tmp_path, "abc-r0", [measurement(0.1), measurement(0.2, epoch=2)])
    file = min((tmp_path / "results" / table).glob("*.parquet"))

    @tried(count)
    @given(damaged(file.read_bytes()))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        with refusals(store.StoreError, str(file)):
            store.read(tmp_path).trials.to_pylist()

    check()


@cases
def test_a_checkpoint_is_read_or_refused_by_name(count, tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(content_dim=2, style_dim=1, width=0.01)
    model = MultimodalVae(DATASETS["digits"].modalities, config, ObjectiveConfig())
    (epoch,) = fit(model, pairs(), 8, TrainingConfig(epochs=1, batch_size=8), seed=0)
    path = save_checkpoint(model, epoch.state, tmp_path, {"note": 1})
    whole = {file: file.read_bytes() for file in path.iterdir()}

    @tried(count)
    @given(
        st.sampled_from(sorted(whole)).flatmap(
            lambda file: st.tuples(st.just(file), damaged(whole[file][:4_000]))
        )
    )
    def check(change: tuple[Path, bytes]) -> None:
        file, head = change
        file.write_bytes(head + whole[file][4_000:])
        with refusals(ValueError, str(path)):
            load_checkpoint(path)
            read_notes(path)
        file.write_bytes(whole[file])

    check()


@cases
def test_a_file_of_images_is_read_or_refused_by_name(count, tmp_path, monkeypatch):
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path / "cache"))
    for name, shape in FILES.items():
        np.savez_compressed(tmp_path / f"{name}.npz", **made_up(shape))
    file = tmp_path / "svhn.npz"
    whole = file.read_bytes()

    @tried(count)
    @given(damaged(whole[-2_000:]) | damaged(whole[:2_000]).map(lambda head: head + whole[2_000:]))
    def check(content: bytes) -> None:
        file.write_bytes(content if len(content) > len(whole) // 2 else whole[:-2_000] + content)
        with refusals(DataError, str(file)):
            load("mnist-svhn-text", tmp_path)

    check()


@cases
@pytest.mark.parametrize("name", ["gpu.yaml", "kuberay.yaml", "slurm.sh"])
def test_a_launcher_is_checked_or_refused_by_name(count, name, tmp_path):
    file = tmp_path / name

    @tried(count)
    @given(damaged_text((ROOT / "cluster" / name).read_text()))
    def check(text: str) -> None:
        file.write_text(text)
        with refusals(CheckError, str(file)):
            assert check_file(file)

    check()
