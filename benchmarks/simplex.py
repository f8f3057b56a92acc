"""Measures how near TPE comes to a known best point of a simplex: python benchmarks/simplex.py

Two ways to draw weights that sum to one, under the same sampler with the same seeds and for the same
optima, which are drawn uniformly: by stick-breaking, as `Simplex` of study/space.py does, and by the recipe
of Optuna's FAQ, which normalises exponential draws. Both without a lower bound. The objective is minus the
squared distance to the optimum; what is told is the distance in L1 of the best of all trials.
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import optuna

from study.space import Simplex

ROOT = Path(__file__).resolve().parents[1]
SIZES, SEEDS, TRIALS, NEAR = (4, 5), 40, 150, 0.05

Weights = tuple[float, ...]


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    ways = {"stick-breaking": stick_breaking, "normalised exponentials": normalised_exponentials}
    found: dict[str, dict[str, object]] = {}
    begin = time.process_time()
    for size in SIZES:
        distances: dict[str, list[float]] = {name: [] for name in ways}
        for seed in range(SEEDS):
            optimum = np.random.default_rng(seed).dirichlet(np.ones(size))
            for name, draw in ways.items():
                distances[name].append(nearest(draw, optimum, seed))
        first, second = distances.values()
        pairs = list(zip(first, second, strict=True))
        found[f"{size} weights"] = {
            name: {
                "median distance": round(statistics.median(each), 4),
                "greatest distance": round(max(each), 4),
                "within": sum(distance <= NEAR for distance in each),
            }
            for name, each in distances.items()
        } | {"stick-breaking nearer": sum(ours <= theirs for ours, theirs in pairs)}
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "optuna": optuna.__version__,
        "trials": TRIALS,
        "seeds": SEEDS,
        "near": NEAR,
        "cpu_s": round(time.process_time() - begin, 1),
        "L1": found,
    }
    text = json.dumps(figures, indent=2)
    (ROOT / "benchmarks" / "simplex.json").write_text(f"{text}\n", encoding="utf-8")
    sys.stdout.write(f"{text}\n")


def nearest(draw: Callable[[optuna.Trial, int], Weights], optimum: np.ndarray, seed: int) -> float:
    """The L1 distance to the optimum of the best trial, under TPE as studies use it."""
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    drawn = {}

    def objective(trial: optuna.Trial) -> float:
        drawn[trial.number] = np.array(draw(trial, len(optimum)))
        return -float(np.square(drawn[trial.number] - optimum).sum())

    study.optimize(objective, n_trials=TRIALS)
    return float(np.abs(drawn[study.best_trial.number] - optimum).sum())


def stick_breaking(trial: optuna.Trial, size: int) -> Weights:
    """As studies draw weights."""
    return Simplex(size, lower=0.0).suggest(trial, "pi")


def normalised_exponentials(trial: optuna.Trial, size: int) -> Weights:
    """The flat Dirichlet distribution as Optuna's FAQ draws it."""
    draws = [-math.log(trial.suggest_float(f"pi[{index}]", 1e-12, 1.0)) for index in range(size)]
    return tuple(each / sum(draws) for each in draws)


if __name__ == "__main__":
    main()
