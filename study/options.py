"""The options of study/run.py, made by tyro from the dataclasses that hold them."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from difflib import get_close_matches
from operator import attrgetter
from typing import Annotated, Any

import tyro
from tyro import _errors as tyro_errors

from mmjsd.config import require
from study.config import StudyConfig, TrialConfig, field_paths


@dataclass(frozen=True)
class _Early:
    """The options on which the defaults of others depend."""

    study: Annotated[StudyConfig, tyro.conf.arg(name="")]
    data_name: Annotated[str | None, tyro.conf.arg(name="data.name")] = None


def parse_study(argv: Sequence[str]) -> StudyConfig:
    """The study's own options, with the data set from either of its names; the others are left alone.

    Raises:
        ValueError: with one sentence, for a value that cannot be.
    """
    early, _ = _parse(_Early, _split(argv), known=(), add_help=False, return_unknown_args=True)
    study: StudyConfig = early.study
    dataset = study.dataset or early.data_name
    require(
        early.data_name in (None, dataset),
        f"--dataset {dataset} and --data.name {early.data_name} contradict each other; give one of them",
    )
    return dataclasses.replace(study, dataset=dataset)


def parse(
    argv: Sequence[str], study: StudyConfig, base: TrialConfig, description: str
) -> tuple[StudyConfig, dict[str, Any]]:
    """All options: the study's, and the trial's fields that the command line sets, by their paths.

    A whole field comes before the parts of it.

    Args:
        argv: the command line.
        study: holds the defaults of the study's options.
        base: holds the defaults of the trial's fields.
        description: stands above the options in the help.

    Raises:
        ValueError: with one sentence, for an option or a value that cannot be.
    """
    argv = _split(argv)
    own = [_flag(each.name) for each in dataclasses.fields(StudyConfig)]
    known = (*own, *(_flag(path) for path in field_paths(base)))
    given = _values_by_flag(argv)
    for path in field_paths(base):
        require(given.get(_flag(path)) != [], f"{_flag(path)} needs a value")
    parsed = _parse(_options(study, base), argv, known, description=description)
    fields: dict[str, Any] = {}
    for path in field_paths(base):
        if _flag(path) in given:
            group, _, name = path.rpartition(".")
            fields[path] = getattr(getattr(parsed, group.replace(".", "_")), name)
    options: StudyConfig = parsed.study
    require(
        options.confirm > 0 or options.confirm_replicates is None,
        "--confirm-replicates goes with --confirm; add it, or leave --confirm-replicates out",
    )
    if options.dataset is not None:
        fields["data.name"] = options.dataset
    if options.data_dir is not None:
        fields["data.dir"] = options.data_dir
    return options, fields


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether the command line is to be explained, not carried out."""
    return not {"-h", "--help"}.isdisjoint(argv)


def _options(study: StudyConfig, base: TrialConfig) -> type:
    """The study's options, each section of a trial's fields, and what modalities may have of their own."""
    members: list[Any] = [("study", Annotated[StudyConfig, tyro.conf.arg(name="")], study)]
    for section in dataclasses.fields(base):
        if section.name != "seed":
            value = getattr(base, section.name)
            members.append((section.name, type(value), value))
    parts: dict[str, list[Any]] = {}
    for path in field_paths(base):
        whole, _, modality = path.rpartition(".")
        if "." in whole:
            value = attrgetter(whole)(base.resolved())
            default = value[modality] if isinstance(value, dict) else value
            parts.setdefault(whole, []).append((modality, type(default), default))
    for whole, modalities in parts.items():
        doc = {"__doc__": "One modality's own value; the others keep theirs."}
        group = make_dataclass("Group", modalities, frozen=True, namespace=doc)
        members.append((whole.replace(".", "_"), Annotated[group, tyro.conf.arg(name=whole)], group()))
    return make_dataclass("Options", members, frozen=True)


def _parse(options: Any, argv: Sequence[str], known: Sequence[str], **settings: Any) -> Any:
    """What tyro makes of the command line; what it would refuse in a box raises a ValueError instead."""

    def refuse(event: tyro_errors.ParseErrorEvent) -> None:
        raise ValueError(_sentence(event, argv, known))

    with tyro_errors.on_parse_error(refuse):
        return tyro.cli(
            options,
            prog="python study/run.py",
            args=argv,
            use_underscores=True,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            **settings,
        )


def _sentence(event: tyro_errors.ParseErrorEvent, argv: Sequence[str], known: Sequence[str]) -> str:
    if isinstance(event, tyro_errors.UnrecognizedArgs):
        token = event.tokens[0]
        if not token.startswith("-"):
            return f"unexpected argument {token!r}; options begin with --"
        flag = _flag(token.partition("=")[0])
        leaves = [each for each in known if each.endswith(f".{flag.strip('-')}")]
        guess = leaves or get_close_matches(flag, known, n=1)
        return f"unknown option {flag}" + (f"; did you mean {guess[0]}?" if guess else "; see --help")
    argument = getattr(event, "argument", None)
    if argument is None:
        return str(getattr(event, "message", event))
    flag = _flag(argument.lowered.name_or_flags[0])
    given = _values_by_flag(argv).get(flag, [])
    choices = argument.lowered.choices
    values = " ".join([word for word in given if word not in (choices or ())] or given)
    if choices:
        expected = f"one of {', '.join(sorted(set(choices) - {'None'}))}"
    else:
        expected = " or ".join(re.sub(r"[][{}]", "", argument.lowered.metavar).split("|"))
    if not values:
        return f"{flag} needs a value: {expected}"
    return f"{flag} cannot be {values!r}; expected {expected}"


_SHORT = {"coherence": "mean_coherence"}
"""What may stand for a longer word after an option of several words."""


def _split(argv: Sequence[str]) -> list[str]:
    """The words, with what follows a study's option of several words split where commas are."""
    several = {_flag(each.name) for each in dataclasses.fields(StudyConfig) if "tuple[" in str(each.type)}
    result: list[str] = []
    flag = ""
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            flag = _flag(name)
        if flag not in several:
            result.append(word)
            continue
        if word.startswith("--"):
            result.append(name)
        if equals or not word.startswith("--"):
            parts = (value if equals else word).split(",")
            result += [_SHORT.get(part, part) for part in parts if part]
    return result


def _flag(name: str) -> str:
    """An option's name as the documentation writes it: --data-dir, but --model.style_dim."""
    name = name.strip("-")
    return "--" + (name.replace("-", "_") if "." in name else name.replace("_", "-"))


def _values_by_flag(argv: Sequence[str]) -> dict[str, list[str]]:
    """The words that follow each option."""
    values: dict[str, list[str]] = {}
    for word in argv:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            current = values.setdefault(_flag(name), [])
            current += [value] if value else []
        elif values:
            current.append(word)
    return values
