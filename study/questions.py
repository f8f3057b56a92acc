"""Files of `search_spaces/`, or a user's own: a question each, with the space that answers it."""

import ast
import importlib.util
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from traceback import extract_tb

from mmjsd.config import require
from study.space import SearchSpace


@dataclass(frozen=True)
class Question:
    """A file of `search_spaces/`: its name, its docstring and its space."""

    name: str
    title: str
    description: str
    space: SearchSpace


def list_questions(folder: Path) -> dict[str, str]:
    """The questions in a folder: the first line of each docstring, by the file's name. Runs no file.

    Files that are hidden, or whose name begins with an underscore, are no questions.
    """
    titles = {}
    for file in sorted(folder.glob("[!_.]*.py")):
        try:
            text = ast.get_docstring(ast.parse(file.read_bytes(), file.name)) or ""
        except (OSError, SyntaxError, ValueError) as error:
            text = f"cannot be read: {error}"
        titles[file.stem] = text.partition("\n")[0]
    return titles


def load_question(name: str, folder: Path) -> Question:
    """The question that `folder` holds under this name, or that the file at this path asks.

    Raises:
        ValueError: if there is none, or its file does not define a SPACE.
    """
    path = Path(name)
    if path.suffix != ".py":
        known = tuple(list_questions(folder))
        guess = get_close_matches(name, known, n=1)
        hint = f"did you mean {guess[0]!r}? " if guess else ""
        require(
            name in known, f"unknown space {name!r}; {hint}choose one of {', '.join(known)}, or give a file"
        )
        path = folder / f"{name}.py"
    require(path.is_file(), f"no space file at {name}")
    spec = importlib.util.spec_from_file_location(f"search_spaces.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's own file may raise anything
        reason = " ".join(str(error).split())
        own = [frame for frame in extract_tb(error.__traceback__) if frame.filename == spec.origin]
        where = f" (line {own[-1].lineno}: {own[-1].line})" if own else ""
        told = f"space file {path} cannot be loaded: {type(error).__name__}: {reason}{where}"
        raise ValueError(told) from error
    space = getattr(module, "SPACE", None)
    if not isinstance(space, SearchSpace):
        raise ValueError(f"space file {path} defines no SPACE = SearchSpace(...)")
    title, _, description = (module.__doc__ or "").strip().partition("\n")
    return Question(name=path.stem, title=title, description=description.strip(), space=space)
