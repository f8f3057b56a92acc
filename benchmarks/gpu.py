"""How fast a GPU trains: one trial, packs of replicates, and as many processes, by the paper's networks.

Run:    python benchmarks/gpu.py --out benchmarks/gpu.json      (minutes; needs no Ray)

`eager` is a plain training loop as the authors' code has it: float32, channels first, kernels launched one by
one, the loss read after each step. All else is `mmjsd.train.fit_pack`, whose steps are CUDA graphs. Images
are noise: speed does not depend on what they show.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmjsd.batches import Pairs
from mmjsd.config import ModelConfig, ObjectiveConfig, Precision, TrainingConfig
from mmjsd.data import ALPHABET, DATASETS, Examples
from mmjsd.model import MultimodalVae
from mmjsd.objective import draw, elbo
from mmjsd.train import DivergedError, Member, fit_pack

BATCH = 256
PACKS = (1, 2, 4, 8, 16, 32, 64)
PROCESSES = (4, 16)
BATCHES = (32, 64, 256, 1024, 4096)
SPECS = DATASETS["digits"].modalities


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        parser.error("expected a CUDA device, found none; run this on a machine with a GPU")
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name, value in measure():
        found[name] = value
        sys.stdout.write(f"{name:50} {value:,.1f}\n")
        out.write_text(json.dumps(found, indent=2) + "\n")


def measure() -> Iterator[tuple[str, float]]:
    """Samples a second of everything, and gigabytes of memory, by name."""
    data = noise()
    yield "eager float32, batch 256", eager(data)
    for size in PACKS:
        yield from named(f"pack of {size} bfloat16, batch 256", data, size, BATCH, "bfloat16")
    for count in PROCESSES:
        yield f"{count} processes bfloat16, batch 256: samples/s", in_processes(count)
    for size in (4, 16):
        yield from named(f"pack of {size} float32, batch 256", data, size, BATCH, "float32")
        yield from named(f"pack of {size} bfloat16, batch 32", data, size, 32, "bfloat16")
    for precision in ("float32", "bfloat16"):
        for batch in BATCHES:
            yield from named(f"one trial {precision}, batch {batch}", data, 1, batch, precision)
    for name in ("mvae", "mmvae", "mopoe", "mvtcae"):
        yield from named(
            f"pack of 4 {name}, batch 256", data, 4, BATCH, "bfloat16", ObjectiveConfig(name=name)
        )


def named(what: str, *arguments: Any) -> Iterator[tuple[str, float]]:
    """What `packed` finds, by name."""
    rate, memory = packed(*arguments)
    yield f"{what}: samples/s", rate
    yield f"{what}: GiB", memory


def packed(
    data: Pairs,
    size: int,
    batch: int,
    precision: Precision,
    objective: ObjectiveConfig | None = None,
    seconds: float = 1.0,
) -> tuple[float, float]:
    """Samples a second of all members together, after a first epoch, and the peak of memory in GiB."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    training = TrainingConfig(epochs=1_000, batch_size=batch, precision=precision)
    members = [Member(model(seed, objective), training, seed) for seed in range(size)]
    steps, taken, spent = 50, 0, 0.0
    for number, shown in enumerate(fit_pack(members, data, steps * batch)):
        for epoch in shown:
            if isinstance(epoch, DivergedError):
                raise epoch
            taken += epoch.num_samples * (number > 0)
            spent += epoch.wall_s * (number > 0)
        if spent > seconds:
            break
    return taken / spent, torch.cuda.max_memory_allocated() / 2**30


def eager(data: Pairs) -> float:
    """Samples a second of a plain loop."""
    vae = model(0).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(vae.parameters())
    generator = torch.Generator(data.device).manual_seed(0)
    samples = data.draw(60 * BATCH, generator)
    started = 0.0
    for step in range(60):
        if step == 10:
            started = time.perf_counter()
        batch = samples.batch(slice(step * BATCH, (step + 1) * BATCH))
        optimizer.zero_grad()
        loss = elbo(vae, batch.x, draw(vae, BATCH, generator)).loss.mean()
        loss.backward()
        optimizer.step()
        loss.item()
    return 50 * BATCH / (time.perf_counter() - started)


def in_processes(count: int) -> float:
    """Samples a second of as many processes, each with one trial, all together."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(count)
    with context.Manager() as manager:
        rates = manager.list()
        processes = [context.Process(target=_one, args=(ready, rates)) for _ in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if len(rates) < count:
            raise RuntimeError(f"{count - len(rates)} of {count} processes failed")
        return sum(rates)


def _one(ready: Any, rates: Any) -> None:
    data = noise()
    packed(data, 1, BATCH, "bfloat16", seconds=0.1)
    ready.wait(timeout=60)
    rates.append(packed(data, 1, BATCH, "bfloat16", seconds=3.0)[0])


def model(seed: int, objective: ObjectiveConfig | None = None) -> MultimodalVae:
    """A model of the paper's sizes on the GPU."""
    torch.manual_seed(seed)
    return MultimodalVae(SPECS, ModelConfig(), objective or ObjectiveConfig()).cuda()


def noise() -> Pairs:
    """Random images and words of ten classes on the GPU."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 600)
    tops = {"text": len(ALPHABET)}
    return Pairs(
        {
            spec.name: Examples(
                rng.integers(0, tops.get(spec.kind, 256), (len(labels), *spec.shape)).astype(np.uint8), labels
            )
            for spec in SPECS
        },
        "cuda",
    )


if __name__ == "__main__":
    main()
