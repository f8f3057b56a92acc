"""What a study varies: domains of values, and search spaces made of them. Imports no torch, ray or optuna."""

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from itertools import combinations, product
from pathlib import Path
from typing import Any, Protocol

from mmjsd.config import require
from mmjsd.data import DATASETS
from study.config import TrialConfig, field_paths

_FEW = 8
"""So many integers are listed one by one; more are spread over their range."""


class Suggests(Protocol):
    """The part of an Optuna trial through which a domain asks for a value."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """An integer in [low, high]."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices, each of them a string, number, boolean or None."""
        ...


@dataclass(frozen=True)
class Domain(ABC):
    """The values that one field of a trial may take."""

    @abstractmethod
    def suggest(self, trial: Suggests, path: str) -> Any:
        """One value, drawn under the name `path`."""

    def encode(self, value: Any, path: str) -> dict[str, Any]:
        """The draws, by their names, from which `suggest` makes this value."""
        return {path: value}

    @abstractmethod
    def grid(self, levels: int) -> list[Any]:
        """Values that cover the domain, both ends included; `levels` of them along a continuous axis."""

    @property
    def is_finite(self) -> bool:
        """Whether the grid holds every value of the domain."""
        return False

    def to_json(self) -> dict[str, Any]:
        """The domain as study.json keeps it."""
        return {"type": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Choice(Domain):
    """One of several values, unordered."""

    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        require(len(self.options) >= 1, "Choice needs at least one option, got none")
        for index, option in enumerate(self.options):
            require(option not in self.options[:index], f"Choice repeats the option {option!r}")

    def suggest(self, trial: Suggests, path: str) -> Any:
        """One option; where Optuna cannot hold one, such as a tuple, all go by their positions."""
        if self._are_plain:
            return trial.suggest_categorical(path, self.options)
        return self.options[trial.suggest_categorical(path, range(len(self.options)))]

    def encode(self, value: Any, path: str) -> dict[str, Any]:
        """The option or its position."""
        return {path: value if self._are_plain else self.options.index(value)}

    def grid(self, levels: int) -> list[Any]:  # noqa: ARG002
        """All options, in their order."""
        return list(self.options)

    @property
    def is_finite(self) -> bool:
        """Always."""
        return True

    @property
    def _are_plain(self) -> bool:
        return all(option is None or isinstance(option, (str, int, float)) for option in self.options)


@dataclass(frozen=True)
class Integer(Domain):
    """An integer in [low, high]; `log` spreads draws and grid evenly over orders of magnitude."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        require(self.low < self.high, f"Integer needs low < high, got {self.low} and {self.high}")
        require(not self.log or self.low >= 1, f"a logarithmic Integer needs low >= 1, got {self.low}")

    def suggest(self, trial: Suggests, path: str) -> int:
        """A uniform or log-uniform draw."""
        return trial.suggest_int(path, self.low, self.high, log=self.log)

    def grid(self, levels: int) -> list[int]:
        """All integers if they are few, else `levels` of them or fewer where rounding makes two equal."""
        if self.is_finite:
            return list(range(self.low, self.high + 1))
        spaced = _spaced(self.low, self.high, levels, log=self.log)
        return list(dict.fromkeys(round(value) for value in spaced))

    @property
    def is_finite(self) -> bool:
        """Where the integers are few."""
        return self.high - self.low < _FEW


@dataclass(frozen=True)
class Uniform(Domain):
    """A real number in [low, high], all equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_interval("Uniform", self.low, self.high)

    def suggest(self, trial: Suggests, path: str) -> float:
        """A uniform draw."""
        return trial.suggest_float(path, self.low, self.high)

    def grid(self, levels: int) -> list[float]:
        """`levels` evenly spaced numbers."""
        return _spaced(self.low, self.high, levels, log=False)


@dataclass(frozen=True)
class LogUniform(Domain):
    """A positive real number in [low, high] whose logarithm is uniform."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_interval("LogUniform", self.low, self.high)
        require(self.low > 0, f"LogUniform needs low > 0, got {self.low}")

    def suggest(self, trial: Suggests, path: str) -> float:
        """A log-uniform draw."""
        return trial.suggest_float(path, self.low, self.high, log=True)

    def grid(self, levels: int) -> list[float]:
        """`levels` numbers with equal ratios."""
        return _spaced(self.low, self.high, levels, log=True)


@dataclass(frozen=True)
class Simplex(Domain):
    """Weights that sum to one, each at least `lower`; all points equally likely."""

    size: int
    lower: float = 0.02

    def __post_init__(self) -> None:
        require(self.size >= 2, f"Simplex needs a size of at least 2, got {self.size}")
        require(
            0 <= self.size * self.lower < 1,
            f"Simplex of size {self.size} needs lower in [0, 1/{self.size}), got {self.lower}",
        )

    def suggest(self, trial: Suggests, path: str) -> tuple[float, ...]:
        """Weights by stick-breaking: each takes a share of what the weights before it have left.

        The i-th of K shares is Beta(1, K-1-i), here by inversion of a uniform draw `path[i]`. So uniform
        draws give the flat Dirichlet distribution, and a sampler sees K-1 independent numbers in [0, 1].
        """
        left, shares = 1.0, []
        for index in range(self.size - 1):
            draw = trial.suggest_float(f"{path}[{index}]", 0.0, 1.0)
            share = left * (1 - (1 - draw) ** (1 / (self.size - 1 - index)))
            shares.append(share)
            left -= share
        return self._bounded(shares)

    def encode(self, value: Sequence[float], path: str) -> dict[str, float]:
        """The uniform draws, back from the weights."""
        left, draws = 1.0, {}
        for index, weight in enumerate(value[:-1]):
            share = (weight - self.lower) / (1 - self.size * self.lower)
            part = min(max(share / left, 0.0), 1.0) if left > 0 else 0.0
            draws[f"{path}[{index}]"] = 1 - (1 - part) ** (self.size - 1 - index)
            left -= share
        return draws

    def grid(self, levels: int) -> list[tuple[float, ...]]:
        """The regular lattice: each weight is a multiple of 1/levels, before the lower bound lifts it."""
        require(levels >= 1, f"a grid over a Simplex needs at least 1 level, got {levels}")
        points = []
        for bars in combinations(range(levels + self.size - 1), self.size - 1):
            edges = (-1, *bars)
            points.append([(right - left - 1) / levels for left, right in zip(edges, bars, strict=False)])
        return [self._bounded(point) for point in points]

    def _bounded(self, shares: Sequence[float]) -> tuple[float, ...]:
        """All but the last share, lifted above the lower bound, and the last that completes them to one."""
        weights = [_rounded(self.lower + (1 - self.size * self.lower) * share) for share in shares]
        weights.append(_rounded(1 - sum(weights)))
        return tuple(max(self.lower, weight) for weight in weights)


@dataclass(frozen=True)
class SearchSpace:
    """The fields that a question varies, each with its domain, and those that it fixes.

    Both are named by dotted paths of `TrialConfig`. `base` is stronger than a preset and weaker than
    the command line.
    """

    domains: Mapping[str, Domain]
    base: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.domains:
            require(path not in self.base, f"search space both varies and fixes {path!r}; leave one out")
            whole = next((other for other in self.domains if path.startswith(f"{other}.")), None)
            require(whole is None, f"search space varies {path!r} and the whole of {whole!r}; leave one out")

    def check(self, base: TrialConfig) -> None:
        """Raise ValueError, in one sentence, unless every value of every domain makes a valid trial."""
        known = field_paths(base)
        for path in (*self.domains, *self.base):
            guess = get_close_matches(path, known, n=1)
            hint = f"; did you mean {guess[0]!r}?" if guess else ""
            require(path in known, f"search space names no trial field {path!r}{hint}")
        first = {path: domain.grid(2)[0] for path, domain in self.domains.items()}
        for path, domain in self.domains.items():
            require(not path.startswith("data."), f"{path} cannot be varied; start one study for each value")
            if path == "objective.weights" and isinstance(domain, Simplex):
                modalities = len(DATASETS[base.data.name].modalities)
                require(
                    domain.size == modalities + 1,
                    f"objective.weights needs a Simplex of size {modalities + 1} for {base.data.name}, one "
                    f"weight per modality and the prior's, got size {domain.size}",
                )
            for value in domain.grid(_FEW):
                try:
                    self.decode({**first, path: value}, base)
                except ValueError as error:
                    raise ValueError(f"search space gives {path} a value that cannot be: {error}") from None

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """One config's params: a value for each varied field, by its path."""
        return {path: domain.suggest(trial, path) for path, domain in self.domains.items()}

    def grid(self, levels: int = 4) -> list[dict[str, Any]]:
        """The params of all combinations of the domains' grids; the last domain changes fastest."""
        grids = (domain.grid(levels) for domain in self.domains.values())
        return [dict(zip(self.domains, values, strict=True)) for values in product(*grids)]

    def encode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The draws, by their names in an Optuna trial, from which `suggest` makes these params."""
        encoded = (domain.encode(params[path], path) for path, domain in self.domains.items())
        return {name: draw for draws in encoded for name, draw in draws.items()}

    def decode(self, params: Mapping[str, Any], base: TrialConfig) -> TrialConfig:
        """The validated trial that has these params and otherwise the base's fields."""
        assert params.keys() == self.domains.keys(), (params, self.domains)
        return base.with_fields(params)

    def without(self, paths: Sequence[str]) -> "SearchSpace":
        """The space that no longer varies the fields at these paths, nor parts of them."""
        fixed = tuple(f"{path}." for path in paths)
        left = {path: each for path, each in self.domains.items() if not f"{path}.".startswith(fixed)}
        return replace(self, domains=left)


@dataclass(frozen=True)
class Question:
    """A file of `search_spaces/`: its name, its docstring and its space."""

    name: str
    title: str
    description: str
    space: SearchSpace


def list_questions(folder: Path) -> dict[str, str]:
    """The questions in a folder: the first line of each, by its name. Runs none of the files."""
    titles = {}
    for file in sorted(folder.glob("*.py")):
        if file.stem != "__init__":
            lines = file.read_text(encoding="utf-8").splitlines()
            titles[file.stem] = lines[0].strip('"') if lines else ""
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
    except Exception as error:  # a user's own file may raise anything
        reason = " ".join(str(error).split())
        raise ValueError(f"space file {path} cannot be loaded: {type(error).__name__}: {reason}") from error
    space = getattr(module, "SPACE", None)
    if not isinstance(space, SearchSpace):
        raise ValueError(f"space file {path} defines no SPACE = SearchSpace(...)")
    title, _, description = (module.__doc__ or "").strip().partition("\n")
    return Question(name=path.stem, title=title, description=description.strip(), space=space)


def _require_interval(what: str, low: float, high: float) -> None:
    require(math.isfinite(low) and math.isfinite(high), f"{what} needs finite ends, got {low} and {high}")
    require(low < high, f"{what} needs low < high, got {low} and {high}")


def _spaced(low: float, high: float, levels: int, *, log: bool) -> list[float]:
    require(levels >= 2, f"a grid needs at least 2 levels, got {levels}")
    inner = [step / (levels - 1) for step in range(1, levels - 1)]
    if log:
        return [low, *(_rounded(low * (high / low) ** step) for step in inner), high]
    return [low, *(_rounded(low + (high - low) * step) for step in inner), high]


def _rounded(value: float) -> float:
    """The number without the last digits that arithmetic has blurred: 0.48, not 0.48000000000000004."""
    return float(f"{value:.12g}")
