"""Files of tensors: safetensors, whole or not at all, with a checksum."""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmjsd.config import require

_CHECKSUM = "crc32"


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], description: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, which appears whole.

    It has the rights of any file, whereas what the library writes is its owner's alone.
    """
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    told = dict(description or {})
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(save(whole, told | {_CHECKSUM: str(_checksum(whole, told))}))
    os.replace(temporary, file)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_tensors` wrote: tensors, on the CPU, and description. Reads no pickle.

    Raises:
        OSError: if there is no file, or it may not be read.
        ValueError: if it is no safetensors file, or not as it was written; of files without a checksum, as
            others and earlier versions write them, that cannot be told.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            # Copied, as what is mapped from a file keeps it from being removed.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.offset_keys()}
            description = dict(opened.metadata() or {})
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    noted = description.pop(_CHECKSUM, None)
    whole = noted is None or noted == str(_checksum(tensors, description))
    require(whole, "its content is not what was written, by its checksum")
    return tensors, description


def _checksum(tensors: Mapping[str, Tensor], description: Mapping[str, str]) -> int:
    total = zlib.crc32(repr(sorted(description.items())).encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return total
