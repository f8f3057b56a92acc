"""Which settings make mmJSD coherent on real MNIST-SVHN-Text within a million training samples?

Run:    python study/run.py --space benchmarks/mnist_svhn_text/search.py --data-dir FOLDER --trials 24
            --replicates 1 --sampler tpe --scheduler asha --out runs/search
Source: the paper's experiment 4.2 (https://arxiv.org/abs/2006.08242) at a small fraction of its budget of
        56 to 112 million samples. Text weighs 384 times as much as SVHN there, and its subspace's divergence
        so little against that that the subspace takes the digit along: hence the wide ranges of both.
Cost:   see README.md beside this file.
"""

from study.space import Choice, Integer, LogUniform, SearchSpace

SPACE = SearchSpace(
    domains={
        "objective.fusion": Choice(("mixture", "product")),
        "objective.beta": LogUniform(1.0, 5.0),
        "objective.beta_style": LogUniform(1.0, 8.0),
        "objective.reconstruction_weights.text": LogUniform(4.0, 100.0),
        "model.style_dim.mnist": Integer(0, 2),
        "model.style_dim.svhn": Integer(1, 4),
        "model.style_dim.text": Integer(1, 3),
        "training.learning_rate": LogUniform(5e-4, 2e-3),
    },
    base={
        "data.name": "mnist-svhn-text",
        "data.samples_per_epoch": 55_552,
        "model.content_dim": 20,
        "model.width": 1.0,
        "training.epochs": 18,
        "training.batch_size": 32,
        "training.precision": "bfloat16",
        "evaluation.every": 1,
        "evaluation.num_samples": 1_000,
        "evaluation.importance_samples": 12,
    },
)
