"""Does everything work, from sampler to report, with and without modality-specific subspaces?

Two tiny configs on the embedded digits: the whole study takes seconds, its numbers mean nothing.

Run:    python study/run.py --space smoke --out runs/smoke
Source: none; a check of the installation.
Cost:   31 s on 2 CPU cores, most of it Ray's start.
"""

from study.space import Choice, SearchSpace

SPACE = SearchSpace(
    domains={"model.style_dim": Choice((0, 2))},
    base={
        "data.name": "digits",
        "data.samples_per_epoch": 500,
        "model.width": 0.1,
        "training.epochs": 2,
        "training.batch_size": 50,
        "evaluation.every": 1,
        "evaluation.num_samples": 100,
        "evaluation.probe_samples": 200,
        "evaluation.importance_samples": 2,
    },
)
