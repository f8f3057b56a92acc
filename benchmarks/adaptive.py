"""Measures what an adaptive search saves against a grid: python benchmarks/adaptive.py FOLDER [--seeds 3]

Both search the weights pi (space `priors`, preset `laptop`, embedded data, evaluated eight times): the grid
trains its 35 configs to their end; TPE proposes configs, and ASHA stops those that are behind, until half
the grid's device-seconds are spent. Told is whether and when TPE with ASHA has found a config whose mean over
replicates is at least that of the grid's best, on validation; also in epochs, which are the same whatever
else the machine does.

The best of many noisy values is a lucky one, so the best config of each search is then trained with eight
fresh seeds: their means say what each search has really found. Studies run one after the other; one that is
there already is resumed. With one replicate all takes some 50 minutes of two free cores. Other options go to
all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from study import store

ROOT = Path(__file__).resolve().parents[1]
COMMON = (
    *("--preset", "laptop", "--training.epochs", "8", "--data.samples_per_epoch", "10000"),
    *("--evaluation.every", "1", "--evaluation.num_samples", "500", "--evaluation.probe_samples", "200"),
    *("--evaluation.importance_samples", "0"),
)
ADAPTIVE = ("--space", "priors", "--sampler", "tpe", "--scheduler", "asha", "--trials", "105")
FRESH_SEEDS = 8


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the studies are written, or were by an earlier call")
    parser.add_argument("--seeds", type=int, default=3, help="adaptive studies")
    arguments, options = parser.parse_known_args()
    grid = studied(arguments.folder / "grid", ("--space", "priors", "--sampler", "grid", *options))
    cost = spent(grid)
    best = max(value for _, value in found(grid))
    winners = {"grid": weights_of_best(grid)}
    half = ("--budget-device-hours", str(cost["device_s"] / 2 / 3600))
    searches = []
    for seed in range(arguments.seeds):
        rows = studied(
            arguments.folder / f"adaptive-{seed}", (*ADAPTIVE, *half, "--seed", str(seed), *options)
        )
        values = list(found(rows))
        until = next((cost_until for cost_until, value in values if value >= best), None)
        winners[f"adaptive, seed {seed}"] = weights_of_best(rows)
        searches.append(
            {"seed": seed, "best": round(max(value for _, value in values), 4), **spent(rows)}
            | {"stopped": sum(row["state"] == "STOPPED" for row in rows)}
            | {
                f"share of the grid's {unit} until its best": until and round(until[unit] / cost[unit], 2)
                for unit in ("device_s", "epochs")
            }
        )
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "options": [*COMMON, *options],
        "metric": grid[0]["objective_metric"],
        "grid": {"configs": len({row["config_hash"] for row in grid}), "best": round(best, 4), **cost},
        "adaptive": searches,
        "their best with fresh seeds": confirmed(arguments.folder, winners, options),
    }
    text = json.dumps(figures, indent=2)
    (ROOT / "benchmarks" / "adaptive.json").write_text(f"{text}\n", encoding="utf-8")
    sys.stdout.write(f"{text}\n")


def studied(out: Path, options: Sequence[str]) -> list[dict[str, Any]]:
    """The trials of a study, trained as far as they are missing, in the order in which they ended."""
    resume = ("--resume",) if (out / "study.json").exists() else ()
    command = (sys.executable, str(ROOT / "study" / "run.py"), *COMMON, *options, "--out", str(out), *resume)
    subprocess.run(command, check=True)
    return sorted(store.ended_trials(out), key=lambda row: row["finished_at"])


def spent(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """What trials cost, in two units."""
    return {
        "trials": len(rows),
        "device_s": round(sum(row["device_s"] for row in rows)),
        "epochs": sum(row["epochs"] for row in rows),
    }


def found(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, int], float]]:
    """The mean objective of each complete config, with what all trials cost until then."""
    replicates = 1 + max(row["replicate"] for row in rows)
    values: dict[str, list[float]] = {}
    for position, row in enumerate(rows, 1):
        if row["state"] == "COMPLETE":
            each = values.setdefault(row["config_hash"], [])
            each.append(row["objective_value"])
            if len(each) == replicates:
                yield spent(rows[:position]), sum(each) / replicates


def weights_of_best(rows: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """The weights of the config with the highest mean objective."""
    replicates = 1 + max(row["replicate"] for row in rows)
    values: dict[tuple[float, ...], list[float]] = {}
    for row in rows:
        if row["state"] == "COMPLETE":
            weights = tuple(json.loads(row["config"])["objective"]["weights"])
            values.setdefault(weights, []).append(row["objective_value"])
    return max((sum(each), weights) for weights, each in values.items() if len(each) == replicates)[1]


def confirmed(
    folder: Path, winners: Mapping[str, tuple[float, ...]], options: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What configs are worth that were chosen by other trainings: mean, standard error, gap to the grid's."""
    space = folder / "winners.py"
    domain = f'{{"objective.weights": Choice({tuple(dict.fromkeys(winners.values()))!r})}}'
    space.write_text(
        f"from study.space import Choice, SearchSpace\n\nSPACE = SearchSpace(domains={domain})\n",
        encoding="utf-8",
    )
    fresh = ("--space", str(space), "--sampler", "grid", "--seed", "1000", *options)
    rows = studied(folder / "winners", (*fresh, "--replicates", str(FRESH_SEEDS)))
    values: dict[tuple[float, ...], list[float]] = {}
    for row in rows:
        weights = tuple(json.loads(row["config"])["objective"]["weights"])
        values.setdefault(weights, []).append(row["objective_value"])
    told = {}
    for name, weights in winners.items():
        each, gap = (
            values[weights],
            statistics.mean(values[weights]) - statistics.mean(values[winners["grid"]]),
        )
        told[name] = {
            "weights": [round(weight, 3) for weight in weights],
            "mean": round(statistics.mean(each), 4),
            "standard error": round(statistics.stdev(each) / len(each) ** 0.5, 4),
            "above the grid's": round(gap, 4),
        }
    return told


if __name__ == "__main__":
    main()
