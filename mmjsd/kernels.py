"""Several models at once on a GPU, where some functions under `torch.vmap` take several times what they need.

Convolutions of K models, as one of K groups, are slower than K convolutions; they are launched apart, each on
a stream of its own, so that small ones share the device. A group norm would move channels outermost, and the
next convolution back. All else is one kernel for all models as it is.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_T = TypeVar("_T")


def at_once(device: torch.device, works: Sequence[Callable[[], _T]]) -> list[_T]:
    """What each piece of work returns; on a GPU all run at the same time, each on a stream of its own."""
    if device.type != "cuda" or len(works) == 1:
        return [work() for work in works]
    current, results = torch.cuda.current_stream(device), []
    streams = _streams(device, len(works))
    for stream, work in zip(streams, works, strict=True):
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            results.append(work())
    for stream in streams:
        current.wait_stream(stream)
    return results


class GpuKernels(TorchFunctionMode):
    """While it is active, convolutions and group norms under `torch.vmap` are computed as suits a GPU.

    Convolutions of one or two dimensions, batched in input and weight; norms of one group.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called for every function of torch."""
        run: Callable[..., Any] = _KERNELS.get(func, func)
        return run(*args, **(kwargs or {}))


_SIZES = ("stride", "padding", "dilation", "groups")
_SIZES_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
"""Of torch's convolutions, the arguments after input, weight and bias, in order."""


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """On a new first axis, each `[batch, channel, height, width]` with its channels innermost."""
    return torch.stack([each.movedim(1, -1) for each in images]).movedim(-1, 2)


def _normalise(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """A group norm whose channels are innermost, as convolutions have them."""
    if num_groups > 1 or weight is None or bias is None:
        return F.group_norm(x, num_groups, weight, bias, eps)
    last = x.movedim(1, -1)
    return torch.addcmul(bias, F.layer_norm(last, last.shape[1:], eps=eps), weight).movedim(-1, 1)


def _convolve(
    order: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None = None, *sizes: Any, **named: Any
) -> Tensor:
    """`[batch, channel, ...]` of one model, as it is seen under `torch.vmap`; `order` names the sizes."""
    given = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0, "groups": 1}
    given |= dict(zip(order, sizes, strict=False)) | named
    is_row = x.ndim == 3
    if is_row:  # an image of one row
        x, weight = x[..., None, :], weight[..., None, :]

    def of_image(size: Sequence[int] | int, of_row: int) -> list[int]:
        width = [size] * (1 if is_row else 2) if isinstance(size, int) else list(size)
        return [of_row, *width] if is_row else width

    shape = (
        *(of_image(given["stride"], 1), of_image(given["padding"], 0), of_image(given["dilation"], 1)),
        *("output_padding" in order, of_image(given["output_padding"], 0), given["groups"]),
    )
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    result: Tensor = _Convolution.apply(x, weight, shape)
    if bias is not None:
        result = result + bias[:, None, None]
    return result.squeeze(-2) if is_row else result


_KERNELS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.group_norm: _normalise,
    torch.conv1d: partial(_convolve, _SIZES),
    torch.conv2d: partial(_convolve, _SIZES),
    torch.conv_transpose1d: partial(_convolve, _SIZES_TRANSPOSED),
    torch.conv_transpose2d: partial(_convolve, _SIZES_TRANSPOSED),
}


class _Convolution(torch.autograd.Function):
    """One model's convolution without a bias, which becomes `_Convolutions` under `torch.vmap`."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, shape: tuple[Any, ...]) -> Tensor:
        return torch.convolution(x, weight, None, *shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept: no gradient is asked of this one."""

    @staticmethod
    def vmap(
        _: Any, in_dims: tuple[int, int, None], x: Tensor, weight: Tensor, shape: tuple[Any, ...]
    ) -> tuple[Tensor, int]:
        x, weight = x.movedim(in_dims[0], 0), weight.movedim(in_dims[1], 0)
        return _Convolutions.apply(x, weight, shape), 0


class _Convolutions(torch.autograd.Function):
    """`[member, batch, channel, height, width]`, each member's images by its own weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shape: tuple[Any, ...]) -> Tensor:
        x, weight = _channels_last(x), _channels_last(weight)
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        each = zip(x, weight, strict=True)
        works = [partial(torch.convolution, *own, None, *shape) for own in each]
        return stack_images(at_once(x.device, works))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], False]
        each = zip(_channels_last(gradients[0]), x, weight, strict=True)
        run = torch.ops.aten.convolution_backward
        works = [partial(run, *own, None, *ctx.shape, wanted) for own in each]
        of_x, of_weight, _ = zip(*at_once(x.device, works), strict=True)
        return stack_images(of_x) if wanted[0] else None, stack_images(of_weight) if wanted[1] else None, None


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


@lru_cache(maxsize=1)
def _streams(device: torch.device, count: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(count)]
