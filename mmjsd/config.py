"""What a training is made of, as plain typed values. Imports no torch, so that a study starts fast."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose, isfinite
from pathlib import Path
from typing import Literal, get_args

from mmjsd.specs import Modality

ObjectiveName = Literal["mmjsd", "mvae", "mmvae", "mopoe", "mvtcae"]
Fusion = Literal["mixture", "product"]
Precision = Literal["float32", "bfloat16"]
Features = Literal["classifier", "inception"]


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds: the one way in which configs refuse a value."""
    if not condition:
        raise ValueError(message)


def _require_choice(what: str, value: str, choices: Iterable[str]) -> None:
    known = tuple(choices)
    require(value in known, f"unknown {what} {value!r}; choose one of {', '.join(known)}")


def _require_weights(what: str, weights: Mapping[str, float] | None) -> None:
    for modality, weight in (weights or {}).items():
        finite = isfinite(weight) and weight >= 0
        require(finite, f"{what} must be finite and >= 0, got {weight} for {modality!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which data, and how much of it makes an epoch."""

    name: str = "digits"
    """Data set: digits, polydigits-2..8 and faces are embedded; mnist-svhn-text and celeba are downloaded or
    read from data.dir."""

    dir: Path | None = None
    """Folder that holds the data set's files; none: they are downloaded into the cache folder."""

    samples_per_epoch: int = 20_000
    """Training samples, each a fresh pairing of the modalities, that make one epoch."""

    missing: float = 0.0
    """Probability with which a modality of a training sample is hidden; one always stays."""

    def __post_init__(self) -> None:
        require(self.samples_per_epoch >= 1, f"samples_per_epoch must be >= 1, got {self.samples_per_epoch}")
        require(0 <= self.missing < 1, f"missing must lie in [0, 1), got {self.missing}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of the latent spaces and of the networks."""

    content_dim: int = 16
    """Dimensions of the content c that all modalities share."""

    style_dim: int | dict[str, int] = 4
    """Dimensions of each modality's own subspace: one size for all, or one each; 0 for none."""

    width: float = 1.0
    """Factor on the hidden layers' widths; 1 is the paper's networks."""

    def __post_init__(self) -> None:
        require(self.content_dim >= 1, f"content_dim must be >= 1, got {self.content_dim}")
        sizes = self.style_dim if isinstance(self.style_dim, dict) else {"": self.style_dim}
        for size in sizes.values():
            require(size >= 0, f"style_dim must be >= 0, got {size}")
        require(0 < self.width <= 16, f"width must lie in (0, 16], got {self.width}")

    def style_dims(self, modalities: Iterable[str]) -> dict[str, int]:
        """The size of each modality's subspace."""
        if isinstance(self.style_dim, dict):
            return {modality: self.style_dim[modality] for modality in modalities}
        return dict.fromkeys(modalities, self.style_dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """The bound that training maximises (paper Eq. 5, 6 and 10)."""

    name: ObjectiveName = "mmjsd"
    """The bound, by its published name."""

    fusion: Fusion | None = None
    """Joint posterior decoded from in training; none: the objective's own, a product for mvae and mvtcae."""

    dynamic_prior: Fusion = "product"
    """mmjsd's prior: product (geometric mean, closed form) or mixture (arithmetic mean, Monte Carlo)."""

    prior_samples: int = 1
    """Monte Carlo draws per expert for dynamic_prior mixture."""

    weights: tuple[float, ...] | None = None
    """pi: one weight per modality in the model's order, then the prior's; none: all equal."""

    importance_samples: int | None = None
    """Draws of mmvae's importance-weighted bound (IWAE); none: its ELBO, with divergences in closed form."""

    total_correlation: float = 0.9
    """mvtcae's alpha: share of its bound on the total correlation; the rest is the joint ELBO's."""

    beta: float = 2.5
    """Weight of every divergence term against the reconstruction."""

    beta_content: float = 1.0
    """Further weight of the content's divergence."""

    beta_style: float = 1.0
    """Further weight of the subspaces' divergences."""

    style_weights: dict[str, float] | None = None
    """Further weight of each modality's subspace divergence; none: the data set's."""

    reconstruction_weights: dict[str, float] | None = None
    """Weight of each modality's log-likelihood; none: the largest modality's size over its own."""

    def __post_init__(self) -> None:
        _require_choice("objective", self.name, get_args(ObjectiveName))
        _require_choice("dynamic prior", self.dynamic_prior, get_args(Fusion))
        if self.fusion is not None:
            _require_choice("fusion", self.fusion, get_args(Fusion))
            own = self.own_fusion
            require(
                self.name == "mmjsd" or self.fusion == own,
                f"{self.name} is defined with the {own} posterior, got fusion {self.fusion!r}; "
                "leave fusion out or choose objective mmjsd",
            )
        require(self.prior_samples >= 1, f"prior_samples must be >= 1, got {self.prior_samples}")
        draws = self.importance_samples
        require(draws is None or draws >= 1, f"importance_samples must be >= 1, got {draws}")
        require(
            draws is None or self.name == "mmvae",
            f"importance_samples is mmvae's, got objective {self.name!r}; leave it out or choose mmvae",
        )
        alpha = self.total_correlation
        require(0 <= alpha <= 1, f"total_correlation must lie in [0, 1], got {alpha}")
        for name in ("beta", "beta_content", "beta_style"):
            value = getattr(self, name)
            require(isfinite(value) and value >= 0, f"{name} must be finite and >= 0, got {value}")
        if self.weights is not None:
            shown = ", ".join(f"{weight:g}" for weight in self.weights)
            require(all(weight >= 0 for weight in self.weights), f"weights must be >= 0, got {shown}")
            total = sum(self.weights)
            require(
                isclose(total, 1, abs_tol=1e-6), f"weights must sum to one, got {shown} with sum {total:g}"
            )
            require(any(self.weights[:-1]), f"at least one modality's weight must be positive, got {shown}")
        _require_weights("style_weights", self.style_weights)
        _require_weights("reconstruction_weights", self.reconstruction_weights)

    @property
    def own_fusion(self) -> Fusion:
        """The joint posterior by which the objective was published."""
        return "product" if self.name in ("mvae", "mvtcae") else "mixture"

    def resolved(self, modalities: Sequence[Modality]) -> "ObjectiveConfig":
        """The same objective with every default that depends on itself or the modalities written out.

        Raises:
            ValueError: if there is not one weight for each modality and one for the prior.
        """
        largest = max(modality.size for modality in modalities)
        experts = len(modalities) + 1
        names = ", ".join(each.name for each in modalities)
        require(
            self.weights is None or len(self.weights) == experts,
            f"weights must have {experts} entries, one per modality and the prior's last, "
            f"got {len(self.weights or ())}; the modalities are {names}",
        )
        return replace(
            self,
            fusion=self.fusion or self.own_fusion,
            weights=self.weights or (1 / experts,) * experts,
            style_weights=self.style_weights or {each.name: each.style_weight for each in modalities},
            reconstruction_weights=self.reconstruction_weights
            or {each.name: largest / each.size for each in modalities},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How long and how fast Adam (Kingma & Ba 2015, betas 0.9 and 0.999) goes down."""

    epochs: int = 50
    """Passes of data.samples_per_epoch samples."""

    batch_size: int = 256
    """Samples of one step, over all workers together."""

    learning_rate: float = 1e-3
    """Adam's step size, constant."""

    precision: Precision = "float32"
    """Arithmetic of the networks; bfloat16 keeps parameters and divergences in float32. In float32 a GPU's
    convolutions round their factors to ten bits (TF32), as is torch's default."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs must be >= 1, got {self.epochs}")
        require(self.batch_size >= 1, f"batch_size must be >= 1, got {self.batch_size}")
        positive = isfinite(self.learning_rate) and self.learning_rate > 0
        require(positive, f"learning_rate must be finite and > 0, got {self.learning_rate}")
        _require_choice("precision", self.precision, get_args(Precision))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """When metrics are taken on the validation split, and on how many samples."""

    every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated, on validation and test."""

    num_samples: int = 2_000
    """Pairs of the validation or test split that metrics use; the split's size is the limit."""

    probe_samples: int = 2_000
    """Training pairs on whose latents the linear probe is fitted."""

    importance_samples: int = 12
    """Draws with which each log-likelihood of the test split is estimated; 0: it is not."""

    features: Features = "classifier"
    """Of images, by which quality is judged: the data set's own classifiers', or Inception's (on a GPU)."""

    subsets_per_size: int = 10
    """Subsets of each size that are evaluated, the same in every trial; up to five modalities 10 are all."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"every must be >= 1, got {self.every}")
        require(self.num_samples >= 2, f"num_samples must be >= 2, got {self.num_samples}")
        require(self.probe_samples >= 10, f"probe_samples must be >= 10, got {self.probe_samples}")
        draws = self.importance_samples
        require(draws >= 0, f"importance_samples must be >= 0, got {draws}")
        _require_choice("features", self.features, get_args(Features))
        subsets = self.subsets_per_size
        require(subsets >= 1, f"subsets_per_size must be >= 1, got {subsets}")
