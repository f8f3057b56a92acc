"""What a study varies: domains of values, and search spaces made of them. Imports no torch, ray or optuna."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from itertools import chain, combinations, product
from numbers import Integral
from typing import Any, NoReturn, Protocol, get_args

from mmjsd.config import require
from study.config import Preset, TrialConfig, field_paths

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

    def fields(self, path: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """The trial's fields, by their paths, that the params of this domain stand for."""
        return {path: params[path]}

    def params(self, trial: Suggests, path: str) -> dict[str, Any]:
        """What the domain contributes to a config's params."""
        return {path: self.suggest(trial, path)}

    def draws(self, params: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The draws, by their names, from which `params` makes these."""
        return self.encode(params[path], path)

    def points(self, levels: int, path: str) -> list[dict[str, Any]]:
        """The params of the grid's values."""
        return [{path: value} for value in self.grid(levels)]

    def without(self, paths: Sequence[str]) -> "Domain":  # noqa: ARG002
        """The domain that no longer varies the fields at these paths."""
        return self

    def to_json(self) -> dict[str, Any]:
        """The domain as study.json keeps it."""
        return {"type": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Choice(Domain):
    """One of several values, unordered."""

    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        options, kind = self.options, type(self.options).__name__
        has_order = isinstance(options, Iterable) and not isinstance(options, (str, set, frozenset))
        require(has_order, f"Choice needs options in an order, got the {kind} {options!r}; write a tuple")
        object.__setattr__(self, "options", tuple(self.options))
        require(len(self.options) >= 1, "Choice needs at least one option, got none")
        _require_json("Choice needs options", self.options)
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
        whole = all(isinstance(end, int) and not isinstance(end, bool) for end in (self.low, self.high))
        require(whole, f"Integer needs whole numbers as ends, got {self.low!r} and {self.high!r}")
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
        is_whole = isinstance(self.size, Integral)
        require(is_whole, f"Simplex needs a whole number as its size, got {self.size!r}")
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
class Cases(Domain):
    """One of several named cases, unordered. Each sets fields of its own: to a value, or by a domain.

    `{"subspaces": Cases({"no": {"model.style_dim": 0}, "yes": {"model.style_dim": Integer(1, 16)}})}` draws a
    size only where there are subspaces. A config's params name the case and hold what was drawn in it; a
    field that a case does not name stays what it is in the base.
    """

    cases: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        are_named = isinstance(self.cases, Mapping)
        require(are_named, f"Cases needs cases by their names, in a dict, got {self.cases!r}")
        require(len(self.cases) >= 1, "Cases needs at least one case, got none")
        for name, fields in self.cases.items():
            is_text = isinstance(name, str)
            require(is_text, f"Cases needs strings as names, got {name!r}; write {str(name)!r}")
            _require_fields(f"Cases sets {name!r} to", fields)
            nested = [path for path, value in fields.items() if isinstance(value, Cases)]
            require(not nested, f"Cases cannot hold further Cases, got one in the case {name!r}")

    def suggest(self, trial: Suggests, path: str) -> str:
        """The name of one case."""
        return str(trial.suggest_categorical(path, tuple(self.cases)))

    def grid(self, levels: int) -> list[str]:  # noqa: ARG002
        """All names, in their order."""
        return list(self.cases)

    @property
    def is_finite(self) -> bool:
        """Where each domain of each case is."""
        return all(domain.is_finite for name in self.cases for domain in self._domains(name).values())

    def fields(self, path: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """What the case sets, with what was drawn in it."""
        name = params[path]
        require(name in self.cases, f"unknown case {name!r} of {path}; there are {', '.join(self.cases)}")
        return {**self.cases[name], **{each: params[each] for each in self._domains(name)}}

    def params(self, trial: Suggests, path: str) -> dict[str, Any]:
        """The case's name, and what its domains draw, under names that tell cases apart."""
        name = self.suggest(trial, path)
        drawn = self._domains(name).items()
        return {path: name} | {each: domain.suggest(trial, f"{each} ({name})") for each, domain in drawn}

    def draws(self, params: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Of the case, and within it."""
        encoded = {path: params[path]}
        for each, domain in self._domains(params[path]).items():
            encoded |= domain.encode(params[each], f"{each} ({params[path]})")
        return encoded

    def points(self, levels: int, path: str) -> list[dict[str, Any]]:
        """Case by case, all combinations of the grids of its domains."""
        found = []
        for name in self.cases:
            domains = self._domains(name)
            grids = (domain.grid(levels) for domain in domains.values())
            found += [{path: name, **dict(zip(domains, values, strict=True))} for values in product(*grids)]
        return found

    def without(self, paths: Sequence[str]) -> "Cases":
        """The cases, none of which sets these fields or parts of them."""
        return Cases({name: _without(fields, paths) for name, fields in self.cases.items()})

    def to_json(self) -> dict[str, Any]:
        """Names as options, and what each case sets."""
        cases = {
            name: {
                path: value.to_json() if isinstance(value, Domain) else value
                for path, value in fields.items()
            }
            for name, fields in self.cases.items()
        }
        return {"type": "Cases", "options": list(self.cases), "cases": cases}

    def _domains(self, name: str) -> dict[str, Domain]:
        """Those that draw a field in this case."""
        return {path: value for path, value in self.cases[name].items() if isinstance(value, Domain)}


@dataclass(frozen=True)
class SearchSpace:
    """The fields that a question varies, each with its domain, and those that it fixes.

    Both are named by dotted paths of `TrialConfig`; only the name of `Cases` is free. `base` is stronger than
    a preset and weaker than cases and the command line. `presets` says what else a preset is for this
    question; it is stronger than `base`.
    """

    domains: Mapping[str, Domain]
    base: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[Preset, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, domain in self.domains.items():
            expected = "expected a domain, such as Choice((1, 2))"
            require(isinstance(domain, Domain), f"search space gives {name} {domain!r}; {expected}")
            _require_json(f"{name} needs values", domain.to_json())
        _require_fields("search space sets its base to", self.base)
        for name, fields in self.presets.items():
            known = get_args(Preset)
            require(name in known, f"search space has no preset {name!r}; expected {' or '.join(known)}")
            _require_fields(f"search space sets preset {name} to", fields)
        setters = [(name, path) for name in self.domains for path in self._set_by(name)]
        for name, path in setters:
            twice = path in self.base and path == name
            require(not twice, f"search space both varies and fixes {path!r}; leave one out")
            others = (other for owner, other in setters if owner != name)
            whole = next((other for other in others if f"{path}.".startswith(f"{other}.")), None)
            require(whole is None, f"search space varies {path!r} and the whole of {whole!r}; leave one out")

    @property
    def varied(self) -> tuple[str, ...]:
        """Paths of all fields that configs may differ in."""
        return tuple(dict.fromkeys(path for name in self.domains for path in self._set_by(name)))

    def check(self, base: TrialConfig) -> list[TrialConfig]:
        """Raise ValueError, in one sentence, unless every value of every domain makes a valid trial.

        Returns:
            The trials that were tried, each value of each domain in one of them.
        """
        known = field_paths(base)
        for path in (*self.varied, *self.base, *chain(*self.presets.values())):
            guess = get_close_matches(path, known, n=1)
            hint = f"; did you mean {guess[0]!r}?" if guess else ""
            require(path in known, f"search space names no trial field {path!r}{hint}")
        for path in self.varied:
            fixed = path.startswith("data.")
            require(not fixed, f"{path} cannot be varied; start one study for each value")
        for name, domain in self.domains.items():
            shadows = isinstance(domain, Cases) and name in known
            require(not shadows, f"cases cannot be named {name!r} like a field; choose another name")
            if name == "objective.weights" and isinstance(domain, Simplex):
                modalities = len(base.modalities)
                require(
                    domain.size == modalities + 1,
                    f"objective.weights needs a Simplex of size {modalities + 1} for {base.data.name}, one "
                    f"weight per modality and the prior's, got size {domain.size}",
                )
        points = {name: domain.points(_FEW, name) for name, domain in self.domains.items()}
        first = {path: value for each in points.values() for path, value in each[0].items()}
        tried = []
        for name, each in points.items():
            # Evenly spaced numbers may all be whole, or even, where those that are drawn are not.
            domain = self.domains[name]
            drawn = [_Example(case) for case in (domain.cases if isinstance(domain, Cases) else ("",))]
            for point in [*each, *(domain.params(draw, name) for draw in drawn)]:
                try:
                    tried.append(self.decode({**first, **point}, base))
                except ValueError as error:
                    raise ValueError(f"search space gives {name} a value that cannot be: {error}") from None
        return tried or [base]

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """One config's params: a value for each varied field, by its path, and the name of each case."""
        params: dict[str, Any] = {}
        for name, domain in self.domains.items():
            params |= domain.params(trial, name)
        return params

    def grid(self, levels: int = 4) -> list[dict[str, Any]]:
        """The params of all combinations of the domains' grids; the last domain changes fastest."""
        points = (domain.points(levels, name) for name, domain in self.domains.items())
        return [{path: value for part in parts for path, value in part.items()} for parts in product(*points)]

    def examples(self) -> dict[str, list[Any]]:
        """Values of all that params may hold, by path: of a choice all options, of a range its ends."""
        values: dict[str, list[Any]] = {}
        for name, domain in self.domains.items():
            for point in domain.points(2, name):
                for path, value in point.items():
                    values.setdefault(path, []).append(value)
        return values

    def encode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The draws, by their names in an Optuna trial, from which `suggest` makes these params."""
        encoded: dict[str, Any] = {}
        for name, domain in self.domains.items():
            encoded |= domain.draws(params, name)
        return encoded

    def decode(self, params: Mapping[str, Any], base: TrialConfig) -> TrialConfig:
        """The validated trial that has these params and otherwise the base's fields."""
        fields: dict[str, Any] = {}
        for name, domain in self.domains.items():
            fields |= domain.fields(name, params)
        return base.with_fields(fields)

    def without(self, paths: Sequence[str]) -> "SearchSpace":
        """The space that no longer varies the fields at these paths, nor parts of them."""
        left = {name: domain.without(paths) for name, domain in _without(self.domains, paths).items()}
        return replace(self, domains=left)

    def _set_by(self, name: str) -> tuple[str, ...]:
        """Paths of the fields that the domain of this name sets."""
        domain = self.domains[name]
        if not isinstance(domain, Cases):
            return (name,)
        return tuple(dict.fromkeys(path for fields in domain.cases.values() for path in fields))


@dataclass(frozen=True)
class _Example:
    """An Optuna trial that draws numbers from within their ranges, and this case."""

    case: str

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:  # noqa: ARG002
        """The case, if there is one."""
        return self.case if self.case in choices else choices[0]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:  # noqa: ARG002
        """The lowest but one."""
        return low + 1

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:  # noqa: ARG002
        """The golden section."""
        return low + (high - low) * 0.618034


def _without(fields: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The fields that are none of these, nor parts of them."""
    dropped = tuple(f"{path}." for path in paths)
    return {path: value for path, value in fields.items() if not f"{path}.".startswith(dropped)}


def _require_fields(what: str, fields: Any) -> None:
    require(isinstance(fields, Mapping), f"{what} {fields!r}; expected fields by their paths, in a dict")


def _require_json(what: str, values: Any) -> None:
    def refuse(value: Any) -> NoReturn:
        kind = type(value).__name__
        raise ValueError(f"{what} that JSON can hold, got {value!r} ({kind}); write Python's own types")

    json.dumps(values, default=refuse)


def _require_interval(what: str, low: float, high: float) -> None:
    require(math.isfinite(low) and math.isfinite(high), f"{what} needs finite ends, got {low} and {high}")
    require(low < high, f"{what} needs low < high, got {low} and {high}")


def _spaced(low: float, high: float, levels: int, *, log: bool) -> list[float]:
    require(levels >= 2, f"a grid needs at least 2 levels, got {levels}")
    inner = [step / (levels - 1) for step in range(1, levels - 1)]
    if log:
        return [float(low), *(_rounded(low * (high / low) ** step) for step in inner), float(high)]
    return [float(low), *(_rounded(low + (high - low) * step) for step in inner), float(high)]


def _rounded(value: float) -> float:
    """The number without the last digits that arithmetic has blurred: 0.48, not 0.48000000000000004."""
    return float(f"{value:.12g}")
