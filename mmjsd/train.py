"""Training as a generator of epochs that can be stopped anywhere and goes on with the same numbers."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmjsd.batches import Pairs, Workers
from mmjsd.config import TrainingConfig, require
from mmjsd.model import MultimodalVae, load, save
from mmjsd.objective import draw, elbo

_STATE_FILE = "training.safetensors"
_EPOCH_FILE = "epoch.json"


class DivergedError(ArithmeticError):
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class TrainingState:
    """All that the next epoch depends on besides the parameters."""

    epoch: int
    """Epochs that are complete."""

    tensors: dict[str, Tensor]
    """Adam's moments and the random generator's state."""


@dataclass(frozen=True)
class Epoch:
    """One pass of training."""

    number: int
    """Counted from one."""

    losses: Float[Tensor, " step"]
    """Mean loss of each step's whole batch, nats per sample."""

    wall_s: float
    num_samples: int
    state: TrainingState
    """Continues after this epoch when given to `fit`, with the parameters of this moment."""

    @property
    def loss(self) -> float:
        """Mean over the epoch's samples."""
        return float(self.losses.mean())


class _Loss(nn.Module):
    """The mean loss as a module's forward pass, which is what data-parallel training wraps."""

    def __init__(self, model: MultimodalVae, precision: str) -> None:
        super().__init__()
        self.model, self.use_bfloat16 = model, precision == "bfloat16"

    def forward(self, *arguments: object) -> Tensor:
        with self._autocast():
            return elbo(self.model, *arguments).loss.mean()  # type: ignore[arg-type]

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=bool(self.use_bfloat16))


def fit(
    model: MultimodalVae,
    data: Pairs,
    samples_per_epoch: int,
    training: TrainingConfig,
    seed: int,
    resume: TrainingState | None = None,
) -> Iterator[Epoch]:
    """Train the model in place, one epoch at a time.

    The numbers depend on seed, data and configs alone: not on how often training was stopped and
    resumed between epochs and, beyond rounding, not on the number of workers. Under torch.distributed
    each worker takes its rows of every batch, and gradients are averaged over all.

    Args:
        model: on the device of `data`, with the resolved objective; under resumption with the
            parameters that belong to `resume`.
        data: the training split.
        samples_per_epoch: rounded up to whole batches; each sample is a fresh pairing.
        training: epochs, batch size, step size, precision.
        seed: of data order and draws.
        resume: the state of the last complete epoch.

    Raises:
        DivergedError: at the end of an epoch in which the loss was not finite.
    """
    workers = Workers.current()
    require(
        training.batch_size % workers.size == 0,
        f"batch_size must be a multiple of the {workers.size} workers, got {training.batch_size}",
    )
    loss_of: nn.Module = _Loss(model, training.precision)
    if workers.size > 1:
        loss_of = DistributedDataParallel(loss_of)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    generator = torch.Generator(data.device).manual_seed(seed)
    if resume is not None:
        _restore(optimizer, generator, resume)
    batch_size = training.batch_size
    rows = workers.rows(batch_size)
    steps = -(-samples_per_epoch // batch_size)
    for number in range(1 + (resume.epoch if resume else 0), 1 + training.epochs):
        started = time.perf_counter()
        model.train()
        samples = data.draw(steps * batch_size, generator)
        losses = torch.zeros(steps, device=data.device)
        for step in range(steps):
            first = step * batch_size
            batch = samples.batch(slice(first + rows.start, first + rows.stop))
            draws = draw(model, batch_size, generator).rows(rows)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(batch.x, draws, batch.present)
            loss.backward()
            optimizer.step()
            losses[step] = loss.detach()
        losses = workers.mean(losses).cpu()
        if not torch.isfinite(losses).all():
            first_bad = int((~torch.isfinite(losses)).nonzero()[0])
            raise DivergedError(
                f"loss is {losses[first_bad]:g} at epoch {number}, step {first_bad + 1} of {steps}"
            )
        state = TrainingState(number, _capture(optimizer, generator))
        yield Epoch(number, losses, time.perf_counter() - started, steps * batch_size, state)


def save_checkpoint(
    model: MultimodalVae, state: TrainingState, folder: Path, notes: Mapping[str, Any]
) -> Path:
    """Write `folder/epoch-000012`, whole or not at all, and remove older ones; its path.

    The notes, plain values, are the caller's; `read_notes` gives them back.
    """
    target = folder / f"epoch-{state.epoch:06d}"
    temporary = folder / f".epoch-{state.epoch:06d}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save(model, temporary)
    save_file({name: tensor.cpu() for name, tensor in state.tensors.items()}, temporary / _STATE_FILE)
    (temporary / _EPOCH_FILE).write_text(json.dumps({"epoch": state.epoch, "notes": dict(notes)}))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a trial's folder, if there is one."""
    return max(folder.glob("epoch-*"), default=None)


def load_checkpoint(path: Path) -> tuple[MultimodalVae, TrainingState]:
    """Model and state that `save_checkpoint` wrote.

    Raises:
        ValueError: if the checkpoint is damaged; the sentence names the file.
    """
    model = load(path)
    try:
        tensors = load_file(path / _STATE_FILE)
        epoch = int(json.loads((path / _EPOCH_FILE).read_text())["epoch"])
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is a damaged checkpoint ({error}); delete it to train anew") from error
    return model, TrainingState(epoch, tensors)


def read_notes(path: Path) -> dict[str, Any]:
    """The notes that a checkpoint was saved with."""
    notes: dict[str, Any] = json.loads((path / _EPOCH_FILE).read_text())["notes"]
    return notes


def _capture(optimizer: torch.optim.Optimizer, generator: torch.Generator) -> dict[str, Tensor]:
    tensors = {"generator": generator.get_state()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"{index}.{name}"] = value.clone(memory_format=torch.contiguous_format)
    return tensors


def _restore(optimizer: torch.optim.Optimizer, generator: torch.Generator, state: TrainingState) -> None:
    parameters = optimizer.param_groups[0]["params"]
    values: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.tensors.items():
        if key == "generator":
            generator.set_state(tensor.cpu())
        else:
            index, name = key.split(".")
            if tensor.ndim:  # a fused step needs the moments in their parameter's own layout
                tensor = torch.empty_like(parameters[int(index)]).copy_(tensor)
            values.setdefault(int(index), {})[name] = tensor
    description = optimizer.state_dict()
    optimizer.load_state_dict({**description, "state": values})
