"""Several models of equal shape, trained as one: networks side by side, small ones on stacked parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mmjsd.config import ModelConfig, ObjectiveConfig, Precision, require
from mmjsd.kernels import GpuKernels, stack_images
from mmjsd.model import MultimodalVae

_SMALL = 2_000_000
"""Weights times rows of a batch, up to which a CPU spends more time on calling layers than in them."""

_SHARED = ("name", "fusion", "dynamic_prior", "prior_samples", "importance_samples")


def fit_together(
    first: tuple[ModelConfig, ObjectiveConfig], second: tuple[ModelConfig, ObjectiveConfig]
) -> bool:
    """Whether two models can be in one pack: equal but for subspace sizes and weights of the objective.

    Args:
        first, second: with the resolved objectives.
    """
    sizes = [replace(model, style_dim=0) for model, _ in (first, second)]
    kinds = [[getattr(objective, name) for name in _SHARED] for _, objective in (first, second)]
    return sizes[0] == sizes[1] and kinds[0] == kinds[1]


class Pack(MultimodalVae):
    """K models whose samples are the rows of one batch: the first model's, then the second's and so on.

    Bounds are sums over samples of what each sample's own model says, so that no term of one model's loss
    depends on another's parameters: gradients are those of separate trainings. Weights of the objective may
    differ between the models; they are then one value a row. So may the subspaces' sizes: a smaller one is
    filled up with dimensions that lie as the prior does, of which no divergence and no decoder knows.
    The models keep their own parameters, which may now lie in the pack's storage: a step of the pack changes
    them, and they can be evaluated and saved.

    Args:
        members: of equal modalities and sizes but for subspaces, with objectives of one kind, on one device.
        batch_size: rows of each member in a batch.
        precision: in which the networks are called.

    Raises:
        ValueError: if the members' networks or kinds of objective differ.
    """

    def __init__(
        self, members: Sequence[MultimodalVae], batch_size: int, precision: Precision = "float32"
    ) -> None:
        nn.Module.__init__(self)
        first = members[0]
        for member in members[1:]:
            alike = member.modalities == first.modalities and fit_together(
                (member.config, member.objective), (first.config, first.objective)
            )
            require(
                alike,
                "models of one pack must agree in all sizes but subspaces' and in the kind of objective, got "
                f"{member.config} with {member.objective} and {first.config} with {first.objective}",
            )
        self.specs, self.modalities, self.config = first.specs, first.modalities, first.config
        self.style_dims = {
            name: max(member.style_dims[name] for member in members) for name in self.modalities
        }
        self.members = tuple(members)  # a tuple: their parameters are not the pack's own
        self.objective = _objective_by_row([member.objective for member in members], batch_size, first.device)
        self._batch_size = batch_size
        # Each draw of an importance-weighted bound has rows, too, and its weights amplify what layers round.
        # On a CPU, autocast does not reach the layers that vmap calls, and torch has wrong gradients of a
        # convolution of one image under vmap.
        is_plain = first.objective.importance_samples is None and precision == "float32" and batch_size > 1
        limit = _SMALL // batch_size if is_plain else 0
        self._networks: dict[str, _Network] = {}
        for name in self.modalities:
            styles = [member.style_dims[name] for member in members]
            self._networks[f"encoders.{name}"] = _side_by_side(_each(members, f"encoders.{name}"), limit)
            heads, decoders = (_each(members, f"{part}.{name}") for part in ("heads", "decoders"))
            is_even = min(styles) == max(styles)
            self._networks[f"heads.{name}"] = (
                _side_by_side(heads, limit) if is_even else _Heads(heads, styles)
            )
            if is_even:
                self._networks[f"decoders.{name}"] = _side_by_side(decoders, limit)
            elif all(type(each) is nn.Sequential and isinstance(each[0], nn.Linear) for each in decoders):
                self._networks[f"decoders.{name}"] = _Decoders(decoders, limit)
            else:
                latents = [self.config.content_dim + style for style in styles]
                self._networks[f"decoders.{name}"] = _Apart(decoders, latents)

    @property
    def device(self) -> torch.device:
        """Where the members are."""
        return self.members[0].device

    def slabs(self, members: slice) -> list[Tensor]:
        """The parameters of consecutive members, in as few tensors as they lie in, for an optimiser to step.

        Each is one member's own parameter, or holds one parameter of all of them on its first axis.
        """
        return [slab for network in self._networks.values() for slab in network.slabs(members)]

    def hand_out_gradients(self) -> None:
        """Give every slab its gradients, after the backward pass."""
        for network in self._networks.values():
            network.hand_out_gradients()

    def _encode(self, name: str, x: Tensor) -> Tensor:
        return self._run(f"heads.{name}", self._run(f"encoders.{name}", x))

    def _decode(self, name: str, latent: Tensor) -> Tensor:
        return self._run(f"decoders.{name}", latent)

    def _run(self, network: str, rows: Tensor) -> Tensor:
        """On rows that are `[*sample, member, batch]`, flattened; a bound may draw several samples."""
        members, rest = len(self.members), rows.shape[1:]
        by_member = rows.reshape(-1, members, self._batch_size, *rest).movedim(1, 0).flatten(1, 2)
        result = self._networks[network](by_member)
        by_sample = result.reshape(members, -1, self._batch_size, *result.shape[2:]).movedim(0, 1)
        return by_sample.flatten(0, 2)


class _Network(ABC):
    """Modules of several models, run on a leading axis, each on its own model's rows."""

    parts: Sequence["_Network"] = ()
    """Networks of which this one is made."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def slabs(self, members: slice) -> list[Tensor]:
        """As of the pack."""

    def hand_out_gradients(self) -> None:
        """Give slabs the gradients that are not theirs yet."""
        for part in self.parts:
            part.hand_out_gradients()


class _Stacked(_Network):
    """Modules of one shape, run on a leading axis by one call; their parameters are slices of its own."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._parameters: dict[str, Tensor] = {}
        for name, _ in modules[0].named_parameters():
            own = [module.get_parameter(name) for module in modules]
            stacked = _stack([parameter.detach() for parameter in own])
            for parameter, part in zip(own, stacked, strict=True):
                parameter.data = part
            self._parameters[name] = stacked.requires_grad_()
        self._slabs: list[tuple[str, slice, Tensor]] = []
        self._call: Callable[..., Tensor] = torch.vmap(self._call_one, randomness="different")

    def __call__(self, x: Tensor) -> Tensor:
        with GpuKernels() if x.is_cuda else nullcontext():
            return self._call(self._parameters, x)

    def slabs(self, members: slice) -> list[Tensor]:
        slabs = [
            (name, members, stacked.detach()[members].requires_grad_())
            for name, stacked in self._parameters.items()
        ]
        self._slabs += slabs
        return [slab for _, _, slab in slabs]

    def hand_out_gradients(self) -> None:
        for name, members, slab in self._slabs:
            gradient = self._parameters[name].grad
            slab.grad = None if gradient is None else gradient[members]
        for stacked in self._parameters.values():
            stacked.grad = None

    def _call_one(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = functional_call(self._modules[0], parameters, (x,))
        return result


class _Apart(_Network):
    """Modules run one after the other, which their gradients reach without help.

    Args:
        latents: how many of the dimensions each decoder has; none: they are no decoders, or all have all.
    """

    def __init__(self, modules: Sequence[nn.Module], latents: Sequence[int] | None = None) -> None:
        self._modules = modules
        self._latents: Sequence[int | None] = latents or [None] * len(modules)

    def __call__(self, x: Tensor) -> Tensor:
        parts = zip(self._modules, x, self._latents, strict=True)
        return torch.stack([module(own[..., :latent]) for module, own, latent in parts])

    def slabs(self, members: slice) -> list[Tensor]:
        return _parameters(self._modules[members])


class _Heads(_Network):
    """Linear maps to the parameters of content and subspaces of different sizes.

    A smaller subspace's missing dimensions have mean 0 and log-variance 0, as the prior has.
    """

    def __init__(self, modules: Sequence[nn.Module], styles: Sequence[int]) -> None:
        self._modules, self._styles = modules, styles

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack(
            [
                self._filled(module(own), style)
                for module, own, style in zip(self._modules, x, self._styles, strict=True)
            ]
        )

    def slabs(self, members: slice) -> list[Tensor]:
        return _parameters(self._modules[members])

    def _filled(self, head: Tensor, style: int) -> Tensor:
        rest = (0, max(self._styles) - style)
        contents, mu, logvar = torch.split(head, [head.shape[-1] - 2 * style, style, style], dim=-1)
        return torch.cat([contents, F.pad(mu, rest), F.pad(logvar, rest)], dim=-1)


class _Decoders(_Network):
    """Decoders of latents of different sizes: each first layer sees the dimensions that it has, no more."""

    def __init__(self, modules: Sequence[nn.Module], limit: int) -> None:
        sequences = [cast(nn.Sequential, module) for module in modules]
        self._first = [cast(nn.Linear, sequence[0]) for sequence in sequences]
        self._rest = _side_by_side([sequence[1:] for sequence in sequences], limit)
        self.parts = (self._rest,)

    def __call__(self, x: Tensor) -> Tensor:
        firsts = [layer(own[..., : layer.in_features]) for layer, own in zip(self._first, x, strict=True)]
        return self._rest(torch.stack(firsts))

    def slabs(self, members: slice) -> list[Tensor]:
        return _parameters(self._first[members]) + self._rest.slabs(members)


def _side_by_side(modules: Sequence[nn.Module], limit: int) -> _Network:
    """Modules of one shape, run by one call on a GPU and if they have few weights, else one by one.

    One by one, too, if there is nothing to stack, or they keep what is no parameter (as of batch norms).

    Args:
        limit: of a module's weights, up to which one call is as fast and as exact on a CPU.
    """
    weights = [*modules[0].parameters()]
    if not weights or any(True for _ in modules[0].buffers()):
        return _Apart(modules)
    is_small = sum(weight.numel() for weight in weights) <= limit
    return _Stacked(modules) if weights[0].is_cuda or is_small else _Apart(modules)


def _each(members: Sequence[nn.Module], path: str) -> list[nn.Module]:
    return [member.get_submodule(path) for member in members]


def _parameters(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """On a new first axis, each slice in the layout of its tensor."""
    return stack_images(tensors) if tensors[0].ndim == 4 else torch.stack(list(tensors))


def _objective_by_row(
    objectives: Sequence[ObjectiveConfig], batch_size: int, device: torch.device
) -> ObjectiveConfig:
    """One objective whose weights are numbers where all agree and otherwise tensors with a value a row."""
    described = [asdict(objective) for objective in objectives]

    def merged(values: Sequence[Any]) -> Any:
        if all(value == values[0] for value in values):
            return values[0]
        if isinstance(values[0], dict):
            return {key: merged([value[key] for value in values]) for key in values[0]}
        if isinstance(values[0], tuple):
            return tuple(merged(each) for each in zip(*values, strict=True))
        return torch.tensor(values, device=device).repeat_interleave(batch_size)

    return cast(
        ObjectiveConfig,  # its fields by name, but unchecked: tensors are no numbers
        SimpleNamespace(**{key: merged([each[key] for each in described]) for key in described[0]}),
    )
