"""Reads every import and every name of the packages, and holds them against the rules of DESIGN.md."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from mmjsd.data import DATASETS
from tests.nodes import ROOT

PACKAGES = ("mmjsd", "study", "search_spaces", "analysis", "cluster")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST, typing: bool = True) -> Iterator[ast.AST]:
    """The node and all below it, without type-checking blocks unless they are wanted."""
    yield node
    if for_types_only(node) and not typing:
        return
    for child in ast.iter_child_nodes(node):
        yield from walk(child, typing)


def imports(name: str, typing: bool = True) -> set[str]:
    """All modules that a module imports, ours by their full name."""
    found = set()
    for node in walk(TREES[name], typing):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively: write the full name"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in TREES else node.module)
    return found


def offenders(importer: str, imported: str, allowed: str = "(?!)") -> list[str]:
    """Imports of modules that match `imported`, by modules that match `importer`, but those allowed."""
    return [
        f"{name} imports {module}"
        for name in TREES
        for module in sorted(imports(name))
        if re.match(rf"({importer})(\.|$)", name)
        and re.match(rf"({imported})(\.|$)", module)
        and not re.match(rf"({allowed})$", f"{name}>{module}")
    ]


# The packages ...


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("mmjsd", "ray|study|search_spaces|analysis|cluster|benchmarks|tests|pyarrow|optuna", "(?!)"),
        ("study", "search_spaces|analysis|cluster|benchmarks|tests", "(?!)"),
        ("study", "ray", r"study\.(tuner|worker|joining|interrupts)>.*"),
        (".*", "pyarrow", r"study\.(store|files)>.*"),
        (".*", "mlflow|wandb", r"study\.loggers>.*"),
        ("search_spaces", "torch|ray|analysis|cluster|benchmarks|tests", "(?!)"),
        ("search_spaces", "mmjsd|study", r".*>(study\.config|study\.space|mmjsd\.config)"),
        ("analysis", "torch|ray|mmjsd|search_spaces|cluster|benchmarks|tests", "(?!)"),
        ("analysis", "study", r".*>study\.(store|files|mirror)"),
        ("cluster", "mmjsd|study|search_spaces|analysis|benchmarks|tests", r"cluster\.live>study\.files"),
    ],
)
def test_import_only_what_lies_below_them(importer, imported, allowed):
    assert offenders(importer, imported, allowed) == []


def test_import_in_no_circle():
    graph = {name: imports(name, typing=False) & set(TREES) for name in TREES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


LIGHT = re.compile(
    r"mmjsd\.(config|data|specs|sources|text)|study\.(config|space|store|run|options|files|mirror)"
    r"|(analysis|search_spaces)(\..*)?"
)
"""Modules that list spaces, show help and make reports, and so must start without torch and ray."""


REFUSE = """
import sys
def refuse(event, about):
    assert event != "import" or about[0] not in ("torch", "ray"), about[0]
sys.addaudithook(refuse)
"""
"""The first import of torch or ray fails, with a traceback that names who asks for it."""


def test_load_neither_torch_nor_ray_when_they_start():
    light = ", ".join(name for name in TREES if LIGHT.fullmatch(name))
    program = [sys.executable, "-c", f"{REFUSE}import {light}"]
    finished = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_have_empty_init_files():
    assert [str(path) for path in FILES if path.name == "__init__.py" and path.stat().st_size] == []


def test_print_nothing():
    found = [
        f"{name}, line {node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


# Modalities are data: their names ...


MAY_NAME_MODALITIES = {f"mmjsd.{name}" for name in ("specs", "sources", "digits", "faces", "networks")}
MODALITY = re.compile(r"(?<![a-z])(mnist|svhn|poly\d|face|words)(?![a-z])")
FILE_NAME = r"[\w./-]+\.(gz|json|mat|npy|npz|py|txt|yaml)\b"
NOT_A_MODALITY = re.compile("|".join([*map(re.escape, DATASETS), FILE_NAME]))
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
IDENTIFIERS = ("id", "attr", "arg", "name", "asname", "module", "rest")


def words(name: str) -> Iterator[tuple[int, str]]:
    """Every identifier and string of a module, docstrings and fields' documentation left out."""
    documentation = {
        id(node.value)
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(TREES[name]):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and id(node) not in documentation:
                yield line, NOT_A_MODALITY.sub("", node.value)
        else:
            for field in IDENTIFIERS:
                if isinstance(getattr(node, field, None), str):
                    yield line, getattr(node, field)


FIELD = re.compile(r"(model\.style_dim|objective\.(style|reconstruction)_weights)\.\w+")
"""A search space may sweep one modality's own size or weight."""


def names_modality(word: str) -> bool:
    return MODALITY.search(CAMEL.sub("_", word).lower()) is not None


def test_stand_in_data_and_networks_alone():
    found = [
        f"{name}, line {line}: {word!r}"
        for name in sorted(TREES.keys() - MAY_NAME_MODALITIES)
        for line, word in words(name)
        if names_modality(word) and not (name.startswith("search_spaces.") and FIELD.fullmatch(word))
    ]
    assert found == []


# This file ...


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    import ray.train", {"ray.train"}),
        ("from study import store", {"study.store"}),
        ("from study.store import read", {"study.store"}),
        ("import torch as t, numpy", {"torch", "numpy"}),
        ("if TYPE_CHECKING:\n    from torch import nn", {"torch"}),
    ],
)
def test_reads_imports_of_every_form(monkeypatch, source, expected):
    monkeypatch.setitem(TREES, "study.invented", ast.parse(source))
    assert imports("study.invented") == expected


@pytest.mark.parametrize(
    ("source", "is_refused"),
    [
        ("mnist_weight = 1", True),
        ("def f(svhn): pass", True),
        ("x['svhn']", True),
        ("given = 'poly0+poly1'", True),
        ("given = f'{name}+mnist'", True),
        ("class ReadMnist: pass", True),
        ("name = 'mnist-svhn-text'", False),
        ("name = 'polydigits-2'", False),
        ("given == 'face+words'", True),
        ("from mmjsd import faces", False),
        ("path = 'raw/svhn.mat'", False),
        ("'''Reads mnist.'''", False),
    ],
)
def test_reads_names_of_every_form(monkeypatch, source, is_refused):
    monkeypatch.setitem(TREES, "study.invented", ast.parse(source))
    assert any(names_modality(word) for _, word in words("study.invented")) == is_refused
