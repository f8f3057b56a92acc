"""Does training in bfloat16 cost quality?

Run:    python study/run.py --space benchmarks/precision/space.py --data-dir FOLDER --replicates 8
            --out runs/precision
Source: the settings of benchmarks/mnist_svhn_text/best.py, a quarter as many samples.
Cost:   see README.md beside this file.
"""

from study.space import Choice, SearchSpace

SPACE = SearchSpace(
    domains={"training.precision": Choice(("float32", "bfloat16"))},
    base={
        "data.name": "mnist-svhn-text",
        "data.samples_per_epoch": 62_496,
        "model.content_dim": 20,
        "model.style_dim": 1,
        "model.width": 1.0,
        "objective.beta": 1.57,
        "objective.beta_style": 7.36,
        "objective.reconstruction_weights": {"mnist": 3072 / 784, "svhn": 1.0, "text": 47.1},
        "training.epochs": 4,
        "training.batch_size": 32,
        "training.learning_rate": 0.00136,
        "evaluation.every": 4,
        "evaluation.num_samples": 2_000,
        "evaluation.importance_samples": 4,
    },
)
