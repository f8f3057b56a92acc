"""Made-up studies with known effects, written as real ones are: through study.store."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from study import store
from tests.studies import trial

MODALITIES = ("mnist", "svhn", "text")
TEST_GAP = 0.02
"""By how much the test split's objective is below the validation split's."""

_START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

Truth = Callable[[Mapping[str, Any]], float]
Scores = Callable[[Mapping[str, Any], np.random.Generator], Mapping[tuple[str, ...], float]]


def write_study(
    run: Path,
    configs: Sequence[Mapping[str, Any]],
    truth: Truth,
    *,
    replicates: int = 2,
    noise: float = 0.01,
    state: Callable[[int, int], str] = lambda config, replicate: "COMPLETE",
    error: str = "",
    epochs: int = 4,
    modalities: Sequence[str] = MODALITIES,
    dataset: str = "digits",
    tested: Scores = lambda params, rng: {},
    study: Mapping[str, Any] | None = None,
    seed: int = 0,
    confirm: Sequence[int] = (),
    fresh: Truth | None = None,
) -> Path:
    """Write a run folder whose validation objective is `truth(params)` plus noise between replicates.

    `state(config, replicate)` may also be "RUNNING" (measurements only) or "PLANNED" (nothing). The configs
    at the positions `confirm`, and the base, have replicates of a confirmation too, by the truth `fresh`.
    `tested(params, rng)`: scores of the test split by metric, posterior, given, target and, where they have
    one, attribute, in place of those that are made up.
    """
    rng = np.random.default_rng(seed)
    run.mkdir(parents=True, exist_ok=True)
    information = study_json(configs, replicates, modalities) | dict(study or {})
    information["base"]["data"]["name"] = dataset
    (run / "study.json").write_text(json.dumps(information))
    (run / "manifest.json").write_text(json.dumps(manifest_json()))
    base = {path: _at(information["base"], path) for path in (configs[0] if confirm else ())}
    trainings = [
        (index, params, replicate, "search")
        for index, params in enumerate(configs)
        for replicate in range(replicates)
    ]
    trainings += [
        (-1, params, 1000 + replicate, "confirm")
        for params in ([base, *(configs[index] for index in confirm)] if confirm else [])
        for replicate in range(replicates)
    ]
    for index, params, replicate, phase in trainings:
        condition = state(index, replicate) if phase == "search" else "COMPLETE"
        level = (truth if phase == "search" else fresh or truth)(params) + noise * rng.standard_normal()
        if condition == "PLANNED":
            continue
        config_hash = hashlib.sha256(repr(sorted(params.items())).encode()).hexdigest()[:12]
        trial_id = f"{config_hash}-r{replicate}"
        identity = {
            "study": run.name,
            "trial_id": trial_id,
            "config_hash": config_hash,
            "replicate": replicate,
        }
        rows = _measurements(level, epochs, condition == "COMPLETE", modalities, rng)
        if condition == "COMPLETE":
            rows = _replaced(rows, tested(params, rng), epochs)
        store.write_measurements(run, trial_id, [identity | row for row in rows])
        if condition != "RUNNING":
            is_complete = condition == "COMPLETE"
            row = trial(
                **identity,
                phase=phase,
                space=information["space"],
                state=condition,
                error="" if is_complete else error,
                epochs=epochs,
                started_at=_START,
                finished_at=_START + timedelta(seconds=30),
                wall_s=30.0,
                device_s=30.0,
                evaluation_s=12.0,
                samples_per_s=1000.0,
                peak_memory_gib=0.5,
                device="cpu",
                commit="0123456",
                objective_metric=information["objective_metric"],
                objective_value=level if is_complete else None,
                config=json.dumps(_config(information, params), sort_keys=True),
            )
            store.write_trial(run, row, params)
    return run


def _at(base: Mapping[str, Any], path: str) -> Any:
    section, name = path.split(".")
    return base[section][name]


def grid(**options: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination; a double underscore in a name stands for the dot of a path."""
    configs: list[dict[str, Any]] = [{}]
    for name, values in options.items():
        configs = [config | {name.replace("__", "."): value} for config in configs for value in values]
    return configs


def study_json(
    configs: Sequence[Mapping[str, Any]], replicates: int, modalities: Sequence[str]
) -> dict[str, Any]:
    """study.json as study/run.py writes it."""
    paths = list(dict.fromkeys(path for params in configs for path in params))
    domains = {
        path: {
            "type": "Choice",
            "options": list(dict.fromkeys(params[path] for params in configs if path in params)),
        }
        for path in paths
    }
    return {
        "study": "subspaces",
        "space": "subspaces",
        "question": "How large may the modality-specific subspaces be before coherence suffers, "
        "and does a larger beta prevent it?",
        "description": "How large may the modality-specific subspaces be?\n\nSource: Eq. 10",
        "command": ["study/run.py", "--space", "subspaces", "--out", "runs/subspaces"],
        "preset": "laptop",
        "sampler": "grid",
        "trials": len(configs),
        "replicates": replicates,
        "seed": 0,
        "objective_metric": "mean_coherence",
        "base": {
            "data": {"name": "digits", "dir": None, "samples_per_epoch": 20000},
            "model": {"content_dim": 16, "style_dim": 4, "width": 0.5},
            "objective": {"name": "mmjsd", "fusion": "mixture", "dynamic_prior": "product",
                          "importance_samples": None, "beta": 2.5, "weights": [0.25] * 4,
                          "reconstruction_weights": dict.fromkeys(modalities, 1.0)},
            "training": {"epochs": 4, "batch_size": 128, "learning_rate": 2e-3},
            "seed": 0,
        },
        "domains": domains,
        "started_at": _START.isoformat(),
    }  # fmt: skip


def manifest_json() -> dict[str, Any]:
    """manifest.json as study/run.py writes it."""
    return {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "versions": {"python": "3.11.9", "torch": "2.14.1", "ray": "2.60.0"},
        "hardware": {"cpu": "A processor", "cores": 8, "memory_gib": 31.2, "gpus": []},
        "command": "study/run.py --space subspaces --out runs/subspaces",
        "started_at": _START.isoformat(),
        "data": {"name": "digits", "digest": "sha256:00ff", "num_classes": 10},
    }


def _config(information: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The whole config, with what named cases set."""
    config: dict[str, Any] = json.loads(json.dumps(information["base"]))
    fields: dict[str, Any] = {}
    for path, value in params.items():
        fields |= information["domains"].get(path, {}).get("cases", {}).get(value, {})
    for path, value in (fields | dict(params)).items():
        section, _, name = path.partition(".")
        if name in config.get(section, {}):
            config[section][name] = value
    return config


def _replaced(
    rows: list[dict[str, Any]], scores: Mapping[tuple[str, ...], float], epoch: int
) -> list[dict[str, Any]]:
    names = ("metric", "posterior", "given", "target")
    kept = [row for row in rows if row["split"] != "test" or tuple(row[name] for name in names) not in scores]
    return kept + [_row(epoch, "test", metric, value, *rest) for (metric, *rest), value in scores.items()]


def _measurements(
    level: float, epochs: int, complete: bool, modalities: Sequence[str], rng: np.random.Generator
) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, epochs + 1):
        reached = level * (1 - 0.7**epoch) / (1 - 0.7**epochs)
        rows.append(_row(epoch, "train", "loss", 900 - 300 * reached))
        splits = ["validation"] + (["test"] if epoch == epochs and complete else [])
        for split in splits:
            rows += _scores(epoch, split, reached - TEST_GAP * (split == "test"), modalities, rng)
    return rows


def _scores(
    epoch: int, split: str, level: float, modalities: Sequence[str], rng: np.random.Generator
) -> list[dict[str, Any]]:
    def near(value: float) -> float:
        return float(np.clip(value + 0.01 * rng.standard_normal(), 0, 1))

    rows = [
        _row(epoch, split, "loss", 900 - 200 * level + rng.standard_normal()),
        _row(epoch, split, "content_divergence", 8.0),
        _row(epoch, split, "random_coherence", near(0.6 * level)),
    ]
    rows += [
        _row(epoch, split, "mean_coherence", level - loss, each)
        for each, loss in (("product", 0.0), ("mixture", 0.05))
    ]
    for target in modalities:
        rows.append(
            _row(epoch, split, "reconstruction", 200 + 40 * level + rng.standard_normal(), target=target)
        )
        rows.append(_row(epoch, split, "style_divergence", 3.0, target=target))
        if split == "test":
            rows.append(_row(epoch, split, "classifier_accuracy", 0.97, target=target))
    for size in range(1, len(modalities) + 1):
        for subset in combinations(sorted(modalities), size):
            for posterior in ("mixture", "product") if size > 1 else ("",):
                given = "+".join(subset)
                rows.append(_row(epoch, split, "probe_accuracy", near(0.3 + 0.6 * level), posterior, given))
                rows += [
                    _row(
                        epoch,
                        split,
                        "coherence",
                        near(level + 0.1 * (target in subset)),
                        posterior,
                        given,
                        target,
                    )
                    for target in modalities
                ]
    return rows


def _row(
    epoch: int,
    split: str,
    metric: str,
    value: float,
    posterior: str = "",
    given: str = "",
    target: str = "",
    attribute: str | None = None,
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "split": split,
        "metric": metric,
        "posterior": posterior,
        "given": given,
        "target": target,
        "value": value,
        "standard_error": 0.01,
        "num_samples": 1000,
        "attribute": attribute,
    }
