"""How coherent is mmJSD on real MNIST-SVHN-Text when it decodes from the mixture?

Run:    python study/run.py --space benchmarks/mnist_svhn_text/mixture.py --data-dir FOLDER --trials 14
            --replicates 1 --sampler tpe --scheduler asha --out runs/mixture
Source: search.py beside this file, whose scheduler first decides after 56,000 samples, before the mixture
        has taught SVHN's encoder the digit; here after 111,000. Other ranges are narrower.
Cost:   see README.md beside this file.
"""

from study.space import Integer, LogUniform, SearchSpace

SPACE = SearchSpace(
    domains={
        "objective.beta": LogUniform(1.5, 4.0),
        "objective.beta_style": LogUniform(3.0, 8.0),
        "objective.reconstruction_weights.text": LogUniform(8.0, 50.0),
        "model.style_dim.mnist": Integer(0, 1),
        "model.style_dim.svhn": Integer(1, 4),
        "model.style_dim.text": Integer(1, 3),
        "training.learning_rate": LogUniform(8e-4, 2e-3),
    },
    base={
        "data.name": "mnist-svhn-text",
        "data.samples_per_epoch": 55_552,
        "model.content_dim": 20,
        "model.width": 1.0,
        "objective.fusion": "mixture",
        "training.epochs": 18,
        "training.batch_size": 32,
        "training.precision": "bfloat16",
        "evaluation.every": 2,
        "evaluation.num_samples": 1_000,
        "evaluation.importance_samples": 12,
    },
)
