"""Features of Inception v3, by which the quality of images can be compared with published numbers."""

import hashlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmjsd.specs import DataError

_BATCH = 50
"""Images at a time, which bounds the memory that they take once enlarged."""


class Inception:
    """Inception v3 (Szegedy et al. 2015, https://arxiv.org/abs/1512.00567) without its last layer.

    Trained on ImageNet, in torchvision's version, whose features differ from those of the network
    that is customary for the Fréchet Inception distance.

    Args:
        weights: the file that `find_weights` found.
        device: where the images will be.
    """

    def __init__(self, weights: Path, device: torch.device | str = "cpu") -> None:
        from torchvision.models import inception_v3  # here, because it takes a second and few trials need it

        network = inception_v3(weights=None, init_weights=False, transform_input=True)
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        network.fc = nn.Identity()
        self._network = network.to(device).eval()
        self._prepare = _weights().transforms(resize_size=299)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The 2,048 pooled features of each image, `[batch, feature]`.

        Args:
            images: `[batch, channel, height, width]` in [0, 1], of one channel or three; resized to 299
                pixels and normalised as torchvision does for these weights.
        """
        parts = [
            self._network(self._prepare(part.expand(-1, 3, -1, -1))) for part in torch.split(images, _BATCH)
        ]
        return torch.cat(parts)


def find_weights(folder: Path | None, progress: Callable[[str], None] | None = None) -> Path:
    """The file of Inception's weights: in `folder`, in torch's own cache, or else downloaded into that.

    Raises:
        DataError: if it is in neither place and cannot be downloaded, or is damaged.
    """
    name = _url().rpartition("/")[2]
    cache = Path(torch.hub.get_dir(), "checkpoints")
    found = [path for path in (folder / name if folder else None, cache / name) if path and path.is_file()]
    if not found:
        if progress is not None:
            progress(f"downloading {_url()}")
        found.append(_download(cache / name))
    expected = name.rpartition("-")[2].removesuffix(".pth")
    try:
        with found[0].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{found[0]} cannot be read ({error.strerror}); copy it anew") from error
    if not digest.startswith(expected):
        raise DataError(
            f"{found[0]} is damaged: its SHA-256 begins with {digest[: len(expected)]}, not {expected}; "
            "remove it or copy it anew"
        )
    return found[0]


def _download(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_url(), str(target), progress=False)
    except (HTTPException, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"cannot download Inception's weights from {_url()} ({reason}); "
            "put that file into the folder of --data-dir, or choose --evaluation.features classifier"
        ) from error
    return target


def _weights() -> Any:
    from torchvision.models import Inception_V3_Weights

    return Inception_V3_Weights.IMAGENET1K_V1


def _url() -> str:
    url: str = _weights().url
    return url
