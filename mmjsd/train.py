"""Training as a generator of epochs that can be stopped anywhere and goes on with the same numbers."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmjsd.batches import PairedSamples, Pairs, Workers
from mmjsd.config import Precision, TrainingConfig, require
from mmjsd.model import MultimodalVae, load, save
from mmjsd.objective import Draws, draw, elbo
from mmjsd.pack import Pack

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


@dataclass(frozen=True)
class Member:
    """One training of a pack."""

    model: MultimodalVae
    training: TrainingConfig
    seed: int
    """Of data order and draws."""

    resume: TrainingState | None = None


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
    for (epoch,) in fit_pack([Member(model, training, seed, resume)], data, samples_per_epoch):
        if isinstance(epoch, DivergedError):
            raise epoch
        yield epoch


def fit_pack(
    members: Sequence[Member], data: Pairs, samples_per_epoch: int
) -> Iterator[list[Epoch | DivergedError]]:
    """Train several models in place, side by side as one (`mmjsd.pack`), each as `fit` would train it alone.

    Sums are taken in another order than alone, so numbers agree up to rounding. On a GPU a step is recorded
    once as a CUDA graph and then replayed, which spares the time to launch its kernels one by one.

    Args:
        members: equal in sizes, kind of objective, epochs, batch size, precision and epoch to resume after.
        data: the training split, of which each member draws its own pairs.
        samples_per_epoch: of each member.

    Yields:
        After each epoch what each member shows, in order; an error for one whose loss was not finite.
        It goes on with numbers that mean nothing, and does not disturb the others.

    Raises:
        ValueError: for members that do not fit together, or a pack under torch.distributed.
    """
    first = members[0].training
    workers = Workers.current()
    require(
        first.batch_size % workers.size == 0,
        f"batch_size must be a multiple of the {workers.size} workers, got {first.batch_size}",
    )
    require(len(members) == 1 or workers.size == 1, "a pack trains in one process, not by several workers")
    starts = [member.resume.epoch if member.resume else 0 for member in members]
    for member, start in zip(members, starts, strict=True):
        alike = replace(member.training, learning_rate=first.learning_rate) == first and start == starts[0]
        require(alike, "trainings of one pack may differ in learning_rate and seed alone")
    steps = -(-samples_per_epoch // first.batch_size)
    run = _Steps(members, data, steps, workers)
    for number in range(1 + starts[0], 1 + first.epochs):
        started = time.perf_counter()
        losses = workers.mean(run.epoch()).cpu()
        wall_s = (time.perf_counter() - started) / len(members)
        shown: list[Epoch | DivergedError] = []
        for own, capture in zip(losses, run.capture(), strict=True):
            if torch.isfinite(own).all():
                state = TrainingState(number, capture)
                shown.append(Epoch(number, own, wall_s, steps * first.batch_size, state))
                continue
            bad = int((~torch.isfinite(own)).nonzero()[0])
            told = f"loss is {own[bad]:g} at epoch {number}, step {bad + 1} of {steps}"
            shown.append(DivergedError(told))
        yield shown


class _Loss(nn.Module):
    """Each member's mean loss as a module's forward pass, which is what data-parallel training wraps."""

    def __init__(self, model: MultimodalVae, members: int, precision: Precision) -> None:
        super().__init__()
        self.model, self.members, self.use_bfloat16 = model, members, precision == "bfloat16"

    def forward(
        self, x: Mapping[str, Tensor], draws: Draws, present: Mapping[str, Tensor] | None
    ) -> Float[Tensor, " member"]:
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            return elbo(self.model, x, draws, present).loss.reshape(self.members, -1).mean(1)


class _Steps:
    """The steps of an epoch, as one computation that is the same every time: its place is data, too."""

    _WARM_UP = 3
    """Steps that a GPU takes before one is recorded, as libraries choose their kernels in the first."""

    def __init__(self, members: Sequence[Member], data: Pairs, steps: int, workers: Workers) -> None:
        training = members[0].training
        self._members, self._data, self._steps, self._workers = members, data, steps, workers
        self._batch_size = training.batch_size
        models = [member.model for member in members]
        self._pack = Pack(models, training.batch_size) if len(models) > 1 else None
        self._loss_of: nn.Module = _Loss(self._pack or models[0], len(models), training.precision)
        if workers.size > 1:
            self._loss_of = DistributedDataParallel(self._loss_of)
        self._parameters = [list(member.model.parameters()) for member in members]
        groups: dict[float, list[Tensor]] = {}
        for member, parameters in zip(members, self._parameters, strict=True):
            groups.setdefault(member.training.learning_rate, []).extend(parameters)
        on_gpu = data.device.type == "cuda"
        self._optimizer = torch.optim.Adam(
            [{"params": parameters, "lr": rate} for rate, parameters in groups.items()],
            fused=True,
            capturable=on_gpu,
        )
        self._generators = [torch.Generator(data.device).manual_seed(member.seed) for member in members]
        for member, parameters, generator in zip(members, self._parameters, self._generators, strict=True):
            if member.resume is not None:
                _restore(self._optimizer, parameters, generator, member.resume)
        own_rows = torch.arange(training.batch_size, device=data.device)[workers.rows(training.batch_size)]
        offsets = torch.arange(len(members), device=data.device)[:, None] * (steps * training.batch_size)
        self._rows = (offsets + own_rows).flatten()
        self._step = torch.zeros(1, dtype=torch.long, device=data.device)
        self._losses = torch.zeros(steps, len(members), device=data.device)
        self._samples: PairedSamples | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._can_record = on_gpu and workers.size == 1
        self._taken = 0

    def epoch(self) -> Float[Tensor, "member step"]:
        """Take all steps on fresh samples; the loss of each."""
        count = self._steps * self._batch_size
        drawn = PairedSamples.concatenate([self._data.draw(count, each) for each in self._generators])
        if self._samples is None:
            self._samples = drawn
        else:
            self._samples.overwrite(drawn)
        for member in self._members:
            member.model.train()
        self._step.zero_()
        for _ in range(self._steps):
            if not self._can_record:
                self._take()
            elif self._taken < self._WARM_UP:
                self._take_aside()
            else:
                self._replay()
        return self._losses.T.clone()

    def capture(self) -> Iterator[dict[str, Tensor]]:
        """Of each member, what its next epoch depends on besides its parameters."""
        for parameters, generator in zip(self._parameters, self._generators, strict=True):
            tensors = {"generator": generator.get_state()}
            for index, parameter in enumerate(parameters):
                for name, value in self._optimizer.state[parameter].items():
                    tensors[f"{index}.{name}"] = value.clone(memory_format=torch.contiguous_format)
            yield tensors

    def _take(self) -> None:
        assert self._samples is not None
        batch = self._samples.batch(self._rows + self._step * self._batch_size)
        rows = self._workers.rows(self._batch_size)
        draws = [
            draw(member.model, self._batch_size, generator).rows(rows)
            for member, generator in zip(self._members, self._generators, strict=True)
        ]
        self._optimizer.zero_grad(set_to_none=True)
        losses = self._loss_of(batch.x, Draws.concatenate(draws), batch.present)
        losses.sum().backward()
        if self._pack is not None:
            self._pack.hand_out_gradients()
        self._optimizer.step()
        self._losses.index_copy_(0, self._step, losses.detach().to(self._losses.dtype)[None])
        self._step += 1

    def _take_aside(self) -> None:
        """On a stream of its own, as recording wants what comes before it."""
        stream = torch.cuda.Stream(self._data.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._data.device))
        with torch.cuda.stream(stream):
            self._take()
        torch.cuda.current_stream(self._data.device).wait_stream(stream)
        self._taken += 1

    def _replay(self) -> None:
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._take()
            self._graph = graph
        self._graph.replay()


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
    with _named(path):
        tensors = load_file(path / _STATE_FILE)
        epoch = int(json.loads((path / _EPOCH_FILE).read_text())["epoch"])
    return model, TrainingState(epoch, tensors)


def read_notes(path: Path) -> dict[str, Any]:
    """The notes that a checkpoint was saved with.

    Raises:
        ValueError: if they are damaged; the sentence names the checkpoint.
    """
    with _named(path):
        notes: dict[str, Any] = json.loads((path / _EPOCH_FILE).read_text())["notes"]
    return notes


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Says of a checkpoint that cannot be read which one it is."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is a damaged checkpoint ({error}); delete it to train anew") from error


def _restore(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    generator: torch.Generator,
    state: TrainingState,
) -> None:
    for key, tensor in state.tensors.items():
        if key == "generator":
            generator.set_state(tensor.cpu())
        else:
            index, name = key.split(".")
            parameter = parameters[int(index)]
            # A fused step needs the moments in their parameter's own layout, and on its device.
            own = torch.empty_like(parameter) if tensor.ndim else tensor.to(parameter.device)
            optimizer.state[parameter][name] = own.copy_(tensor) if tensor.ndim else own
