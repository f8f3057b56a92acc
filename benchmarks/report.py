"""Measures what `analysis.api.load` and a report take: python benchmarks/report.py FOLDER

Writes a made-up study (10,000 trials with 5 million measurements, unless told otherwise) through study.store,
then takes the time and the memory of loading and of reporting, each in a process of its own. study/run.py
leaves a study that has ended as it is quickest to read; one that runs, or has crashed, is a file a trial.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import numpy as np

from study import store

ROOT = Path(__file__).resolve().parents[1]

MODALITIES = ("image", "sound", "text")
REPLICATES = 4
_START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the study is written, or was by an earlier call")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--measurements", type=int, default=500, help="rows a trial")
    arguments = parser.parse_args()
    run = arguments.folder
    if not (run / "study.json").exists():
        write_study(run, arguments.trials, arguments.measurements)
    for snapshot in (run / "results").glob(".*.snapshot"):
        snapshot.unlink()
    ended = run.with_name(f"{run.name}-ended")
    shutil.rmtree(ended, ignore_errors=True)
    shutil.copytree(run, ended)
    end = "from pathlib import Path; from study.store import *; out = Path(sys.argv[1])"
    measure(f"{end}; compact(out); ended_trials(out)", ended)
    load = "from analysis.api import load; load(sys.argv[1])"
    start = measure("import numpy", run)
    first, loaded = measure(load, run), measure(load, ended)
    reported = measure("from analysis.report import main; main([sys.argv[1]])", ended)
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "trials": arguments.trials,
        "measurements": arguments.trials * arguments.measurements,
        "cores": os.cpu_count(),
        "start": start,
        "first load while it runs": first,
        "first load when it has ended": loaded,
        "report when it has ended": reported,
        "while it runs / when it has ended": round(first["cpu_s"] / loaded["cpu_s"], 2),
        "load / start": round(loaded["cpu_s"] / start["cpu_s"], 1),
        "report / load": round(reported["cpu_s"] / loaded["cpu_s"], 2),
    }
    text = json.dumps(figures, indent=2)
    (ROOT / "benchmarks" / "report.json").write_text(f"{text}\n", encoding="utf-8")
    sys.stdout.write(f"{text}\n")


def measure(statement: str, run: Path) -> dict[str, float]:
    """Wall-clock and processor seconds, and the peak memory, of a process that runs the statement."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", f"import sys; {statement}", str(run)], cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"failed: {statement}")
    cpu_s = used.ru_utime + used.ru_stime
    return {"wall_s": round(seconds, 2), "cpu_s": round(cpu_s, 2), "gib": round(used.ru_maxrss / 2**20, 2)}


def write_study(run: Path, trials: int, measurements: int) -> None:
    """A random search over four fields, of which two matter."""
    rng = np.random.default_rng(0)
    run.mkdir(parents=True)
    quantities = list(_quantities())
    epochs = max(1, round(measurements / (2 * len(quantities))))
    for number in range(trials // REPLICATES):
        params = {
            "objective.beta": float(10 ** rng.uniform(-1, 1)),
            "training.learning_rate": float(10 ** rng.uniform(-4, -2)),
            "model.style_dim": int(rng.integers(0, 33)),
            "objective.name": str(rng.choice(["mmjsd", "mvae", "mmvae"])),
        }
        level = 0.5 + 0.1 * np.log10(params["objective.beta"]) - 0.005 * params["model.style_dim"]
        for replicate in range(REPLICATES):
            identity = {
                "study": run.name,
                "trial_id": f"{number:012x}-r{replicate}",
                "config_hash": f"{number:012x}",
                "replicate": replicate,
            }
            reached = float(level + 0.02 * rng.standard_normal())
            rows = [
                {**identity, **quantity, "epoch": epoch, "split": split, "value": reached * epoch / epochs}
                for epoch in range(1, epochs + 1)
                for split in ("validation", "test")
                for quantity in quantities
            ]
            store.write_measurements(run, identity["trial_id"], rows[-measurements:])
            store.write_trial(run, identity | _trial(reached, epochs), params)
    study = {"study": run.name, "sampler": "random", "trials": trials // REPLICATES, "replicates": REPLICATES}
    (run / "study.json").write_text(json.dumps(study), encoding="utf-8")


def _quantities():
    """Metrics of three modalities as a study measures them, without their values."""
    rest = {"standard_error": 0.01, "num_samples": 1000}
    for posterior in ("product", "mixture"):
        yield _quantity("mean_coherence", posterior) | rest
    yield _quantity("loss") | rest
    for target in MODALITIES:
        yield _quantity("reconstruction", target=target) | rest
    for size in range(1, len(MODALITIES) + 1):
        for subset in combinations(MODALITIES, size):
            for posterior in ("mixture", "product") if size > 1 else ("",):
                given = "+".join(subset)
                yield _quantity("probe_accuracy", posterior, given) | rest
                for target in MODALITIES:
                    yield _quantity("coherence", posterior, given, target) | rest


def _quantity(metric: str, posterior: str = "", given: str = "", target: str = "") -> dict[str, object]:
    return {"metric": metric, "posterior": posterior, "given": given, "target": target}


def _trial(level: float, epochs: int) -> dict[str, object]:
    return {
        "space": "benchmark",
        "seed": 1,
        "state": "COMPLETE",
        "error": "",
        "epochs": epochs,
        "started_at": _START,
        "finished_at": _START,
        "wall_s": 30.0,
        "device_s": 30.0,
        "evaluation_s": 12.0,
        "samples_per_s": 1000.0,
        "peak_memory_gib": 0.5,
        "workers": 1,
        "device": "cpu",
        "host": "host",
        "commit": "0123456",
        "phase": "search",
        "dirty": False,
        "versions": "{}",
        "objective_metric": "mean_coherence",
        "objective_value": level,
        "config": "{}",
    }


if __name__ == "__main__":
    main()
