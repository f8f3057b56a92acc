"""How coherent are the best settings of mixture.py when trained anew?

Run:    python study/run.py --space benchmarks/mnist_svhn_text/best.py --data-dir FOLDER --replicates 2
            --out runs/best
Source: the config that mixture.py found best, rounded, with seeds that the search has not seen.
Cost:   see README.md beside this file.
"""

from study.space import Choice, SearchSpace

SPACE = SearchSpace(
    domains={"objective.fusion": Choice(("mixture",))},
    base={
        "data.name": "mnist-svhn-text",
        "data.samples_per_epoch": 111_104,
        "model.content_dim": 20,
        "model.style_dim": 1,
        "model.width": 1.0,
        "objective.beta": 1.57,
        "objective.beta_style": 7.36,
        "objective.reconstruction_weights": {"mnist": 3072 / 784, "svhn": 1.0, "text": 47.1},
        "training.epochs": 9,
        "training.batch_size": 32,
        "training.learning_rate": 0.00136,
        "training.precision": "bfloat16",
        "evaluation.every": 3,
        "evaluation.num_samples": 2_000,
        "evaluation.importance_samples": 12,
    },
)
