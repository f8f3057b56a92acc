"""Encoders, decoders, likelihoods and classifiers of each modality; NETWORKS is their registry.

Sizes are those of the authors' networks at width 1. MNIST-SVHN-Text: 1,411,826 parameters for three
modalities with 20 latent dimensions each. PolyMNIST: 2,811,395 for each modality with 512 (Sutter et al.
2021, https://arxiv.org/abs/2105.02470), where the encoder's features are as many as the latent dimensions;
here they are 512, whatever the latent dimensions are.
CelebA: 70.3 million for two modalities with 32 shared and 32 own latent dimensions each. Two things differ
from the authors' residual blocks: these normalise each sample by itself (Wu & He 2018,
https://arxiv.org/abs/1803.08494, one group) and not over the batch, with as many parameters, and have no
dropout. So a sample's bound depends on that sample and its draws alone, whatever else is in the batch and
on however many workers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Laplace
from torch.nn import functional as F

from mmjsd.config import require
from mmjsd.data import ALPHABET
from mmjsd.digits import PATTERNS

LAPLACE_SCALE = 0.75
"""Scale of the images' Laplace likelihood, in units of intensity (0 to 1)."""


@dataclass(frozen=True)
class Networks:
    """What one modality needs. An encoder ends in features; a classifier's last layer is linear in them.

    Nothing may wait for the device, as a GPU records a step (torch.cuda.graph): a likelihood is made with
    `validate_args=False`, and its event is a whole image or text. What networks make of a sample should
    depend on no other sample and no further chance (no batch norm, no dropout), or else a trial's numbers
    differ with its workers. In a pack, decoders of different latents are fastest as an `nn.Sequential`
    that begins with a Linear.
    """

    encoder: Callable[["Width"], nn.Module]
    num_features: Callable[["Width"], int]
    decoder: Callable[[int, "Width"], nn.Module]
    likelihood: Callable[[Tensor], Distribution]
    mean: Callable[[Tensor], Tensor]
    classifier: Callable[[int], nn.Sequential]


@dataclass(frozen=True)
class Width:
    """A factor on hidden layers; no layer falls below four units."""

    factor: float

    def __call__(self, units: int) -> int:
        """Units of a layer that has `units` at width 1."""
        return max(4, round(units * self.factor))


class OneHot(nn.Module):
    """Character indices `[batch, length]` to indicators `[batch, character, length]`."""

    def forward(self, indices: Tensor) -> Tensor:
        """In the floating type of the layers that follow."""
        characters = torch.arange(len(ALPHABET), device=indices.device)
        return (indices[..., None] == characters).to(torch.get_default_dtype()).movedim(-1, 1)


class CharactersLast(nn.Module):
    """`[batch, character, length]` to `[batch, length, character]`, as a categorical wants it."""

    def forward(self, logits: Tensor) -> Tensor:
        """The same logits with the characters on the last axis."""
        return logits.movedim(1, -1)


class _ToOne(nn.Conv2d):
    """A convolution whose kernel covers all of a 4 x 4 image: one matrix product."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channel, 1, 1]`."""
        pixels, weight = x.movedim(1, -1).flatten(1), self.weight.movedim(1, -1).flatten(1)
        return F.linear(pixels, weight, self.bias)[..., None, None]


class _FromOne(nn.ConvTranspose2d):
    """A transposed convolution of one pixel to 4 x 4: one matrix product."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4)

    def forward(self, x: Tensor, _: list[int] | None = None) -> Tensor:
        """`[batch, channel, 4, 4]` with the channels innermost."""
        assert self.bias is not None
        pixels = x.flatten(1) @ self.weight.movedim(1, -1).flatten(1)
        return (pixels.reshape(-1, 4, 4, self.out_channels) + self.bias).movedim(-1, 1)


class _Letterwise(nn.Conv1d):
    """The same linear map of every place in a sequence."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channel, length]`."""
        return F.linear(x.movedim(1, -1), self.weight[..., 0], self.bias).movedim(-1, 1)


class _Halving(nn.Conv1d):
    """Halves a sequence by kernels of four places, as one matrix product."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channel, length / 2]`."""
        windows = F.pad(x, (1, 1)).unfold(2, 4, 2).movedim(1, 2).flatten(2)
        return F.linear(windows, self.weight.flatten(1), self.bias).movedim(-1, 1)


class _Doubling(nn.ConvTranspose1d):
    """Doubles a sequence by kernels of four places, as one matrix product.

    Place 2i + p sees what lies at i + p - 1 and at i + p through every other weight of the kernel.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor, _: list[int] | None = None) -> Tensor:
        """`[batch, channel, 2 * length]`."""
        assert self.bias is not None
        pairs = F.pad(x, (1, 1)).unfold(2, 2, 1).movedim(1, 2).flatten(2)  # [batch, length + 1, channel * 2]
        kernel = self.weight.flip(-1).reshape(*self.weight.shape[:2], 2, 2)  # taps 3 2 | 1 0: [in, out, 2, p]
        both = pairs @ kernel.movedim(2, 1).flatten(2).flatten(0, 1)
        even, odd = both.reshape(*both.shape[:2], self.out_channels, 2).unbind(-1)
        places = torch.stack([even[:, :-1], odd[:, 1:]], dim=2).flatten(1, 2)
        return (places + self.bias).movedim(-1, 1)


class _FirstPlaces(nn.ConvTranspose1d):
    """A transposed convolution of one place to four: one matrix product."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4)

    def forward(self, x: Tensor, _: list[int] | None = None) -> Tensor:
        """`[batch, channel, 4]`."""
        assert self.bias is not None
        places = x.flatten(1) @ self.weight.flatten(1)
        return places.reshape(-1, self.out_channels, 4) + self.bias[:, None]


class _LastPlace(nn.Conv1d):
    """A convolution whose kernel covers all of a sequence of four: one matrix product."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channel, 1]`."""
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None]


class _DoublingImage(nn.ConvTranspose2d):
    """Doubles height and width by kernels of 4 x 4.

    On a CPU the bias is added by itself in training, as its gradient is summed faster so.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`[batch, channel, 2 * height, 2 * width]`."""
        if x.is_cuda or not torch.is_grad_enabled():
            return super().forward(x, output_size)
        assert self.bias is not None
        return F.conv_transpose2d(x, self.weight, stride=2, padding=1) + self.bias[:, None, None]


class _ToPixels(nn.ConvTranspose2d):
    """Doubles height and width with kernels of 4 x 4, faster on a CPU where few channels come out.

    On each axis pixel 2i + p sees what lies at i + p - 1 and at i + p through every other weight of its
    kernel. So a convolution of 2 x 2 gives blocks of four pixels, the outermost beyond the edge.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`[batch, channel, 2 * height, 2 * width]`, as the transposed convolution computes it."""
        if x.is_cuda:
            return super().forward(x, output_size)
        assert self.bias is not None
        taps = self.weight.unflatten(3, (2, 2)).unflatten(2, (2, 2)).flip(2, 4)  # [in, out, 2, p, 2, q]
        kernel = taps.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)
        blocks = F.conv2d(x, kernel, self.bias.repeat(4), padding=1).movedim(1, -1)
        pixels = blocks.unflatten(-1, (2, 2, self.out_channels)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        image: Tensor = pixels[:, 1:-1, 1:-1].movedim(-1, 1)
        return image


class _Residual(nn.Module):
    """A residual block (He et al. 2016, https://arxiv.org/abs/1603.05027): 2 skip + 0.3 branch.

    Args:
        convolution: nn.Conv1d, or whatever is built alike.
        kernel: kernel size, stride and padding, of the skip and of the branch's second convolution.
    """

    def __init__(
        self,
        convolution: Callable[..., nn.Module],
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.GroupNorm(1, in_channels), nn.ReLU(), convolution(in_channels, in_channels, 1)),
            *(nn.GroupNorm(1, in_channels), nn.ReLU(), convolution(in_channels, out_channels, *kernel)),
        )
        self.skip = nn.Sequential(
            convolution(in_channels, out_channels, *kernel, bias=False), nn.GroupNorm(1, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, out channel, ...]`, by the stride smaller, or larger if transposed."""
        result: Tensor = 2.0 * self.skip(x) + 0.3 * self.branch(x)
        return result


def _residuals(
    convolution: Callable[..., nn.Module], channels: Sequence[int], kernels: Sequence[tuple[int, int, int]]
) -> list[nn.Module]:
    """One block from each number of channels to the next."""
    sizes = zip(pairwise(channels), kernels, strict=True)
    return [_Residual(convolution, *in_out, kernel) for in_out, kernel in sizes]


_HALF, _WHOLE = (4, 2, 1), (4, 2, 0)
"""Kernel, stride and padding that halve a length, and that make one of four; transposed, the other way."""


def _mlp_encoder(width: Width) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width(400)), nn.ReLU())


def _mlp_decoder(latent: int, width: Width) -> nn.Module:
    hidden = width(400)
    return nn.Sequential(
        nn.Linear(latent, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 784),
        nn.Sigmoid(),
        nn.Unflatten(1, (1, 28, 28)),
    )


def _conv_encoder(width: Width) -> nn.Module:
    a, b, c = width(32), width(64), width(128)
    return nn.Sequential(
        *(nn.Conv2d(3, a, 4, 2, 1), nn.ReLU()),
        *(nn.Conv2d(a, b, 4, 2, 1), nn.ReLU()),
        *(nn.Conv2d(b, b, 4, 2, 1), nn.ReLU()),
        *(_ToOne(b, c), nn.ReLU()),
        nn.Flatten(),
    )


def _conv_decoder(latent: int, width: Width) -> nn.Module:
    a, b, c = width(32), width(64), width(128)
    return nn.Sequential(
        *(nn.Linear(latent, c), nn.ReLU(), nn.Unflatten(1, (c, 1, 1))),
        *(_FromOne(c, b), nn.ReLU()),
        *(_DoublingImage(b, b), nn.ReLU()),
        *(_DoublingImage(b, a), nn.ReLU()),
        _ToPixels(a, 3),
    )


def _patterned_encoder(width: Width) -> nn.Module:
    a, b, c = width(32), width(64), width(128)
    return nn.Sequential(
        *(nn.Conv2d(3, a, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(b, c, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(c * 4 * 4, width(512)), nn.ReLU()),
    )


def _patterned_decoder(latent: int, width: Width) -> nn.Module:
    a, b, c = width(32), width(64), width(128)
    return nn.Sequential(
        *(nn.Linear(latent, c * 4 * 4), nn.ReLU(), nn.Unflatten(1, (c, 4, 4))),
        *(nn.ConvTranspose2d(c, b, 3, 2, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(b, a, 3, 2, 1, output_padding=1), nn.ReLU()),
        nn.ConvTranspose2d(a, 3, 3, 2, 1, output_padding=1),
    )


def _word_encoder(width: Width) -> nn.Module:
    hidden = width(128)
    return nn.Sequential(
        OneHot(),
        *(_Letterwise(len(ALPHABET), hidden), nn.ReLU()),
        *(_Halving(hidden, hidden), nn.ReLU()),
        *(_LastPlace(hidden, hidden), nn.ReLU()),
        nn.Flatten(),
    )


def _word_decoder(latent: int, width: Width) -> nn.Module:
    hidden = width(128)
    return nn.Sequential(
        *(nn.Linear(latent, hidden), nn.Unflatten(1, (hidden, 1))),
        *(_FirstPlaces(hidden, hidden), nn.ReLU()),
        *(_Doubling(hidden, hidden), nn.ReLU()),
        _Letterwise(hidden, len(ALPHABET)),
        CharactersLast(),
    )


def _face_encoder(width: Width) -> nn.Module:
    channels = [width(128 * factor) for factor in (1, 2, 3, 4, 5)]
    return nn.Sequential(
        nn.Conv2d(3, channels[0], 3, 2, 1, bias=False),
        *_residuals(nn.Conv2d, channels, [_HALF] * 3 + [_WHOLE]),
        nn.Flatten(),
    )


def _face_decoder(latent: int, width: Width) -> nn.Module:
    channels = [width(128 * factor) for factor in (5, 4, 3, 2, 1)]
    return nn.Sequential(
        *(nn.Linear(latent, channels[0]), nn.Unflatten(1, (channels[0], 1, 1))),
        *_residuals(nn.ConvTranspose2d, channels, [_WHOLE] + [_HALF] * 3),
        nn.ConvTranspose2d(channels[-1], 3, 3, 2, 1, output_padding=1),
    )


def _description_encoder(width: Width) -> nn.Module:
    channels = [width(128 * factor) for factor in (1, 2, 3, 4, 5, 5, 5)]
    return nn.Sequential(
        *(OneHot(), nn.Conv1d(len(ALPHABET), channels[0], 4, 2, 1)),
        *_residuals(nn.Conv1d, channels, [_HALF] * 5 + [_WHOLE]),
        nn.Flatten(),
    )


def _description_decoder(latent: int, width: Width) -> nn.Module:
    channels = [width(128 * factor) for factor in (5, 5, 5, 4, 3, 2, 1)]
    return nn.Sequential(
        *(nn.Linear(latent, channels[0]), nn.Unflatten(1, (channels[0], 1))),
        *_residuals(nn.ConvTranspose1d, channels, [_WHOLE] + [_HALF] * 5),
        nn.ConvTranspose1d(channels[-1], len(ALPHABET), 4, 2, 1),
        CharactersLast(),
    )


class _ImageLaplace(Independent[Laplace]):
    """A Laplace of scale LAPLACE_SCALE at every pixel, whose distances are summed before all else."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Of whole images, in nats."""
        distance = (value - self.base_dist.loc).abs().sum((-3, -2, -1))
        return distance * (-1 / LAPLACE_SCALE) - self.event_shape.numel() * log(2 * LAPLACE_SCALE)


def _image_likelihood(loc: Tensor) -> Distribution:
    scale = loc.new_full((), LAPLACE_SCALE)  # a number would be copied to the device each time
    return _ImageLaplace(Laplace(loc, scale, validate_args=False), 3, validate_args=False)


def _text_likelihood(logits: Tensor) -> Distribution:
    return Independent(Categorical(logits=logits, validate_args=False), 1, validate_args=False)


def _image_classifier(channels: int, side: int) -> Callable[[int], nn.Sequential]:
    def build(num_classes: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * (side // 8) ** 2, 64), nn.ReLU()),
            *(nn.Dropout(0.3), nn.Linear(64, num_classes)),
        )

    return build


def _word_classifier(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        *(OneHot(), nn.Conv1d(len(ALPHABET), 64, 3, padding=1), nn.ReLU()),
        *(nn.Conv1d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool1d(1)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, num_classes)),
    )


def _face_classifier(num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 4, 2, 1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 48, 4, 2, 1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.Conv2d(48, 96, 4, 2, 1), nn.BatchNorm2d(96), nn.ReLU()),
        *(nn.Conv2d(96, 96, 4, 2, 1), nn.BatchNorm2d(96), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 4 * 4, 64), nn.ReLU()),
        *(nn.Dropout(0.3), nn.Linear(64, num_outputs)),
    )


def _description_classifier(num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(OneHot(), nn.Conv1d(len(ALPHABET), 64, 4, 2, 1), nn.BatchNorm1d(64), nn.ReLU()),
        *(nn.Conv1d(64, 128, 5, padding=2), nn.BatchNorm1d(128), nn.ReLU()),
        *(nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(128, num_outputs)),
    )


_PATTERNED = Networks(
    encoder=_patterned_encoder,
    num_features=lambda width: width(512),
    decoder=_patterned_decoder,
    likelihood=_image_likelihood,
    mean=lambda loc: loc.clamp(0, 1),
    classifier=_image_classifier(channels=3, side=28),
)

NETWORKS: Mapping[str, Networks] = {
    "mnist": Networks(
        encoder=_mlp_encoder,
        num_features=lambda width: width(400),
        decoder=_mlp_decoder,
        likelihood=_image_likelihood,
        mean=lambda loc: loc.clamp(0, 1),
        classifier=_image_classifier(channels=1, side=28),
    ),
    "svhn": Networks(
        encoder=_conv_encoder,
        num_features=lambda width: width(128),
        decoder=_conv_decoder,
        likelihood=_image_likelihood,
        mean=lambda loc: loc.clamp(0, 1),
        classifier=_image_classifier(channels=3, side=32),
    ),
    "text": Networks(
        encoder=_word_encoder,
        num_features=lambda width: width(128),
        decoder=_word_decoder,
        likelihood=_text_likelihood,
        mean=lambda logits: logits.argmax(-1),
        classifier=_word_classifier,
    ),
    "face": Networks(
        encoder=_face_encoder,
        num_features=lambda width: width(640),
        decoder=_face_decoder,
        likelihood=_image_likelihood,
        mean=lambda loc: loc.clamp(0, 1),
        classifier=_face_classifier,
    ),
    "words": Networks(
        encoder=_description_encoder,
        num_features=lambda width: width(640),
        decoder=_description_decoder,
        likelihood=_text_likelihood,
        mean=lambda logits: logits.argmax(-1),
        classifier=_description_classifier,
    ),
    **dict.fromkeys(PATTERNS, _PATTERNED),
}
"""By the modality's name. A new modality is one entry here and one in a data set."""


def networks_of(modality: str) -> Networks:
    """The modality's entry in NETWORKS.

    Raises:
        ValueError: if there is none.
    """
    require(
        modality in NETWORKS, f"modality {modality!r} has no entry in NETWORKS of mmjsd/networks.py; add it"
    )
    return NETWORKS[modality]
