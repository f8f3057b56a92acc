"""One trial's whole configuration: what a space varies, a command line overrides and Parquet keeps."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from math import comb, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError

from mmjsd.config import DataConfig, EvaluationConfig, ModelConfig, ObjectiveConfig, TrainingConfig, require
from mmjsd.specs import DATASETS, DataSpec

if TYPE_CHECKING:
    from study.space import SearchSpace


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
        expected = f"the modalities of {self.data.name} are {', '.join(self.modalities)}"
        self.objective.resolved(self.spec.modalities)
        for name, sizes in (
            ("model.style_dim", self.model.style_dim),
            ("objective.style_weights", self.objective.style_weights),
            ("objective.reconstruction_weights", self.objective.reconstruction_weights),
        ):
            if isinstance(sizes, dict):
                require(set(sizes) == set(self.modalities), f"{name} names {', '.join(sizes)}; {expected}")

    @property
    def spec(self) -> DataSpec:
        """What the data set holds."""
        return DATASETS[self.data.name]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the data set's modalities, in the model's order."""
        return tuple(modality.name for modality in self.spec.modalities)

    def resolved(self) -> "TrialConfig":
        """The same trial with every default that depends on the data set or the objective written out."""
        objective = self.objective.resolved(self.spec.modalities)
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
            raise ValueError(
                f"{path} cannot be {first['input']!r}: {message[0].lower()}{message[1:]}"
            ) from None

    def with_fields(self, fields: Mapping[str, Any]) -> "TrialConfig":
        """A copy in which the fields at these dotted paths have these values.

        `model.style_dim.svhn` sets one modality's size and leaves the others at what they were.
        """
        known = field_paths(self)
        values, defaults = self.to_dict(), self.resolved().to_dict()
        for path, value in fields.items():
            if path not in known:
                guess = get_close_matches(path, known, n=1)
                hint = f"; did you mean {guess[0]!r}?" if guess else ""
                raise ValueError(f"a trial has no field {path!r}{hint}")
            section, name, *modality = path.split(".")
            if modality:
                old = defaults[section][name]
                each = old if isinstance(old, dict) else dict.fromkeys(self.modalities, old)
                value = {**each, modality[0]: value}
            values[section][name] = defaults[section][name] = value
        return TrialConfig.from_dict(values)

    def config_hash(self) -> str:
        """Twelve hexadecimal digits that name the config: equal where all but seed and data.dir is equal.

        A limit on the subsets that are evaluated, beside single modalities, counts only where there are more,
        and a size for each modality only where they differ.
        """
        values = self.resolved().to_dict()
        del values["seed"], values["data"]["dir"]
        modalities = len(self.modalities)
        if self.evaluation.subsets_per_size >= comb(modalities, max(2, modalities // 2)):
            del values["evaluation"]["subsets_per_size"]
        sizes = values["model"]["style_dim"]
        if isinstance(sizes, dict) and len(set(sizes.values())) == 1:
            values["model"]["style_dim"] = max(sizes.values())
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def for_replicate(self, study_seed: int, replicate: int) -> "TrialConfig":
        """The trial of one replicate: its seed derives from study seed, config and replicate."""
        text = f"{study_seed}/{self.config_hash()}/{replicate}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") >> 1
        return dataclasses.replace(self, seed=seed)


GOES_ON = "the same command with --resume goes on"
"""What to do where a study ended before its end."""

FIRST_FRESH = 1000
"""The first replicate of a config's confirmation; so no seed is one of the search's, however that grows."""


def field_value(config: TrialConfig, path: str) -> Any:
    """What a trial has at a dotted path, which `TrialConfig.with_fields` sets."""
    section, name, *modality = path.split(".")
    value = config.resolved().to_dict()[section][name]
    if isinstance(value, dict) and modality:
        return value[modality[0]]
    return tuple(value) if isinstance(value, list) else value


def trial_id(config_hash: str, replicate: int) -> str:
    """The name of one training; content-addressed, so that none is trained twice."""
    return f"{config_hash}-r{replicate}"


def field_paths(config: TrialConfig) -> tuple[str, ...]:
    """Every dotted path that a space or a command line may set, one modality's own size among them."""
    paths = []
    for section in dataclasses.fields(config):
        if section.name == "seed":
            continue
        for leaf in dataclasses.fields(getattr(config, section.name)):
            path = f"{section.name}.{leaf.name}"
            paths.append(path)
            if "dict[str" in str(leaf.type):
                paths += [f"{path}.{modality}" for modality in config.modalities]
    return tuple(paths)


@cache
def _adapter() -> TypeAdapter[TrialConfig]:
    return TypeAdapter(TrialConfig)


Objective = Literal[
    "mean_coherence",
    "random_coherence",
    "probe_accuracy",
    "mean_average_precision",
    "mean_probe_average_precision",
    "log_likelihood",
]
"""A validation metric that a study may maximise. Where it depends on what is given, nothing is given or all
modalities, fused by the product."""

OF_CLASSES: frozenset[Objective] = frozenset({"mean_coherence", "random_coherence", "probe_accuracy"})
"""Those that are measured where samples have a class."""

OF_ATTRIBUTES: frozenset[Objective] = frozenset({"mean_average_precision", "mean_probe_average_precision"})
"""Those that are measured where samples have attributes."""

OF_SEVERAL: frozenset[Objective] = frozenset({"mean_coherence", "mean_average_precision"})
"""Those of what is generated given other modalities."""

LATE_OBJECTIVES: frozenset[Objective] = frozenset({"log_likelihood"})
"""Those that cost so much that the validation split has them after the last epoch alone."""


def own_objective(config: TrialConfig) -> Objective:
    """What a study maximises if it is not told: what generated samples are worth."""
    return "mean_average_precision" if config.spec.attributes else "mean_coherence"


def is_measured(objective: Objective, config: TrialConfig) -> bool:
    """Whether the config's data set has what the objective is about."""
    absent = OF_CLASSES if config.spec.attributes else OF_ATTRIBUTES
    return objective not in (absent if len(config.modalities) > 1 else absent | OF_SEVERAL)


def objective_curve(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """An objective by epoch, from one trial's rows of the table `measurements`."""
    found: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        is_whole = row["posterior"] != "mixture" and row["target"] in ("", "joint")
        if is_whole and (row["split"], row["metric"]) == ("validation", metric):
            known = found.setdefault(row["epoch"], row)
            if row["given"].count("+") > known["given"].count("+"):
                found[row["epoch"]] = row
    return {epoch: row["value"] for epoch, row in found.items()}


def curve_name(row: Mapping[str, Any]) -> str:
    """What a row of the table `measurements` is called where its values over the epochs are drawn."""
    parts = (row[name] for name in ("split", "metric", "posterior", "given", "target"))
    return "/".join(part for part in parts if part)


class ClusterError(ValueError):
    """A Ray cluster that cannot carry the study out; the message says what it lacks."""


Preset = Literal["laptop", "paper"]
Sampler = Literal["grid", "random", "qmc", "tpe", "gp", "nsga2", "cmaes"]
Scheduler = Literal["none", "asha", "median"]
Phase = Literal["search", "confirm"]
Retry = Literal["failed", "diverged"]
Logger = Literal["mlflow", "wandb"]

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "laptop": {
        "data.name": "digits",
        "data.samples_per_epoch": 20_000,
        "model.width": 0.25,
        "training.epochs": 4,
        "training.batch_size": 32,
        "training.learning_rate": 4e-3,
        "evaluation.every": 2,
        "evaluation.num_samples": 1_000,
        "evaluation.importance_samples": 4,
    },
    "paper": {
        "data.name": "mnist-svhn-text",
        "data.samples_per_epoch": 1_121_360,
        "model.width": 1.0,
        "training.epochs": 50,
        "training.batch_size": 256,
        "training.learning_rate": 1e-3,
        "evaluation.every": 5,
        "evaluation.num_samples": 10_000,
    },
}
"""Fields that make a trial fit a machine: stronger than the defaults, weaker than a space's base."""


def seconds(text: str) -> float:
    """The seconds of a time such as 90s, 30m or 2h; 0 if it is none."""
    number, unit = text[:-1], text[-1:]
    try:
        found = float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    except (KeyError, ValueError):
        return 0.0
    return found if isfinite(found) else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """A study as the command line asks for it; what is None is decided from the rest."""

    space: str | None = None
    """The question: the name of a file in search_spaces/, or the path of a file with a SPACE."""

    dataset: str | None = None
    """Short for --data.name."""

    data_dir: Path | None = None
    """Short for --data.dir."""

    preset: Preset | None = None
    """Size of the trials; paper is as published, with the space's weights of the objective.
    None: paper with a GPU or --address, else laptop."""

    trials: int | None = None
    """Number of configs. None: all of a grid, 20 of another sampler."""

    replicates: int = 2
    """Trainings of each config, each with its own seed."""

    objectives: tuple[Objective, ...] = ("mean_coherence",)
    """What is maximised, on validation; where samples have attributes and no class, mean_average_precision.
    Several, between spaces or commas, give a Pareto study: all count alike, the first ranks.
    coherence is short for mean_coherence."""

    confirm: int = 0
    """After the search: so many of its best configs, and the base config, are trained with fresh seeds.
    The report judges by these alone."""

    confirm_replicates: int | None = None
    """Trainings of each config that is confirmed. None: as many as --replicates."""

    sampler: Sampler | None = None
    """Proposes the configs. None: grid if every varied field has a few values, else tpe."""

    scheduler: Scheduler = "none"
    """Stops unpromising configs early, by the mean of their replicates."""

    workers: int = 1
    """Processes that train one trial together, data-parallel."""

    gpus_per_worker: float | None = None
    """1, or the share of a GPU, that each worker takes; 0: CPUs. None: 1 with a GPU or --address, else 0."""

    max_concurrent: int | None = None
    """Trials at the same time. None: as many as the workers find room for."""

    pack: int = 1
    """Trials that one process trains as one; faster on a GPU, and with narrow networks on a CPU.
    Replicates first, then configs that differ in step size, subspaces' sizes and weights of the objective."""

    budget_samples: float | None = None
    """Training samples of each trial, in as many epochs as without it. None: as the fields say."""

    budget: str | None = None
    """Time after which no new trial starts, such as 90s, 30m or 2h; --resume goes on. None: no limit."""

    budget_device_hours: float | None = None
    """Hours, summed over workers and over all sessions, after which no new trial starts. None: no limit."""

    storage: str | None = None
    """Database in which Optuna keeps the study. None: a journal in --out.
    Such as sqlite:///study.db or postgresql+psycopg://user:password@host/database."""

    loggers: tuple[Logger, ...] = ()
    """Where the study is shown too, besides TensorBoard: MLflow, Weights & Biases."""

    keep_checkpoints: int = 20
    """So many of the best trials keep their checkpoint, with the model; running and failed trials do too."""

    address: str | None = None
    """Ray cluster to join, such as auto. None: a Ray on this machine that ends with the study."""

    out: str | None = None
    """Folder of the study: a path, s3://bucket/folder or gs://bucket/folder. None: runs/SPACE."""

    resume: bool = False
    """Go on with the study in --out: train what is missing, or added by more trials or replicates."""

    retry: tuple[Retry, ...] = ()
    """With --resume: trials that ended like this are tried again, diverged ones from their start."""

    replay: str | None = None
    """RUN/TRIAL_ID: train that ended trial once more, alone, and compare its numbers; no other options."""

    dry_run: bool = False
    """Print what would be trained and stop."""

    seed: int = 0
    """Seeds the sampler, and with config and replicate every trial."""

    def __post_init__(self) -> None:
        for name in ("trials", "replicates", "confirm_replicates", "workers", "max_concurrent", "pack"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be >= 1, got {value}")
        require(self.replicates <= FIRST_FRESH, f"replicates must be <= {FIRST_FRESH}, got {self.replicates}")
        for name in ("confirm", "keep_checkpoints"):
            require(getattr(self, name) >= 0, f"{name} must be >= 0, got {getattr(self, name)}")
        require(
            self.pack == 1 or self.workers == 1,
            "--pack trains several trials in one process; leave it out, or leave --workers out",
        )
        twice = [each for each in self.objectives if self.objectives.count(each) > 1]
        require(not twice, f"--objectives names {twice[0] if twice else ''} twice; leave one out")
        require(bool(self.objectives), "--objectives needs a value")
        gpus = self.gpus_per_worker
        require(
            gpus is None or gpus in (0, 1) or (0 < gpus < 1 and self.workers == 1),
            f"gpus_per_worker must be 0 or 1, or a share between them for one worker alone, got {gpus} for "
            f"workers {self.workers}; a worker trains on one GPU, and those of a trial not on the same",
        )
        samples = self.budget_samples
        require(
            samples is None or (isfinite(samples) and samples >= 1),
            f"budget_samples must be >= 1, got {samples}",
        )
        hours = self.budget_device_hours
        require(
            hours is None or (isfinite(hours) and hours > 0), f"budget_device_hours must be > 0, got {hours}"
        )
        require(
            self.budget is None or seconds(self.budget) > 0,
            f"budget must be a time such as 90s, 30m or 2h, got {self.budget!r}",
        )
        require(0 <= self.seed < 2**32, f"seed must lie in [0, 2^32), got {self.seed}")
        require(self.resume or not self.retry, "--retry goes with --resume; add it, or leave --retry out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A study with everything decided: what `study.tuner.run_study` carries out."""

    name: str
    """Of the folder in which it was begun."""

    space_name: str
    space: "SearchSpace"
    """Without the fields that the command line has fixed."""

    base: TrialConfig
    """Every field that the space does not vary."""

    preset: Preset
    sampler: Sampler
    scheduler: Scheduler

    objectives: tuple[Objective, ...]
    trials: int
    """Number of configs; with the grid sampler the first of `space.grid()`."""

    replicates: int
    confirm: int
    """Number of configs, besides the base config, that are trained with fresh seeds; 0: no confirmation."""

    confirm_replicates: int
    seed: int
    workers: int
    gpus_per_worker: float
    max_concurrent: int | None
    pack: int
    budget_s: float
    """Infinite without a budget."""

    budget_device_s: float
    """Of all trials, over all sessions; infinite without a budget."""

    storage: str | None = field(repr=False)
    """URL of Optuna's database, with credentials; none: a journal in `out`."""

    loggers: tuple[Logger, ...]
    keep_checkpoints: int
    """Of ended trials, the best."""

    retry: tuple[Retry, ...]
    """States in lower case; ended trials that are served again."""

    address: str | None

    out: Path
    """Absolute."""

    bucket_url: str | None = None
    """URL of the folder in object storage that keeps the study; `out` is then where this node works on it."""

    is_new: bool = False
    """Whether this session starts it, so that its database may not have one of its name."""

    commit: str
    """Empty where the project is no git repository."""

    dirty: bool
    versions: str
    """JSON: package name to version."""

    @property
    def where(self) -> str:
        """The study's folder by the name that the user knows."""
        return self.bucket_url or str(self.out)
