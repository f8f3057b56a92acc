"""How large may the subspaces be before coherence suffers, and does a larger beta prevent it?

Too large a subspace lets a decoder take the shared content from its own modality's style: the shortcut,
which a weak divergence invites.

Run:    python study/run.py --space subspaces --out runs/subspaces
Source: Eq. 10 of https://arxiv.org/abs/2006.08242 and the subspace sizes of its appendix C; the shortcut:
        Fig. 2 of MMVAE+ (Palumbo et al., ICLR 2023), which sweeps subspace size and beta on PolyMNIST.
Cost:   8 configs x 2 replicates: 7 min 1 s on 2 CPU cores (preset laptop), data, classifiers and report
        included.
"""

from study.space import Choice, SearchSpace

SPACE = SearchSpace(
    domains={
        "model.style_dim": Choice((0, 1, 4, 16)),
        "objective.beta": Choice((2.5, 10.0)),
    },
)
