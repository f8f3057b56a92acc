"""How large may the subspaces of face and words be, and does it depend on beta?

What a picture shows besides its named attributes has to go into the picture's own subspace; words need little
of theirs, only where in the line they begin.

Run:    python study/run.py --space faces --out runs/faces
Source: Section 4.3 and Table 5 of https://arxiv.org/abs/2006.08242; the settings of the authors' job for
        CelebA at commit 29d925d, which has 32 dimensions in each subspace and beta 2.5.
Cost:   16 trials with preset laptop took 12 min 16 s on 2 cores, drawing the faces and training their
        classifiers included (27 November 2026). The best config reached a mean average precision of 0.549 by
        the joint probe and of 0.307 from words to face, at a base rate of 0.267: enough to see the machinery,
        too little training for good faces, and no size of a subspace makes a difference that shows.
"""

from study.space import Choice, SearchSpace

SPACE = SearchSpace(
    domains={
        "model.style_dim.face": Choice((4, 32)),
        "model.style_dim.words": Choice((4, 32)),
        "objective.beta": Choice((1.0, 2.5)),
    },
    base={
        "data.name": "faces",
        "model.content_dim": 32,
        "objective.beta_style": 2.0,
        "objective.weights": (0.35, 0.35, 0.30),
        "objective.reconstruction_weights.face": 1.0,
        "objective.reconstruction_weights.words": 16.0,
    },
    presets={
        "laptop": {
            "data.samples_per_epoch": 3_000,
            "model.width": 0.125,
            "training.learning_rate": 2e-3,
            "evaluation.every": 4,
            "evaluation.num_samples": 500,
            "evaluation.probe_samples": 1_000,
            "evaluation.importance_samples": 2,
        },
        "paper": {
            "data.name": "celeba",
            "data.samples_per_epoch": 162_770,
            "training.epochs": 250,
            "training.learning_rate": 5e-4,
        },
    },
)
