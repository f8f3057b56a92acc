"""Measures what a study costs besides training: python benchmarks/overhead.py FOLDER

Runs a study of many trials, by the command line and Ray, in which training is played: a trial takes no time,
but its tables, curves and checkpoint are written as ever. Then resumes it, when nothing is left to do. Takes
the processor time of all processes too, since other work on the machine does not change that.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
_DRIVER = "--driver"
_SETTLED = 0.1
"""Share of the trials after which the driver's memory is taken for the first time."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the study is written")
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--sampler", default="random")
    arguments = parser.parse_args()
    options = ("--space", "priors", "--out", str(arguments.folder), "--replicates", "1")
    many = ("--trials", str(arguments.trials), "--sampler", arguments.sampler, "--training.epochs", "1")
    first = measure([*options, *many], arguments.folder, arguments.trials)
    again = measure([*options, *many, "--resume"], arguments.folder, arguments.trials)
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "trials": arguments.trials,
        "sampler": arguments.sampler,
        "wall_s a trial": round(first["wall_s"] / arguments.trials, 3),
        "cpu_s a trial": round(first["cpu_s"] / arguments.trials, 3),
        "driver_growth_mb": first["growth_mb"],
        "resume_wall_s": again["wall_s"],
        "resume_cpu_s": again["cpu_s"],
    }
    text = json.dumps(figures, indent=2)
    (ROOT / "benchmarks" / "overhead.json").write_text(f"{text}\n", encoding="utf-8")
    sys.stdout.write(f"{text}\n")


def measure(options: Sequence[str], out: Path, num_trials: int) -> dict[str, float]:
    """Run one session; its time, the processor time of its processes, and by how much its driver grew."""
    begin = time.perf_counter()
    process = psutil.Popen([sys.executable, __file__, _DRIVER, *options], stdout=subprocess.DEVNULL)
    spent: dict[int, float] = {}
    settled = memory = 0
    while process.poll() is None:
        time.sleep(0.2)
        try:
            for each in (process, *process.children(recursive=True)):
                spent[each.pid] = sum(each.cpu_times()[:2])
            memory = max(memory, process.memory_info().rss)
        except psutil.NoSuchProcess:
            continue
        if not settled and len(list(out.glob("results/trials/*.parquet"))) >= _SETTLED * num_trials:
            settled = memory
    if process.returncode:
        raise SystemExit(process.returncode)
    return {
        "wall_s": round(time.perf_counter() - begin, 1),
        "cpu_s": round(sum(spent.values()), 1),
        "growth_mb": round((memory - settled) / 1e6, 1),
    }


def drive(options: Sequence[str]) -> int:
    """A study by its command line, with the training of each trial played."""
    import study.tuner
    from study.run import main as run

    assert hasattr(study.tuner, "train_mirrored")
    study.tuner.train_mirrored = played
    return run(options)


def played(*arguments: object) -> None:
    """Takes the place of `study.worker.train_mirrored` in the processes of trials."""
    from study import record, worker

    record.run_pack = run_nothing
    worker.train_mirrored(*arguments)


def run_nothing(configs: Sequence[object], *_: object) -> Iterator[list[object]]:
    """One epoch that takes no time; the objective is the least of the weights, three times."""
    import torch

    from mmjsd.metrics import Score
    from study.trial import Measurement

    scores = {
        "train": [Score("loss", 1.0, None, 1)],
        "validation": [Score("mean_coherence", 3 * min(configs[0].objective.weights), None, 1, "product")],
    }

    def save(folder: Path, notes: object) -> Path:
        target = folder / "epoch-000001"
        target.mkdir(parents=True)
        (target / "epoch.json").write_text(json.dumps({"epoch": 1, "notes": notes}), encoding="utf-8")
        return target

    yield [Measurement(1, scores, torch.ones(1), 0.01, 0.01, 1, save, dict)]


if __name__ == "__main__":
    if sys.argv[1:2] == [_DRIVER]:
        sys.exit(drive(sys.argv[2:]))
    main()
