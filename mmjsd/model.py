"""The multimodal VAE: encode what is given, fuse any subset to a joint posterior, decode, generate."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution

from mmjsd.config import Fusion, ModelConfig, ObjectiveConfig, require
from mmjsd.gaussian import Gaussian, Mixture, product, stack, standard_like
from mmjsd.networks import NETWORKS, Width, networks_of
from mmjsd.specs import Modality
from mmjsd.tensors import read_tensors, write_tensors
from mmjsd.text import ALPHABET

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class Posterior:
    """What one modality tells: q(c | x_j) and q(s_j | x_j)."""

    content: Gaussian
    style: Gaussian


def subsets(modalities: Sequence[str], per_size: int | None = None) -> list[tuple[str, ...]]:
    """Every non-empty subset of the modalities, the smallest first.

    Args:
        per_size: keep at most so many of each size, but every single modality. Chance decides which, by
            seeds that are fixed: the same for all models of as many modalities, and more keep those of fewer.
    """
    kept = []
    for size in range(1, len(modalities) + 1):
        of_size = list(combinations(modalities, size))
        if per_size is not None and size > 1:
            seeded = Random(size)
            drawn = set(sorted(of_size, key=lambda _: seeded.random())[:per_size])
            of_size = [subset for subset in of_size if subset in drawn]
        kept += of_size
    return kept


class MultimodalVae(nn.Module):
    """A VAE of any number of modalities with shared content and, if wanted, their own subspaces.

    Args:
        modalities: in the order in which `objective.weights` names them.
        config: sizes.
        objective: decides how unimodal posteriors become a joint one: the weights of a mixture,
            and whether the prior is an expert of the product (it is in mvae, where a product of
            posteriors that were each trained with the prior needs it; not in the others), and
            whether products of subsets are the experts of a mixture (they are in mopoe).
    """

    def __init__(
        self, modalities: Sequence[Modality], config: ModelConfig, objective: ObjectiveConfig
    ) -> None:
        super().__init__()
        self.specs = tuple(modalities)
        self.modalities = tuple(modality.name for modality in modalities)
        self.config = config
        self.objective = objective.resolved(self.specs)
        self.style_dims = config.style_dims(self.modalities)
        width = Width(config.width)
        encoders, heads, decoders = {}, {}, {}
        for name in self.modalities:
            networks, latent = networks_of(name), config.content_dim + self.style_dims[name]
            encoders[name] = networks.encoder(width)
            heads[name] = nn.Linear(networks.num_features(width), 2 * latent)
            decoders[name] = networks.decoder(latent, width)
        self.encoders, self.heads = nn.ModuleDict(encoders), nn.ModuleDict(heads)
        self.decoders = nn.ModuleDict(decoders)
        self.to(memory_format=torch.channels_last)  # the layout in which convolutions are fastest

    def posteriors(self, x: Mapping[str, Tensor]) -> dict[str, Posterior]:
        """Content and style of each given modality, in the model's order."""
        result = {}
        for name in self.modalities:
            if name in x:
                content, style = self.config.content_dim, self.style_dims[name]
                head = _accurate(self._encode(name, x[name]))
                sizes = [content, content, style, style]
                mu, logvar, style_mu, style_logvar = torch.split(head, sizes, dim=-1)
                result[name] = Posterior(Gaussian(mu, logvar), Gaussian(style_mu, style_logvar))
        return result

    def weights(
        self,
        given: Mapping[str, Posterior],
        present: Mapping[str, Bool[Tensor, " batch"]] | None,
        like: Tensor,
        with_prior: bool = False,
    ) -> Float[Tensor, "expert batch"]:
        """Pi of the given modalities, and of the prior if wanted, renormalised over what each sample has.

        If all that a sample has is of weight zero, its modalities share equally.

        Args:
            given: the modalities that are experts, in order.
            present: which samples have a modality; one that is not named is there in all.
            like: `[batch, latent]`, whose type, device and batch are taken.
            with_prior: append the prior's weight.
        """
        assert self.objective.weights is not None
        rows = []
        for name in given:
            weight = self.objective.weights[self.modalities.index(name)]
            rows.append((self._present(name, present, like), weight))
        here = torch.stack([row for row, _ in rows])
        weights = torch.stack([row * weight for row, weight in rows])
        weights = torch.where(weights.sum(0) > 0, weights, here)
        if with_prior:
            prior = torch.ones_like(weights[:1]) * self.objective.weights[-1]
            weights = torch.cat([weights, prior])
        return weights / weights.sum(0)

    def joint(
        self,
        posteriors: Mapping[str, Posterior],
        posterior: Fusion,
        present: Mapping[str, Bool[Tensor, " batch"]] | None = None,
    ) -> Mixture:
        """The joint content posterior of the given modalities' posteriors; a product is a mixture of one.

        Args:
            posteriors: from `posteriors`, at least one.
            posterior: "product": with unit weights. "mixture": by pi; in mopoe, of the products of all
                subsets, equally weighted. In mvae the prior is a further expert of every product, and
                of each modality's posterior that enters a mixture.
            present: which samples have a modality; one that is not named is there in all.

        Raises:
            ValueError: for another `posterior`.
        """
        known = get_args(Fusion)
        require(posterior in known, f"unknown posterior {posterior!r}; expected {' or '.join(known)}")
        experts = {name: each.content for name, each in posteriors.items()}
        like = next(iter(experts.values())).mu
        here = {name: self._present(name, present, like) for name in posteriors}
        if posterior == "product" or len(experts) == 1:
            alone = torch.ones_like(like[None, :, 0])
            return Mixture(stack([self._product(experts, here)]), alone, (tuple(experts),))
        if self.objective.name == "mopoe":
            groups = tuple(subsets(tuple(experts)))
            complete = torch.stack([torch.stack([here[name] for name in group]).prod(0) for group in groups])
            weights = complete / complete.sum(0)
        else:
            groups, weights = tuple((name,) for name in experts), self.weights(posteriors, present, like)
        all_here = dict.fromkeys(experts, torch.ones_like(like[:, 0]))
        products = [self._product({name: experts[name] for name in group}, all_here) for group in groups]
        return Mixture(stack(products), weights, groups)

    def fuse(
        self,
        posteriors: Mapping[str, Posterior],
        posterior: Fusion,
        choice: Float[Tensor, " batch"] | None = None,
        present: Mapping[str, Bool[Tensor, " batch"]] | None = None,
    ) -> Gaussian:
        """The `joint` posterior, a mixture represented by one expert per sample.

        Args:
            posteriors, posterior, present: as in `joint`.
            choice: uniform draws from [0, 1) that select a mixture's experts; one expert needs none.
        """
        return self.joint(posteriors, posterior, present).choose(choice)

    def joint_posterior(
        self, x: Mapping[str, Tensor], posterior: Fusion = "mixture", generator: torch.Generator | None = None
    ) -> Gaussian:
        """q(c | X_K) of any subset of modalities, as `fuse` defines it.

        Raises:
            ValueError: if no modality is given, one that the model does not have, or values that are not what
                a batch of it holds.
        """
        self._check(x)
        posteriors = self.posteriors(x)
        batch = len(next(iter(x.values())))
        return self.fuse(posteriors, posterior, self._uniform(batch, generator))

    def decode(
        self, content: Float[Tensor, "batch content"], style: Mapping[str, Float[Tensor, "batch style"]]
    ) -> dict[str, Distribution]:
        """p(x_j | c, s_j) of each modality whose style is given; its event is one whole image or text."""
        return {name: NETWORKS[name].likelihood(self._location(name, content, style[name])) for name in style}

    def means(self, content: Tensor, style: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The likelihoods' means: images in [0, 1], text as `[batch, length]` indices of the likeliest."""
        return {name: NETWORKS[name].mean(self._location(name, content, style[name])) for name in style}

    @torch.no_grad()
    def generate(
        self,
        given: Mapping[str, Tensor] | None = None,
        num_samples: int | None = None,
        posterior: Fusion | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Samples of every modality: content from q(c | given), or the prior; styles from the prior.

        Args:
            given: any subset of modalities, each as in a batch: images `[batch, channel, height, width]` in
                [0, 1] of the model's type, text `[batch, length]` as int64; none: samples of the prior.
            num_samples: number of unconditional samples; with `given`, its batch decides.
            posterior: how several given modalities become one; none: the objective's fusion.
            generator: of the model's device.

        Returns:
            Means of the likelihoods: images `[batch, channel, height, width]` in [0, 1], text
            `[batch, length]` as character indices.
        """
        if given:
            fusion = posterior or self.objective.fusion
            assert fusion is not None
            joint = self.joint_posterior(given, fusion, generator)
            content = joint.sample(self._normal(len(joint.mu), self.config.content_dim, generator))
        else:
            require(num_samples is not None, "num_samples is needed where no modality is given")
            content = self._normal(num_samples or 0, self.config.content_dim, generator)
        style = {name: self._normal(len(content), size, generator) for name, size in self.style_dims.items()}
        return self.means(content, style)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def _location(self, name: str, content: Tensor, style: Tensor) -> Tensor:
        return _accurate(self._decode(name, torch.cat([content, style], dim=-1)))

    def _encode(self, name: str, x: Tensor) -> Tensor:
        head: Tensor = self.heads[name](self.encoders[name](x))
        return head

    def _decode(self, name: str, latent: Tensor) -> Tensor:
        location: Tensor = self.decoders[name](latent)
        return location

    def _product(self, experts: Mapping[str, Gaussian], here: Mapping[str, Tensor]) -> Gaussian:
        """The product of the experts that each sample has, in mvae with the prior; of one it is that one."""
        factors, weights = list(experts.values()), [here[name] for name in experts]
        if self.objective.name == "mvae":
            factors, weights = [*factors, standard_like(factors[0])], [*weights, torch.ones_like(weights[0])]
        return product(stack(factors), torch.stack(weights)) if len(factors) > 1 else factors[0]

    def _present(self, name: str, present: Mapping[str, Tensor] | None, like: Tensor) -> Tensor:
        here = None if present is None else present.get(name)
        return torch.ones_like(like[:, 0]) if here is None else here.to(like.dtype)

    def _check(self, x: Mapping[str, Tensor]) -> None:
        known = ", ".join(self.modalities)
        require(len(x) > 0, f"no modality is given; give at least one of {known}")
        for name, values in x.items():
            require(name in self.modalities, f"unknown modality {name!r}; the model has {known}")
            spec = self.specs[self.modalities.index(name)]
            dtype, top = next(self.parameters()).dtype, 1
            if spec.kind == "text":
                dtype, top = torch.int64, len(ALPHABET) - 1
            axes = ", ".join(map(str, ("batch", *spec.shape)))
            expected = f"{name} must be a tensor [{axes}] of {dtype} in 0..{top}, got"
            require(isinstance(values, Tensor), f"{expected} {type(values).__name__}")
            fits = values.dtype == dtype and values.shape[1:] == spec.shape
            require(fits, f"{expected} {list(values.shape)} of {values.dtype}")
            outside = values[~((values >= 0) & (values <= top))]
            require(not len(outside), f"{expected} values such as {outside[:1].tolist()}")
        counts = {name: len(values) for name, values in x.items()}
        found = ", ".join(f"{count} of {name}" for name, count in counts.items())
        require(len(set(counts.values())) == 1, f"modalities must have equally many samples, got {found}")

    def _normal(self, batch: int, size: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(batch, size, generator=generator, device=self.device)

    def _uniform(self, batch: int, generator: torch.Generator | None) -> Tensor:
        return torch.rand(batch, generator=generator, device=self.device)


def _accurate(values: Tensor) -> Tensor:
    """What networks give in bfloat16 as float32; densities need no less."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def save(model: MultimodalVae, folder: Path) -> None:
    """Write parameters and description into `folder` as one safetensors file, which appears whole."""
    description = {
        "modalities": json.dumps([dataclasses.asdict(modality) for modality in model.specs]),
        "model": json.dumps(dataclasses.asdict(model.config)),
        "objective": json.dumps(dataclasses.asdict(model.objective)),
    }
    write_tensors(folder / WEIGHTS_FILE, model.state_dict(), description)


def load(path: Path | str) -> MultimodalVae:
    """The model in a checkpoint folder, or in a trial's newest, on the CPU, in eval mode. Reads no pickle.

    Raises:
        ValueError: if the folder holds no model, or one that cannot be read.
    """
    file = max(Path(path).glob(f"epoch-*/{WEIGHTS_FILE}"), default=Path(path) / WEIGHTS_FILE)
    require(file.is_file(), f"{path} holds no model: expected the file {WEIGHTS_FILE} in a checkpoint folder")
    try:
        tensors, told = read_tensors(file)
        description: dict[str, Any] = {key: json.loads(text) for key, text in told.items()}
        modalities = [
            Modality(**{**each, "shape": tuple(each["shape"])}) for each in description["modalities"]
        ]
        objective = {**description["objective"], "weights": tuple(description["objective"]["weights"])}
        model = MultimodalVae(modalities, ModelConfig(**description["model"]), ObjectiveConfig(**objective))
        model.load_state_dict(tensors)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged or of another version: {error}") from error
    return model.eval()
