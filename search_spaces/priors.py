"""Which weights pi of the modalities and the prior make the best dynamic prior?

Run:    python study/run.py --space priors --trials 20 --out runs/priors
Source: Definition 2 and Eq. 5 of https://arxiv.org/abs/2006.08242; the authors' settings hold all four
        weights at 1/4.
Cost:   about 65 s a trial and core (preset laptop): 20 configs x 2 replicates would take some 20 min on 2
        cores.
"""

from study.space import SearchSpace, Simplex

SPACE = SearchSpace(domains={"objective.weights": Simplex(4)})
