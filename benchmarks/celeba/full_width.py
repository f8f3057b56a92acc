"""What does mmJSD learn of faces and words in minutes, at the paper's full width?

One config by the settings of the authors' job for CelebA (reference 3), with batches of 64 in place of 256.

Run:    python study/run.py --space benchmarks/celeba/full_width.py --data-dir FOLDER --replicates 1 --trials 1
            --preset paper --budget-samples 240000 --training.precision bfloat16 --out runs/celeba
"""

from study.space import Choice, SearchSpace

SPACE = SearchSpace(
    domains={"objective.name": Choice(("mmjsd",))},
    base={
        "data.name": "celeba",
        "model.content_dim": 32,
        "model.style_dim": 32,
        "objective.weights": (0.35, 0.35, 0.3),
        "objective.beta": 2.5,
        "objective.beta_style": 2.0,
        "training.learning_rate": 5e-4,
        "training.batch_size": 64,
    },
)
