"""Measures what training costs with more and more modalities: python benchmarks/modalities.py

Trains every objective on made-up images of 2, 3, 5 and 8 modalities with one thread, all of them in turns, so
that whatever else the machine does meets all alike, and takes medians of processor time. Growth is the cost
over that of two modalities, in proportion to their number: 1 is linear, below 1 a share of the cost is there
only once, above 1 a share grows faster.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from mmjsd.batches import Pairs
from mmjsd.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmjsd.data import DATASETS, Examples
from mmjsd.model import MultimodalVae
from mmjsd.train import fit

ROOT = Path(__file__).resolve().parents[1]

MODALITIES = (2, 3, 5, 8)
OBJECTIVES = {
    "mmjsd, dynamic prior product": ObjectiveConfig(name="mmjsd"),
    "mmjsd, dynamic prior mixture": ObjectiveConfig(name="mmjsd", dynamic_prior="mixture"),
    "mmvae": ObjectiveConfig(name="mmvae"),
    "mmvae, importance-weighted, 4 draws": ObjectiveConfig(name="mmvae", importance_samples=4),
    "mopoe": ObjectiveConfig(name="mopoe"),
    "mvae": ObjectiveConfig(name="mvae"),
    "mvtcae": ObjectiveConfig(name="mvtcae"),
}
WIDTH, BATCH_SIZE, STEPS, REPETITIONS = 0.5, 64, 2, 5


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    costs = {
        (name, count): training(objective, count)
        for name, objective in OBJECTIVES.items()
        for count in MODALITIES
    }
    times = {key: [] for key in costs}
    for repetition in range(1 + REPETITIONS):
        for key, steps in costs.items():
            before = time.process_time()
            next(steps)
            if repetition:  # the first one reserves memory
                times[key].append(time.process_time() - before)
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "width": WIDTH,
        "batch_size": BATCH_SIZE,
        "repetitions": REPETITIONS,
        "cpu_ms_per_sample": {},
        "growth": {},
    }
    for name in OBJECTIVES:
        cost = {
            count: 1e3 * statistics.median(times[name, count]) / (STEPS * BATCH_SIZE) for count in MODALITIES
        }
        figures["cpu_ms_per_sample"][name] = {str(count): round(each, 3) for count, each in cost.items()}
        growth = {str(count): round(cost[count] / cost[2] / (count / 2), 3) for count in MODALITIES[1:]}
        figures["growth"][name] = growth
    text = json.dumps(figures, indent=2)
    (ROOT / "benchmarks" / "modalities.json").write_text(f"{text}\n", encoding="utf-8")
    sys.stdout.write(f"{text}\n")


def training(objective: ObjectiveConfig, num_modalities: int) -> Iterator[object]:
    """Epochs of STEPS steps each, without end."""
    rng = np.random.default_rng(0)
    specs = DATASETS[f"polydigits-{num_modalities}"].modalities
    labels = np.repeat(np.arange(10, dtype=np.uint8), 100)
    examples = {
        spec.name: Examples(rng.integers(0, 256, (len(labels), *spec.shape), np.uint8), labels)
        for spec in specs
    }
    torch.manual_seed(0)
    model = MultimodalVae(specs, ModelConfig(width=WIDTH), objective)
    training = TrainingConfig(epochs=1_000_000, batch_size=BATCH_SIZE)
    return fit(model, Pairs(examples), STEPS * BATCH_SIZE, training, seed=0)


if __name__ == "__main__":
    main()
