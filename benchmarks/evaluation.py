"""Measures what a final evaluation costs in units of training: python benchmarks/evaluation.py

Trains the networks at width 1 on the embedded data, whose shapes are those of MNIST-SVHN-Text, with small
and with large batches, and between them evaluates all that a test split is evaluated for: processor seconds
of one thread as in a trial's process, in turns, so that whatever else the machine does slows both. The
embedded test split is too small for 2,000 pairs: the training split takes its place.
"""

import argparse
import cProfile
import json
import os
import platform
import pstats
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from mmjsd import data as datasets
from mmjsd import metrics
from mmjsd.batches import Pairs
from mmjsd.classifiers import load_classifiers
from mmjsd.config import EvaluationConfig, ModelConfig, ObjectiveConfig, TrainingConfig
from mmjsd.model import MultimodalVae
from mmjsd.train import fit
from study.joining import ALLOCATOR

ROOT = Path(__file__).resolve().parents[1]

TRAINING_SAMPLES = 50_000
"""The training in whose units an evaluation is told."""

PROCESS = {**ALLOCATOR, "OMP_NUM_THREADS": "1"}
"""What a trial of one core has in its environment. Without the number of threads k-means takes all cores."""

BATCH_SIZES = (256, 32)
EVALUATION = EvaluationConfig(num_samples=2_000, probe_samples=2_000, importance_samples=12)
PARTS = (
    "_encode",
    "_bound_scores",
    "_probe_scores",
    "_sample_scores",
    "_quality_scores",
    "_likelihood_scores",
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of training and evaluating in turns")
    parser.add_argument("--samples", type=int, default=10_000, help="trained on in each round")
    arguments = parser.parse_args()
    if not PROCESS.items() <= os.environ.items():  # read as a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PROCESS})
    torch.set_num_threads(1)
    data = datasets.load("digits")
    classifiers, train = load_classifiers(data), Pairs(data.splits["train"])
    trainings = {
        size: fit(
            build(data),
            train,
            arguments.samples,
            TrainingConfig(epochs=arguments.rounds, batch_size=size),
            seed=0,
        )
        for size in BATCH_SIZES
    }
    train_s, evaluate_s = dict.fromkeys(BATCH_SIZES, 0.0), 0.0
    model, num_samples = build(data), dict.fromkeys(BATCH_SIZES, 0)

    def evaluate() -> None:
        metrics.evaluate(model, train, train, classifiers, EVALUATION, ("likelihood", "quality"))

    for _ in range(arguments.rounds):
        for size, epochs in trainings.items():
            begin = time.process_time()
            num_samples[size] += next(epochs).num_samples
            train_s[size] += time.process_time() - begin
        begin = time.process_time()
        evaluate()
        evaluate_s += time.process_time() - begin
    with cProfile.Profile(time.process_time) as profile:
        evaluate()
    evaluate_s /= arguments.rounds
    training_s = {size: train_s[size] * TRAINING_SAMPLES / num_samples[size] for size in BATCH_SIZES}
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rounds": arguments.rounds,
        "evaluation_s": round(evaluate_s, 1),
        "training_s": {f"batch {size}": round(seconds, 1) for size, seconds in training_s.items()},
        "evaluation / training": {
            f"batch {size}": round(evaluate_s / seconds, 2) for size, seconds in training_s.items()
        },
        "parts_s, watched by a profiler": {
            part: round(seconds, 1) for part, seconds in parts(profile).items()
        },
    }
    text = json.dumps(figures, indent=2)
    (ROOT / "benchmarks" / "evaluation.json").write_text(f"{text}\n", encoding="utf-8")
    sys.stdout.write(f"{text}\n")


def build(data: datasets.Data) -> MultimodalVae:
    """The model at the paper's width, always with the same parameters."""
    torch.manual_seed(0)
    return MultimodalVae(data.spec.modalities, ModelConfig(width=1.0), ObjectiveConfig())


def parts(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds of each part of an evaluation."""
    spent = dict.fromkeys(PARTS, 0.0)
    for (file, _, function), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():
        if file == metrics.__file__ and function in spent:
            spent[function] += cumulative
    quality = spent["_quality_scores"]
    return {
        "encode": spent["_encode"],
        "bound": spent["_bound_scores"],
        "probe": spent["_probe_scores"],
        "generate and coherence": spent["_sample_scores"] - quality,
        "quality": quality,
        "likelihood": spent["_likelihood_scores"],
    }


if __name__ == "__main__":
    main()
