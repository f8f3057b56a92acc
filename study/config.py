"""One trial's whole configuration: what a search space varies, the command line overrides and Parquet keeps."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mmjsd.config import DataConfig, EvaluationConfig, ModelConfig, ObjectiveConfig, TrainingConfig, require
from mmjsd.data import DATASETS


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """Everything that decides a trial's numbers."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    seed: int = 0
    """Seeds parameters, data order and draws. Derived from study, config and replicate; never swept."""

    def __post_init__(self) -> None:
        known = ", ".join(DATASETS)
        require(self.data.name in DATASETS, f"unknown data set {self.data.name!r}; choose one of {known}")
        modalities = [modality.name for modality in DATASETS[self.data.name].modalities]
        expected = f"the modalities of {self.data.name} are {', '.join(modalities)}"
        if self.objective.weights is not None:
            require(
                len(self.objective.weights) == len(modalities) + 1,
                f"weights must have {len(modalities) + 1} entries, one per modality and the prior's last, "
                f"got {len(self.objective.weights)}; {expected}",
            )
        for name, sizes in (
            ("model.style_dim", self.model.style_dim),
            ("objective.style_weights", self.objective.style_weights),
            ("objective.reconstruction_weights", self.objective.reconstruction_weights),
        ):
            if isinstance(sizes, dict):
                require(set(sizes) == set(modalities), f"{name} names {', '.join(sizes)}; {expected}")

    def resolved(self) -> "TrialConfig":
        """The same trial with every default that depends on the data set or the objective written out."""
        modalities = DATASETS[self.data.name].modalities
        largest = max(modality.size for modality in modalities)
        equal = (1 / (len(modalities) + 1),) * (len(modalities) + 1)
        objective = dataclasses.replace(
            self.objective,
            fusion=self.objective.fusion or self.objective.own_fusion,
            weights=self.objective.weights or equal,
            style_weights=self.objective.style_weights
            or {modality.name: modality.style_weight for modality in modalities},
            reconstruction_weights=self.objective.reconstruction_weights
            or {modality.name: largest / modality.size for modality in modalities},
        )
        return dataclasses.replace(self, objective=objective)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON holds them."""
        values: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "TrialConfig":
        """Inverse of `to_dict`; raises ValueError with one sentence for a value that cannot be."""
        try:
            return _adapter().validate_python(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(str(part) for part in first["loc"][:2])
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "value_error":
                raise ValueError(message) from None
            raise ValueError(f"{path} cannot be {first['input']!r}: {message[0].lower()}{message[1:]}") from None

    def with_fields(self, fields: Mapping[str, Any]) -> "TrialConfig":
        """A copy in which the fields at these dotted paths have these values.

        `model.style_dim.svhn` sets one modality's size and leaves the others at what they were.
        """
        known = field_paths(self)
        names = [modality.name for modality in DATASETS[self.data.name].modalities]
        values, defaults = self.to_dict(), self.resolved().to_dict()
        for path, value in fields.items():
            if path not in known:
                guess = get_close_matches(path, known, n=1)
                hint = f"; did you mean {guess[0]!r}?" if guess else ""
                raise ValueError(f"a trial has no field {path!r}{hint}")
            section, name, *modality = path.split(".")
            if modality:
                old = defaults[section][name]
                each = old if isinstance(old, dict) else dict.fromkeys(names, old)
                value = {**each, modality[0]: value}
            values[section][name] = defaults[section][name] = value
        return TrialConfig.from_dict(values)

    def config_hash(self) -> str:
        """Twelve hexadecimal digits that name the config: equal where all but seed and data.dir is equal."""
        values = self.resolved().to_dict()
        del values["seed"], values["data"]["dir"]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def for_replicate(self, study_seed: int, replicate: int) -> "TrialConfig":
        """The trial of one replicate: its seed derives from study seed, config and replicate."""
        text = f"{study_seed}/{self.config_hash()}/{replicate}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") >> 1
        return dataclasses.replace(self, seed=seed)


def trial_id(config_hash: str, replicate: int) -> str:
    """The name of one training; content-addressed, so that the same trial has the same name in every study."""
    return f"{config_hash}-r{replicate}"


def field_paths(config: TrialConfig) -> tuple[str, ...]:
    """Every dotted path that a space or a command line may set, one modality's own size among them."""
    paths = []
    modalities = [modality.name for modality in DATASETS[config.data.name].modalities]
    for section in dataclasses.fields(config):
        if section.name == "seed":
            continue
        for leaf in dataclasses.fields(getattr(config, section.name)):
            path = f"{section.name}.{leaf.name}"
            paths.append(path)
            if "dict[str" in str(leaf.type):
                paths += [f"{path}.{modality}" for modality in modalities]
    return tuple(paths)


@cache
def _adapter() -> TypeAdapter[TrialConfig]:
    return TypeAdapter(TrialConfig)
