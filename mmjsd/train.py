"""Training as a generator of epochs that can be stopped anywhere and goes on with the same numbers."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmjsd.batches import PairedSamples, Pairs, Workers
from mmjsd.config import Precision, TrainingConfig, require
from mmjsd.kernels import at_once
from mmjsd.model import MultimodalVae, load, save
from mmjsd.objective import Draws, draw, elbo
from mmjsd.pack import Pack
from mmjsd.tensors import read_tensors, write_tensors

_STATE_FILE = "training.safetensors"
_EPOCH_FILE = "epoch.json"

_PLACES = 8
"""So often within an epoch it is asked whether the machine is about to go."""


class DivergedError(ArithmeticError):
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class TrainingState:
    """All that the rest of a training depends on besides the parameters."""

    epoch: int
    """Epochs that are complete."""

    tensors: dict[str, Tensor]
    """Adam's moments and the random generator's state; within an epoch also those with which it began, and
    the losses since."""

    step: int = 0
    """Steps that were taken of the epoch after those."""

    wall_s: float = 0.0
    """Seconds that they took."""


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
class Interim:
    """A place within an epoch, which whoever expects the machine's end can save."""

    state: TrainingState
    """Continues from here when given to `fit`, with the parameters of this moment."""


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
        assert isinstance(epoch, Epoch)
        yield epoch


def fit_pack(
    members: Sequence[Member],
    data: Pairs,
    samples_per_epoch: int,
    is_warned: Callable[[], bool] | None = None,
) -> Iterator[list[Epoch | DivergedError] | list[Interim]]:
    """Train several models in place, side by side as one (`mmjsd.pack`), each as `fit` would train it alone.

    Sums are taken in another order than alone, so numbers agree up to rounding. On a GPU a step is recorded
    once as a CUDA graph and then replayed, which spares the time to launch its kernels one by one.

    Args:
        members: equal in sizes, kind of objective, epochs, batch size, precision and place to resume from.
        data: the training split, of which each member draws its own pairs.
        samples_per_epoch: of each member.
        is_warned: whether this machine is about to go; asked a few times an epoch, by all workers at once,
            until it says so.

    Yields:
        After each epoch what each member shows, in order; an error for one whose loss was not finite.
        It goes on with numbers that mean nothing, and does not disturb the others. At a warning, what each
        member could go on from.

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
    starts = [(each.resume.epoch, each.resume.step) if each.resume else (0, 0) for each in members]
    for member, start in zip(members, starts, strict=True):
        alike = replace(member.training, learning_rate=first.learning_rate) == first and start == starts[0]
        require(alike, "trainings of one pack may differ in learning_rate and seed alone")
    steps = -(-samples_per_epoch // first.batch_size)
    run = _Steps(members, data, steps, workers)
    earlier_s = [member.resume.wall_s if member.resume else 0.0 for member in members]
    for number in range(1 + starts[0][0], 1 + first.epochs):
        started = time.perf_counter()
        run.begin()
        while run.step < steps:
            run.advance(-(-steps // _PLACES))
            if is_warned and run.step < steps and is_warned():
                is_warned = None
                captured = run.capture_within()
                paused = time.perf_counter()
                spent_s = (paused - started) / len(members)
                yield [
                    Interim(TrainingState(number - 1, tensors, run.step, before_s + spent_s))
                    for tensors, before_s in zip(captured, earlier_s, strict=True)
                ]
                started += time.perf_counter() - paused
        losses = run.losses().cpu()
        spent_s = (time.perf_counter() - started) / len(members)
        shown: list[Epoch | DivergedError] = []
        for own, tensors, before_s in zip(losses, run.capture(), earlier_s, strict=True):
            if torch.isfinite(own).all():
                state = TrainingState(number, tensors)
                shown.append(Epoch(number, own, before_s + spent_s, steps * first.batch_size, state))
                continue
            bad = int((~torch.isfinite(own)).nonzero()[0])
            told = f"loss is {own[bad]:g} at epoch {number}, step {bad + 1} of {steps}"
            shown.append(DivergedError(told))
        earlier_s = [0.0] * len(members)
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
        self._pack = Pack(models, training.batch_size, training.precision) if len(models) > 1 else None
        self._loss_of: nn.Module = _Loss(self._pack or models[0], len(models), training.precision)
        if workers.size > 1:
            self._loss_of = DistributedDataParallel(self._loss_of)
        on_gpu = data.device.type == "cuda"
        self._optimizers = [
            _Optimizer(members[alike], self._pack.slabs(alike) if self._pack else None, on_gpu)
            for alike in _of_one_rate(members)
        ]
        self._generators = [torch.Generator(data.device).manual_seed(member.seed) for member in members]
        for member, generator in zip(members, self._generators, strict=True):
            if member.resume is not None:
                generator.set_state(member.resume.tensors["generator"].cpu())
        self._resumed = [member.resume for member in members if member.resume and member.resume.step]
        self._at_start: list[Tensor] = []
        own_rows = torch.arange(training.batch_size, device=data.device)[workers.rows(training.batch_size)]
        offsets = torch.arange(len(members), device=data.device)[:, None] * (steps * training.batch_size)
        self._rows = (offsets + own_rows).flatten()
        self.step = 0
        """Steps that were taken of the epoch."""

        self._step = torch.zeros(1, dtype=torch.long, device=data.device)
        self._losses = torch.zeros(steps, len(members), device=data.device)
        self._samples: PairedSamples | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._can_record = on_gpu and workers.size == 1
        self._taken = 0

    def begin(self) -> None:
        """Draw an epoch's samples; of one that was begun before the same ones, up to its place."""
        for generator, state in zip(self._generators, self._resumed, strict=False):
            generator.set_state(state.tensors["generator_at_start"])
        self._at_start = [generator.get_state() for generator in self._generators]
        count = self._steps * self._batch_size
        drawn = PairedSamples.concatenate([self._data.draw(count, each) for each in self._generators])
        if self._samples is None:
            self._samples = drawn
        else:
            self._samples.overwrite(drawn)
        for member in self._members:
            member.model.train()
        self.step = 0
        for number, (generator, state) in enumerate(zip(self._generators, self._resumed, strict=False)):
            generator.set_state(state.tensors["generator"])
            self._losses[: state.step, number] = state.tensors["losses"].to(self._losses.device)
            self.step = state.step
        self._resumed = []
        self._step.fill_(self.step)

    def advance(self, steps: int) -> None:
        """Take so many steps, or those that are left of the epoch."""
        for _ in range(min(steps, self._steps - self.step)):
            if not self._can_record:
                self._take()
            elif self._taken < self._WARM_UP:
                self._take_aside()
            else:
                self._replay()
            self.step += 1

    def losses(self) -> Float[Tensor, "member step"]:
        """Of each step of the epoch so far, over all workers."""
        return self._workers.mean(self._losses[: self.step].T.clone(memory_format=torch.contiguous_format))

    def capture(self) -> Iterator[dict[str, Tensor]]:
        """Of each member, what its next epoch depends on besides its parameters."""
        moments = (each for optimizer in self._optimizers for each in optimizer.capture())
        for generator, own in zip(self._generators, moments, strict=True):
            yield {"generator": generator.get_state(), **own}

    def capture_within(self) -> list[dict[str, Tensor]]:
        """Of each member, what the rest of its epoch depends on besides its parameters."""
        each = zip(self.capture(), self._at_start, self.losses(), strict=True)
        return [{**tensors, "generator_at_start": at_start, "losses": own} for tensors, at_start, own in each]

    def _take(self) -> None:
        assert self._samples is not None
        batch = self._samples.batch(self._rows + self._step * self._batch_size)
        rows = self._workers.rows(self._batch_size)
        each = zip(self._members, self._generators, strict=True)
        works = [partial(draw, member.model, self._batch_size, generator) for member, generator in each]
        draws = [own.rows(rows) for own in at_once(self._data.device, works)]
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        losses = self._loss_of(batch.x, Draws.concatenate(draws), batch.present)
        losses.sum().backward()
        if self._pack is not None:
            self._pack.hand_out_gradients()
        at_once(self._data.device, [optimizer.step for optimizer in self._optimizers])
        self._losses.index_copy_(0, self._step, losses.detach().to(self._losses.dtype)[None])
        self._step += 1

    def _take_aside(self) -> None:
        """On a stream of its own, as recording wants what comes before it."""
        stream = torch.cuda.Stream(self._data.device)
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
            stream = torch.cuda.Stream(self._data.device)  # torch's own is of the GPU that is current
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._take()
            self._graph = graph
        self._graph.replay()


class _Optimizer:
    """Adam of consecutive members of one step size, which takes their steps at once.

    Args:
        members: of which some may have moments to go on with.
        slabs: of the pack that they are in, if they are (`Pack.slabs`).
        on_gpu: where its steps are recorded.
    """

    def __init__(self, members: Sequence[Member], slabs: Sequence[Tensor] | None, on_gpu: bool) -> None:
        self._parameters = [list(member.model.parameters()) for member in members]
        slabs = self._parameters[0] if slabs is None else slabs
        rate = members[0].training.learning_rate
        self._adam = torch.optim.Adam(slabs, rate, fused=True, capturable=on_gpu)
        own = {id(parameter) for parameters in self._parameters for parameter in parameters}
        self._shared = {slab.untyped_storage().data_ptr(): slab for slab in slabs if id(slab) not in own}
        self.zero_grad, self.step = self._adam.zero_grad, self._adam.step
        for number, member in enumerate(members):
            if member.resume is not None:
                self._restore(number, member.resume)

    def capture(self) -> Iterator[dict[str, Tensor]]:
        """Of each member the moments of its parameters, by number and name."""
        for number, parameters in enumerate(self._parameters):
            tensors = {}
            for index, parameter in enumerate(parameters):
                slab = self._slab(parameter)
                for name, value in self._adam.state[slab].items():
                    own = _of(number, value, parameter is not slab)
                    tensors[f"{index}.{name}"] = own.clone(memory_format=torch.contiguous_format)
            yield tensors

    def _restore(self, number: int, state: TrainingState) -> None:
        for key, tensor in state.tensors.items():
            index, _, name = key.partition(".")
            if name:  # else it is no moment of a parameter
                parameter = self._parameters[number][int(index)]
                slab = self._slab(parameter)
                if name not in self._adam.state[slab]:
                    # A fused step needs the moments in their parameter's own layout, and on its device.
                    like = slab if tensor.ndim else tensor
                    self._adam.state[slab][name] = torch.empty_like(like, device=slab.device)
                _of(number, self._adam.state[slab][name], parameter is not slab).copy_(tensor)

    def _slab(self, parameter: Tensor) -> Tensor:
        return self._shared.get(parameter.untyped_storage().data_ptr(), parameter)


def _of(number: int, value: Tensor, is_shared: bool) -> Tensor:
    """A member's part of what an optimiser keeps; the count of steps is the same for all."""
    return value[number] if is_shared and value.ndim else value


def _of_one_rate(members: Sequence[Member]) -> Iterator[slice]:
    """Consecutive members of one step size."""
    start = 0
    for _, alike in groupby(member.training.learning_rate for member in members):
        count = len(list(alike))
        yield slice(start, start + count)
        start += count


def save_checkpoint(
    model: MultimodalVae, state: TrainingState, folder: Path, notes: Mapping[str, Any]
) -> Path:
    """Write `folder/epoch-000012`, whole or not at all, and remove older ones; its path.

    Within an epoch it is `epoch-000012_000345`, which comes after that and before the next. The notes, plain
    values, are the caller's; `read_notes` gives them back.
    """
    target = folder / (f"epoch-{state.epoch:06d}" + (f"_{state.step:06d}" if state.step else ""))
    temporary = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save(model, temporary)
    write_tensors(temporary / _STATE_FILE, state.tensors)
    place = {"epoch": state.epoch, "step": state.step, "wall_s": state.wall_s}
    (temporary / _EPOCH_FILE).write_text(json.dumps({**place, "notes": dict(notes)}))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(
                other, ignore_errors=True
            )  # a foreign file stays, and what a network folder holds on to
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
        tensors, _ = read_tensors(path / _STATE_FILE)
        place = json.loads((path / _EPOCH_FILE).read_text())
        # Older checkpoints, all of whole epochs, have the epoch alone.
        epoch, step, wall_s = int(place["epoch"]), int(place.get("step", 0)), float(place.get("wall_s", 0))
    return model, TrainingState(epoch, tensors, step, wall_s)


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
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a damaged checkpoint ({error}); delete it to train anew") from error
