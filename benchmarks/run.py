"""How near the machine's limit training is, and against whom: python benchmarks/run.py [--against OLD.json]

Whatever is compared runs in turns, and ratios of medians are told, since machines are noisy. What is ours
runs as in a trial's process, with its allocator (`study.joining.ALLOCATOR`); what others would run in a
process of its own, with the system's. Sections (`--only step,memory`), all at the paper's sizes on the
embedded digits, whose shapes are those of MNIST-SVHN-Text:

    step          one step of 256 samples against the same model as the authors' code trains it (torch's own
                  convolutions, channels first, one kernel after the other), with their allocator and with
                  ours, against MultiVae 1.0.3 on equal
                  networks and data, if it is installed, and against the machine's limit: the
                  step's floating-point operations at the rate of a large matrix product
    epoch         whole epochs, pairs drawn and batches made, against bare steps
    sizes         the cost of a sample by batch, content and style sizes
    packs         several trials trained as one against each alone, at the paper's sizes and at those of the
                  preset laptop, there also with an importance-weighted bound; one thread, as trials have
                  where there are enough of them
    precision     bfloat16 against float32
    memory        the peak of a training's process, and of what two that share a data set hold twice
    concurrency   two trainings of one thread at a time, and one of two, against one of one
    trials        the time between two trials of a study, in one reused process and under Ray Train

Evaluation, growth with modalities, the overhead of a thousand trials, reports and GPUs have scripts of
their own beside this one.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmjsd import data as datasets
from mmjsd.batches import Pairs
from mmjsd.config import ModelConfig, ObjectiveConfig, Precision, TrainingConfig
from mmjsd.data import ALPHABET
from mmjsd.model import MultimodalVae
from mmjsd.networks import LAPLACE_SCALE
from mmjsd.objective import draw, elbo
from mmjsd.train import Member, fit, fit_pack
from study import store
from study.config import PRESETS
from study.joining import ALLOCATOR

ROOT = Path(__file__).resolve().parents[1]
BATCH, ROUNDS, STEPS = 256, 7, 4
PAPER = ModelConfig(content_dim=20, style_dim=4)
SHARED = ModelConfig(content_dim=20, style_dim=0)
LAPTOP = PRESETS["laptop"]
SIZES = {
    "paper": (PAPER, BATCH),
    "laptop": (replace(PAPER, width=LAPTOP["model.width"]), LAPTOP["training.batch_size"]),
}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)

Step = Callable[[], object]
Figures = dict[str, float]


def main() -> None:
    """The command line."""
    sections = {
        each.__name__: each for each in (step, epoch, sizes, packs, precision, memory, concurrency, trials)
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(sections), help="sections, with commas between")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "run.json")
    parser.add_argument("--against", type=Path, help="an earlier run's file, to see what changed")
    arguments = parser.parse_args()
    if not ALLOCATOR.items() <= os.environ.items():  # read as a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    chosen = arguments.only.split(",")
    for name in chosen:
        if name not in sections:
            parser.error(f"unknown section {name!r}; choose among {', '.join(sections)}")
    old = json.loads(arguments.against.read_text()) if arguments.against else {}
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    found |= {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    for name in chosen:
        figures = {key: float(f"{value:.4g}") for key, value in sections[name]().items()}
        found[name] = {"date": datetime.now(UTC).date().isoformat(), **figures}
        for key, value in figures.items():
            before = old.get(name, {}).get(key)
            change = f"   {value / before:6.2f} x before" if before else ""
            sys.stdout.write(f"{name:12} {key:58} {value:9.4g}{change}\n")
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


def step() -> Figures:
    """Training steps against others' and against the limit; two threads."""
    torch.set_num_threads(2)
    data = Pairs(datasets.load("digits").splits["train"])
    objectives = {name: ObjectiveConfig(name=name) for name in ("mmjsd", "mopoe", "mvtcae")}
    steps = {
        "mmjsd": ours(data, PAPER, objectives["mmjsd"]),
        "plain mmjsd": elsewhere(plain, PAPER, objectives["mmjsd"]),
        "plain mmjsd, our allocator": plain(data, PAPER, objectives["mmjsd"]),
        "mopoe": ours(data, SHARED, objectives["mopoe"]),
        "mvtcae": ours(data, SHARED, objectives["mvtcae"]),
        "matrix product": matrix_product(),
    }
    if importlib.util.find_spec("multivae"):
        steps |= {f"multivae {name}": elsewhere(multivae, name) for name in ("mopoe", "mvtcae")}
    else:
        sys.stderr.write("MultiVae is not installed (pip install '.[peers]'): left out\n")
    seconds = in_turns(steps)
    operations = flops(data)
    limit_s = operations / (_PRODUCT_FLOPS / seconds["matrix product"])
    figures = {
        "MFLOP a sample": operations / BATCH / 1e6,
        "samples/s": BATCH / seconds["mmjsd"],
        "speed, plain = 1": seconds["plain mmjsd"] / seconds["mmjsd"],
        "speed, plain with our allocator = 1": seconds["plain mmjsd, our allocator"] / seconds["mmjsd"],
        "speed, the machine's limit = 1": limit_s / seconds["mmjsd"],
        "speed of plain, the machine's limit = 1": limit_s / seconds["plain mmjsd"],
    }
    for name in ("mopoe", "mvtcae"):
        if f"multivae {name}" in seconds:
            figures[f"speed of {name}, MultiVae's = 1"] = seconds[f"multivae {name}"] / seconds[name]
    return figures


def epoch() -> Figures:
    """Whole epochs against bare steps."""
    torch.set_num_threads(2)
    data = Pairs(datasets.load("digits").splits["train"])
    epochs = fit(build(PAPER), data, STEPS * BATCH, TrainingConfig(epochs=1_000_000), seed=0)
    bare = ours(data, PAPER, ObjectiveConfig())
    seconds = in_turns({"epoch": lambda: next(epochs), "bare": lambda: [bare() for _ in range(STEPS)]}, 1)
    return {"speed of an epoch, bare steps = 1": seconds["bare"] / seconds["epoch"]}


def sizes() -> Figures:
    """What a sample costs by batch, content and style, in turns; one thread."""
    torch.set_num_threads(1)
    data = Pairs(datasets.load("digits").splits["train"])
    configs = {f"batch {size}": (size, PAPER) for size in (32, 64, 256, 1024)}
    configs |= {f"content {size}": (BATCH, replace(PAPER, content_dim=size)) for size in (5, 64, 256)}
    configs |= {f"style {size}": (BATCH, replace(PAPER, style_dim=size)) for size in (0, 16, 64)}
    steps = {name: ours(data, config, ObjectiveConfig(), size) for name, (size, config) in configs.items()}
    seconds = in_turns(steps, 1)
    each = {name: seconds[name] / size for name, (size, _) in configs.items()}
    return {
        f"cost of a sample, {name}; batch 256, content 20, style 4 = 1": cost / each["batch 256"]
        for name, cost in each.items()
        if name != "batch 256"
    }


def packs() -> Figures:
    """Samples a second of a pack's trials together, those of one trial alone being 1; one thread."""
    torch.set_num_threads(1)
    styles = {f"{count}": [4] * count for count in (1, 2, 4, 8)} | {"4 of other subspaces": [0, 1, 4, 16]}
    some = {which: styles[which] for which in ("1", "4", "4 of other subspaces")}
    weighted = ObjectiveConfig(name="mmvae", importance_samples=12)
    figures = {}
    for name, sizes in SIZES.items():
        gains = _gains_of_packs(*sizes, ObjectiveConfig(), styles)
        figures |= {f"pack of {which}, {name} sizes; one alone = 1": gain for which, gain in gains.items()}
    gains = _gains_of_packs(*SIZES["laptop"], weighted, some)
    return figures | {f"pack of {which}, 12 draws; one alone = 1": gain for which, gain in gains.items()}


def _gains_of_packs(
    config: ModelConfig, size: int, objective: ObjectiveConfig, styles: Mapping[str, Sequence[int]]
) -> Figures:
    data = Pairs(datasets.load("digits").splits["train"])
    training = TrainingConfig(epochs=1_000_000, batch_size=size)
    runs = {
        which: fit_pack(
            [
                Member(build(replace(config, style_dim=style), objective), training, seed)
                for seed, style in enumerate(each)
            ],
            data,
            STEPS * size,
        )
        for which, each in styles.items()
    }
    seconds = in_turns({which: partial(next, run) for which, run in runs.items()}, 1)
    costs = {which: seconds[which] / len(each) for which, each in styles.items()}
    return {which: costs["1"] / costs[which] for which in [*styles][1:]}


def precision() -> Figures:
    """Samples a second in bfloat16, those in float32 being 1."""
    data = Pairs(datasets.load("digits").splits["train"])
    figures = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, (config, size) in SIZES.items():
            runs = {
                kind: fit(
                    build(config),
                    data,
                    STEPS * size,
                    TrainingConfig(epochs=1_000_000, batch_size=size, precision=kind),
                    seed=0,
                )
                for kind in get_args(Precision)
            }
            seconds = in_turns({kind: partial(next, run) for kind, run in runs.items()}, 1)
            gain = seconds["float32"] / seconds["bfloat16"]
            figures[f"bfloat16, {name} sizes, {threads} threads; float32 = 1"] = gain
    return figures


def memory() -> Figures:
    """Peaks of fresh processes, and what two share."""
    figures = {
        f"peak of training above what was held before, batch {size}, MiB": in_process(_peak, size)
        for size in (32, 256, 1024)
    }
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(3), context.Event()
    processes = [context.Process(target=_hold, args=(ready, done)) for _ in range(2)]
    for process in processes:
        process.start()
    ready.wait()
    held = [psutil.Process(process.pid).memory_maps() for process in processes]
    done.set()
    mapped = [[each for each in maps if each.path.endswith(".npy")] for maps in held]
    whole = sum(each.rss for each in mapped[0]) / 2**20
    shared = sum(each.pss for maps in mapped for each in maps) / 2**20
    return figures | {
        "data set faces in one process, MiB": whole,
        "the same held by two processes, one's = 1": shared / whole,
    }


def concurrency() -> Figures:
    """Samples a second of trainings at a time, those of one with one thread being 1."""
    alone, both, two = together(1, 1), together(2, 1), together(1, 2)
    return {"two of one thread, one = 1": both / alone, "one of two threads, one of one = 1": two / alone}


def trials() -> Figures:
    """Seconds between the end of a trial and the start of the next one's training, medians."""
    figures = {}
    for name, options in (("in one process", ()), ("under Ray Train, 2 workers", ("--workers", "2"))):
        with tempfile.TemporaryDirectory() as folder:
            command = (sys.executable, "study/run.py", "--space", "smoke", "--replicates", "4")
            one = ("--max-concurrent", "1", "--out", f"{folder}/smoke", *options)
            subprocess.run([*command, *one], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            rows = sorted(store.ended_trials(Path(folder) / "smoke"), key=lambda row: row["started_at"])
        gaps = [(then["started_at"] - row["finished_at"]).total_seconds() for row, then in pairwise(rows)]
        figures[f"seconds between trials {name}"] = statistics.median(gaps)
    return figures


def in_turns(steps: Mapping[str, Step], count: int = STEPS) -> dict[str, float]:
    """Median seconds of a step of each, taken in turns; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1 + ROUNDS):
        for name, take in steps.items():
            begin = time.perf_counter()
            for _ in range(count):
                take()
            if number:
                taken[name].append((time.perf_counter() - begin) / count)
    return {name: statistics.median(each) for name, each in taken.items()}


def build(config: ModelConfig, objective: ObjectiveConfig | None = None) -> MultimodalVae:
    """A model for the digits, always with the same parameters."""
    torch.manual_seed(0)
    return MultimodalVae(datasets.DATASETS["digits"].modalities, config, objective or ObjectiveConfig())


def ours(data: Pairs, config: ModelConfig, objective: ObjectiveConfig, size: int = BATCH) -> Step:
    """A step as `mmjsd.train` takes it, on a batch that is there."""
    model = build(config, objective).train()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    return _step(model, optimizer, data, size)


def plain(data: Pairs, config: ModelConfig, objective: ObjectiveConfig) -> Step:
    """A step of the same model by torch's own convolutions, channels first, the loss read after each."""
    model = build(config, objective).train().to(memory_format=torch.contiguous_format)
    for module in model.modules():
        for convolution in CONVOLUTIONS:
            if isinstance(module, convolution):
                module.__class__ = convolution
    take = _step(model, torch.optim.Adam(model.parameters()), data, BATCH)
    return lambda: take().item()


def _step(
    model: MultimodalVae, optimizer: torch.optim.Optimizer, data: Pairs, size: int
) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = data.draw(size, generator).batch(slice(0, size))

    def take() -> Tensor:
        optimizer.zero_grad()
        loss = elbo(model, batch.x, draw(model, size, generator)).loss.mean()
        loss.backward()
        optimizer.step()
        return loss

    return take


def elsewhere(make: Callable[..., Step], *arguments: Any) -> Step:
    """A step in a process of its own, with the system's allocator: `make(data, *arguments)`."""
    here, there = multiprocessing.Pipe()
    kept = {name: os.environ.pop(name) for name in ALLOCATOR}
    context = multiprocessing.get_context("spawn")
    context.Process(target=_serve, args=(there, make, arguments), daemon=True).start()
    os.environ |= kept
    here.recv()

    def take() -> None:
        here.send(None)
        here.recv()

    return take


def _serve(pipe: Any, make: Callable[..., Step], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(2)
    take = make(Pairs(datasets.load("digits").splits["train"]), *arguments)
    with suppress(EOFError):  # who asked has ended
        while True:
            pipe.send(None)
            pipe.recv()
            take()


def flops(data: Pairs) -> int:
    """Floating-point operations of a step, forward and backward, as torch's own layers need them."""
    take = plain(data, PAPER, ObjectiveConfig())
    with FlopCounterMode(display=False) as counter:
        take()
    return counter.get_total_flops()


_SIDE = 2_048
_PRODUCT_FLOPS = 2 * _SIDE**3


def matrix_product() -> Step:
    """A product of two large matrices."""
    factor = torch.ones(_SIDE, _SIDE)
    return lambda: factor @ factor


def multivae(data: Pairs, name: str) -> Step:
    """A step of MultiVae's model on our encoders and decoders, as its trainer takes it."""
    from multivae.data.datasets.base import DatasetOutput
    from multivae.models import MVTCAE, MoPoE, MoPoEConfig, MVTCAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self, network: nn.Module, head: nn.Module) -> None:
            super().__init__()
            self.network, self.head, self.latent_dim = network, head, SHARED.content_dim

        def forward(self, x: Tensor) -> Any:
            mu, logvar = self.head(self.network(x)).chunk(2, dim=-1)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.latent_dim = network, SHARED.content_dim

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z))

    parts = build(SHARED).to(memory_format=torch.contiguous_format)
    kinds = {spec.name: spec.kind for spec in parts.specs}
    images = [each for each, kind in kinds.items() if kind == "image"]
    config = (MoPoEConfig if name == "mopoe" else MVTCAEConfig)(
        n_modalities=len(kinds),
        latent_dim=SHARED.content_dim,
        input_dims={spec.name: spec.shape for spec in parts.specs},
        decoders_dist={each: "laplace" if kind == "image" else "categorical" for each, kind in kinds.items()},
        decoder_dist_params={each: {"scale": LAPLACE_SCALE} for each in images},
    )
    model = (MoPoE if name == "mopoe" else MVTCAE)(
        config,
        encoders={each: Encoder(parts.encoders[each], parts.heads[each]) for each in kinds},
        decoders={each: Decoder(parts.decoders[each]) for each in kinds},
    )
    optimizer = torch.optim.Adam(model.parameters())
    batch = data.draw(BATCH, torch.Generator().manual_seed(0)).batch(slice(0, BATCH))
    one_hot = nn.functional.one_hot
    values = {
        each: x if kinds[each] == "image" else {"tokens": x, "one_hot": one_hot(x, len(ALPHABET)).float()}
        for each, x in batch.x.items()
    }
    # Our encoder of words takes the characters' numbers; their likelihood of words takes indicators.
    model.encoders["text"].forward = _of_tokens(model.encoders["text"].forward)
    inputs = DatasetOutput(data=values)

    def take() -> None:
        optimizer.zero_grad()
        loss = model(inputs).loss
        loss.backward()
        optimizer.step()
        loss.item()

    return take


def _of_tokens(forward: Callable[[Tensor], Any]) -> Callable[[Mapping[str, Tensor]], Any]:
    return lambda values: forward(values["tokens"])


def in_process(target: Callable[..., None], *arguments: Any) -> float:
    """What a fresh process puts into its queue."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=target, args=(results, *arguments))
    process.start()
    result: float = results.get()
    process.join()
    return result


def _peak(results: Any, size: int) -> None:
    """By how much the peak of memory while training is above what is held before."""
    data = Pairs(datasets.load("digits").splits["train"])
    epochs = fit(build(PAPER), data, 4 * size, TrainingConfig(epochs=1, batch_size=size), seed=0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far (Linux)
    before = psutil.Process().memory_info().rss
    next(epochs)
    status = Path("/proc/self/status").read_text()
    peak = 1_024 * int(status.partition("VmHWM:")[2].split()[0])
    results.put((peak - before) / 2**20)


def _hold(ready: Any, done: Any) -> None:
    pairs = Pairs(datasets.load("faces").splits["train"])
    touched = [int(values.sum()) for values in pairs.values.values()]
    ready.wait()
    done.wait()
    del touched


def together(count: int, threads: int) -> float:
    """Samples a second of so many trainings of as many threads each, all at a time."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(count), context.Queue()
    processes = [context.Process(target=_train, args=(ready, results, threads)) for _ in range(count)]
    with mock.patch.dict(os.environ, OMP_NUM_THREADS=str(threads)):  # read as a process starts
        for process in processes:
            process.start()
    rate = sum(results.get() for _ in processes)
    for process in processes:
        process.join()
    return rate


def _train(ready: Any, results: Any, threads: int, seconds: float = 10.0) -> None:
    torch.set_num_threads(threads)
    data = Pairs(datasets.load("digits").splits["train"])
    epochs = fit(build(PAPER), data, 2 * BATCH, TrainingConfig(epochs=1_000_000), seed=0)
    next(epochs)
    ready.wait()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        count += next(epochs).num_samples
    results.put(count / (time.perf_counter() - begin))


if __name__ == "__main__":
    main()
