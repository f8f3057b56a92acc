"""How much generated images resemble real ones: precision, recall and Fréchet distance of their features."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import linalg
from sklearn.cluster import MiniBatchKMeans

Array = npt.NDArray[np.floating]

_CLUSTERS, _RUNS, _BATCH = 20, 5, 100
_SLOPES = np.tan(np.linspace(1e-10, np.pi / 2 - 1e-10, 1001))
"""Lambda at equally spaced angles; at the axes themselves one of precision and recall is undefined."""


@dataclass(frozen=True)
class PrecisionRecall:
    """The precision-recall curve of generated samples in three numbers, shares in [0, 1]."""

    precision: float
    """F_1/8: how much of what is generated lies where real data are."""

    recall: float
    """F_8: how much of the real data is generated."""

    mean: float
    """Of both curves together: what the code of the paper's authors reports as precision."""


def precision_recall(real: Array, generated: Array) -> PrecisionRecall:
    """Precision and recall for distributions (Sajjadi et al. 2018, https://arxiv.org/abs/1806.00035).

    The union of both samples is clustered by k-means (scikit-learn's MiniBatchKMeans, 20 clusters), and
    the shares that the two have of each cluster are compared. The mean over five seeded runs.

    Args:
        real, generated: features, `[sample, feature]`, of as many samples each.
    """
    union = np.concatenate([real, generated])
    runs = []
    for seed in range(_RUNS):
        kmeans = MiniBatchKMeans(
            min(_CLUSTERS, len(union)), batch_size=_BATCH, n_init=3, random_state=seed
        ).fit(union)
        counts = [np.bincount(part, minlength=_CLUSTERS) for part in np.split(kmeans.labels_, [len(real)])]
        runs.append(_from_shares(*(count / count.sum() for count in counts)))
    return PrecisionRecall(*np.mean(runs, axis=0).tolist())


def _from_shares(real: Array, generated: Array) -> tuple[float, float, float]:
    """Precision, recall and mean of the curves, from the shares of each cluster, `[cluster]`.

    The curves are precision(λ) = Σ_i min(λ p_i, q_i) and recall(λ) = precision(λ) / λ. So F_b =
    (1 + b²) precision recall / (b² precision + recall) = (1 + b²) precision / (1 + b² λ), which needs
    no care where both are zero.
    """
    precision = np.minimum(np.outer(_SLOPES, real), generated).sum(axis=1)

    def best_f_score(b: float) -> float:
        return float(((1 + b**2) * precision / (1 + b**2 * _SLOPES)).max())

    return best_f_score(1 / 8), best_f_score(8), float(np.mean([precision, precision / _SLOPES]))


@dataclass(frozen=True)
class NormalFit:
    """The normal distribution with the mean and the covariance of features, `[sample, feature]`."""

    features: Array

    @cached_property
    def mean(self) -> Array:
        """`[feature]`."""
        mean: Array = self.features.mean(axis=0, dtype=np.float64)
        return mean

    @cached_property
    def deviations(self) -> Array:
        """X with Xᵀ X = covariance, `[sample, feature]`."""
        deviations: Array = (self.features - self.mean) / (len(self.features) - 1) ** 0.5
        return deviations

    @cached_property
    def factor(self) -> Array:
        """L with L Lᵀ = covariance, `[feature, rank]`, the rank at most the number of samples."""
        upper: Array = np.asarray(np.linalg.qr(self.deviations, mode="r"))
        return upper.T


def frechet_distance(real: NormalFit, generated: NormalFit) -> float:
    """|μ - ν|² + tr(Σ + T - 2 (Σ T)^½) between two normal distributions, in squared units of the features.

    Heusel et al. 2017, https://arxiv.org/abs/1706.08500, with other features than theirs. The trace of
    the root is that of (Lᵀ T L)^½ with Σ = L Lᵀ, which is symmetric: its eigenvalues come from SciPy.
    """
    root = generated.deviations @ real.factor
    squares = np.square(real.mean - generated.mean).sum()
    squares += np.square(real.deviations).sum() + np.square(generated.deviations).sum()
    return float(squares - 2 * np.sqrt(linalg.eigvalsh(root.T @ root).clip(0)).sum())
