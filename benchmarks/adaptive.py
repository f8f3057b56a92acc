"""Measures what an adaptive search saves against a grid: python benchmarks/adaptive.py FOLDER [--seeds 3]

Both search the weights pi (space `priors`, preset `laptop`, embedded data): the grid trains its 35 configs
to their end; TPE proposes as many, and ASHA stops those that are behind. Told is after how many
device-seconds TPE with ASHA has found a config whose mean over replicates is at least that of the grid's
best, on validation. Studies run one after the other; one that is there already is resumed. With two
replicates the grid takes some 40 minutes of two free cores, each seed half of that. Other options go to all.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from study import store

ROOT = Path(__file__).resolve().parents[1]
COMMON = ("--space", "priors", "--preset", "laptop", "--evaluation.every", "1")
ADAPTIVE = ("--sampler", "tpe", "--scheduler", "asha", "--trials", "35")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the studies are written, or were by an earlier call")
    parser.add_argument("--seeds", type=int, default=3, help="adaptive studies")
    arguments, options = parser.parse_known_args()
    grid = studied(arguments.folder / "grid", ("--sampler", "grid", *options))
    best, grid_s = max(value for _, value in found(grid)), sum(row["device_s"] for row in grid)
    searches = []
    for seed in range(arguments.seeds):
        rows = studied(arguments.folder / f"adaptive-{seed}", (*ADAPTIVE, "--seed", str(seed), *options))
        values = list(found(rows))
        reached = next((device_s for device_s, value in values if value >= best), None)
        searches.append(
            {
                "seed": seed,
                "best": round(max(value for _, value in values), 4),
                "device_s": round(sum(row["device_s"] for row in rows)),
                "device_s until the grid's best": None if reached is None else round(reached),
                "share of the grid's": None if reached is None else round(reached / grid_s, 2),
                "stopped": sum(row["state"] == "STOPPED" for row in rows),
            }
        )
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "options": [*COMMON, *options],
        "metric": grid[0]["objective_metric"],
        "grid": {"configs": len({row["config_hash"] for row in grid}), "trials": len(grid)}
        | {"best": round(best, 4), "device_s": round(grid_s)},
        "adaptive": searches,
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


def found(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[float, float]]:
    """The mean objective of each complete config, with the device-seconds of all trials until then."""
    replicates = 1 + max(row["replicate"] for row in rows)
    spent, values = 0.0, {}
    for row in rows:
        spent += row["device_s"]
        if row["state"] == "COMPLETE":
            each = values.setdefault(row["config_hash"], [])
            each.append(row["objective_value"])
            if len(each) == replicates:
                yield spent, sum(each) / replicates


if __name__ == "__main__":
    main()
