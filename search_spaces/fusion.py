"""Mixture or product: how should mmJSD fuse its posteriors, and how its dynamic prior?

Run:    python study/run.py --space fusion --out runs/fusion
Source: Section 3.4, Lemma 1 and Definition 3 of https://arxiv.org/abs/2006.08242, which decodes from the
        mixture and takes the product as dynamic prior. The mixture prior needs a Monte Carlo estimate.
Cost:   4 configs x 2 replicates: 5 min 35 s on 2 CPU cores (preset laptop, real MNIST and SVHN).
"""

from study.space import Choice, SearchSpace

SPACE = SearchSpace(
    domains={
        "objective.fusion": Choice(("mixture", "product")),
        "objective.dynamic_prior": Choice(("mixture", "product")),
    },
    base={"objective.name": "mmjsd"},
)
