"""Soaks studies in faults: python -m benchmarks.soak FOLDER [--minutes 30] [--every 20]

Studies of short trials on a cluster of a head and three nodes of one CPU, all processes of this machine. A
tormentor kills, every 20 s, a random process of a trial, one of its workers, or a node, which is replaced by
a new one. Two thirds of the time trials train in one process each; in the rest by two workers, on whatever
nodes there are. When a study's time is up, it is resumed undisturbed for two minutes, with --retry failed for
trials that were killed three times.

Told is whether all trials are COMPLETE exactly once, whether some of the first study give the same numbers
when they are trained again alone, what was killed, and what is left: processes, placement groups, memory and
disk.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from study import store
from tests.nodes import Nodes, kill_tree

ROOT = Path(__file__).resolve().parents[1]
COMMON = (
    *("--space", "priors", "--sampler", "random", "--preset", "laptop", "--replicates", "2"),
    *("--gpus-per-worker", "0", "--max-concurrent", "3", "--model.width", "0.1"),
    *("--training.epochs", "4", "--data.samples_per_epoch", "2000", "--training.batch_size", "50"),
    *("--evaluation.every", "1", "--evaluation.num_samples", "100", "--evaluation.probe_samples", "200"),
)
ENDLESS = "100000"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the studies are written; must not exist")
    parser.add_argument("--minutes", type=float, default=30, help="for both studies together")
    parser.add_argument("--every", type=float, default=20, help="seconds between faults")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    environment = {**os.environ, "MMJSD_CACHE": str(arguments.folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    environment |= {"RAY_raylet_start_wait_time_s": "120"}  # the machine is busy
    nodes = Nodes(environment)
    try:
        studies = [
            soak(nodes, arguments.folder / "alone", 1, 40 * arguments.minutes, arguments.every),
            soak(nodes, arguments.folder / "by-two", 2, 20 * arguments.minutes, arguments.every),
        ]
        leaked = placement_groups(nodes)
    finally:
        nodes.stop()
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "studies": studies,
        "placement groups left": leaked,
        "processes left after the cluster's end": len(list(processes_of(nodes.folder))),
    }
    text = json.dumps(figures, indent=2)
    (ROOT / "benchmarks" / "soak.json").write_text(f"{text}\n", encoding="utf-8")
    sys.stdout.write(f"{text}\n")


def soak(nodes: Nodes, out: Path, workers: int, seconds: float, every: float) -> dict[str, Any]:
    """One study in a storm, then in peace; what became of it."""
    options = ("--workers", str(workers), "--address", nodes.address, "--out", str(out))
    budget = ("--trials", ENDLESS, "--budget", f"{round(seconds)}s")
    process = start(nodes.environment, *COMMON, *options, *budget)
    killed: Counter[str] = Counter()
    samples: list[dict[str, float]] = []
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(nodes, process, out, samples, ended), daemon=True)
    watcher.start()
    ends_at, rng = time.monotonic() + seconds, random.Random(workers)
    while process.poll() is None and time.monotonic() < ends_at:
        time.sleep(every)
        killed[torment(nodes, rng)] += 1
    process.wait()
    ended.set()
    watcher.join()
    stormy = store.ended_trials(out)
    again = ("--trials", ENDLESS, "--budget", "120s", "--resume", "--retry", "failed")
    finished = start(nodes.environment, *COMMON, *options, *again).wait()
    rows = store.ended_trials(out)
    complete = [row for row in rows if row["state"] == "COMPLETE" and workers == 1]
    checked = random.Random(0).sample(complete, min(3, len(complete)))
    return {
        "workers": workers,
        "minutes": round(seconds / 60, 1),
        "killed": dict(sorted(killed.items())),
        "exit codes": [process.returncode, finished],
        "states in the storm": dict(Counter(row["state"] for row in stormy)),
        "states at the end": dict(Counter(row["state"] for row in rows)),
        "trials that are there twice": len(rows) - len({row["trial_id"] for row in rows}),
        "trials that lost device time": sum(row["lost_s"] is not None for row in rows),
        "share of device time lost": round(share_lost(rows), 3),
        "trained again alone with equal numbers": f"{sum(replays(nodes, out, row) for row in checked)}"
        f" of {len(checked)}",
        "zombies": sum(each.status() == psutil.STATUS_ZOMBIE for each in processes_of(nodes.folder)),
        "growth, last quarter over second": growth(samples),
    }


def start(environment: Mapping[str, str], *options: str) -> subprocess.Popen[bytes]:
    """A study's process."""
    return subprocess.Popen((sys.executable, str(ROOT / "study" / "run.py"), *options), env=environment)


def torment(nodes: Nodes, rng: random.Random) -> str:
    """Kill something of a trial; what it was."""
    alive = [each for each in nodes.processes[1:] if each.poll() is None]
    victims: dict[str, list[Any]] = {"worker": [], "trial process": [], "node": []}
    for node in alive:
        for child in psutil.Process(node.pid).children(recursive=True):
            title = title_of(child)
            if "RayTrainWorker" in title:
                victims["worker"].append(child)
            elif "ImplicitFunc" in title:
                victims["trial process"].append(child)
        victims["node"].append(node)
    kind = rng.choice([kind for kind, found in victims.items() if found])
    victim = rng.choice(victims[kind])
    if kind != "node":
        victim.kill()
        return kind
    kill_tree(victim)
    shutil.rmtree(Path(nodes.folder, str(nodes.processes.index(victim))), ignore_errors=True)
    nodes.add()
    return kind


def title_of(process: psutil.Process) -> str:
    """What a process calls itself; nothing of one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def watch(
    nodes: Nodes,
    process: subprocess.Popen[bytes],
    out: Path,
    samples: list[dict[str, float]],
    ended: threading.Event,
) -> None:
    """Take, every ten seconds, the memory of what lives throughout, and the disk."""
    head = nodes.processes[0].pid
    while not ended.wait(10):
        try:
            lasting = [psutil.Process(process.pid)]
            cluster = [psutil.Process(head), *psutil.Process(head).children(recursive=True)]
            samples.append(
                {
                    "study's memory": sum(each.memory_full_info().uss for each in lasting),
                    "head's memory": sum(each.memory_full_info().uss for each in cluster),
                    "run's disk per trial": disk(out)
                    / max(1, len(list(out.glob("results/trials/*.parquet")))),
                    "nodes' disk": disk(Path(nodes.folder)),
                }
            )
        except psutil.Error:  # it has ended meanwhile
            continue


def disk(folder: Path) -> int:
    """Bytes below a folder in which others write and remove."""
    command = ("du", "--summarize", "--bytes", str(folder))
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return int(said.split()[0]) if said else 0


def growth(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Ratios of medians; 1 is flat."""
    quarter = len(samples) // 4
    if not quarter:
        return {}
    return {
        name: round(
            statistics.median(each[name] for each in samples[-quarter:])
            / statistics.median(each[name] for each in samples[quarter : 2 * quarter]),
            2,
        )
        for name in samples[0]
    }


def share_lost(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of all device-seconds, what vanished with its processes."""
    lost = sum(row["lost_s"] or 0 for row in rows)
    return float(lost / (lost + sum(row["device_s"] for row in rows)))


def replays(nodes: Nodes, out: Path, row: Mapping[str, Any]) -> bool:
    """Whether a trial that is trained again alone, in one process and undisturbed, has the same numbers."""
    process = start(nodes.environment, "--replay", f"{out}/{row['trial_id']}")
    return process.wait() == 0


def placement_groups(nodes: Nodes) -> int:
    """Those that Ray still holds."""
    listed = (
        "import ray; ray.init(logging_level='ERROR'); from ray.util import placement_group_table as table;"
        "print(sum(each['state'] != 'REMOVED' for each in table().values()))"
    )
    command = (sys.executable, "-c", listed)
    environment = {**nodes.environment, "RAY_ADDRESS": nodes.address}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return int(said.splitlines()[-1])


def processes_of(folder: str) -> Iterator[psutil.Process]:
    """Those whose command line names the nodes' folder, and their children."""
    for process in psutil.process_iter():
        if folder in title_of(process):
            yield process


if __name__ == "__main__":
    main()
