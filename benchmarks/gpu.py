"""How fast a GPU trains: one trial, packs of replicates, and as many processes, by the paper's networks.

Run:    python benchmarks/gpu.py                     (minutes, on a machine with a GPU; needs no Ray)
        python benchmarks/gpu.py --draw              (anywhere: table and figure of what was measured)

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
from datetime import UTC, datetime
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
BATCHES = (32, 64, 1024, 4096)
OBJECTIVES = ("mvae", "mmvae", "mopoe", "mvtcae")
SPECS = DATASETS["digits"].modalities
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measure and store, or draw what was stored."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu.json")
    parser.add_argument("--draw", action="store_true", help="write the figure beside --out, print the table")
    arguments = parser.parse_args()
    if arguments.draw:
        show(arguments.out)
        return
    if not torch.cuda.is_available():
        parser.error("expected a CUDA device, found none; run this on a machine with a GPU")
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "rows": [],
    }
    for row in measure():
        found["rows"].append(row)
        sys.stdout.write(json.dumps(row) + "\n")
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def measure() -> Iterator[dict[str, Any]]:
    """What trains how, samples a second of all members together, and the peak of memory."""
    data = noise()
    yield _row("eager", 1, BATCH, "float32", eager(data))
    for size in PACKS:
        yield _row("pack", size, BATCH, "bfloat16", *packed(data, size, BATCH, "bfloat16"))
    for count in PROCESSES:
        yield _row("processes", count, BATCH, "bfloat16", in_processes(count))
    for size in (1, 4, 16):
        yield _row("pack", size, BATCH, "float32", *packed(data, size, BATCH, "float32"))
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        for batch in BATCHES:
            yield _row("pack", 1, batch, precision, *packed(data, 1, batch, precision))
    for size in (4, 16):
        yield _row("pack", size, 32, "bfloat16", *packed(data, size, 32, "bfloat16"))
    for name in OBJECTIVES:
        found = packed(data, 4, BATCH, "bfloat16", ObjectiveConfig(name=name))
        yield _row("pack", 4, BATCH, "bfloat16", *found, objective=name)


def _row(
    how: str,
    trials: int,
    batch: int,
    precision: Precision,
    rate: float,
    memory: float | None = None,
    objective: str = "mmjsd",
) -> dict[str, Any]:
    return {
        "how": how,
        "trials": trials,
        "batch": batch,
        "precision": precision,
        "objective": objective,
        "samples_per_s": round(rate),
        "GiB": None if memory is None else round(memory, 2),
    }


def show(stored: Path) -> None:
    """Print the table of what was measured, and draw samples a second against the number of trials.

    What it imports, measuring does without.
    """
    import pandas as pd
    from matplotlib.ticker import FuncFormatter

    from analysis.drawing import PALETTE, save

    found = json.loads(stored.read_text())
    rows = pd.DataFrame(found["rows"])
    alike = rows[(rows.batch == BATCH) & (rows.objective == "mmjsd")]
    one = alike[(alike.how == "pack") & (alike.trials == 1) & (alike.precision == "bfloat16")]
    rows["x one"] = (rows.samples_per_s / int(one.samples_per_s.iloc[0])).round(2)
    sys.stdout.write(rows.to_string(index=False, na_rep="") + "\n")

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for colour, (name, group) in zip(PALETTE, alike.groupby(["how", "precision"]), strict=False):
            axes.plot(group.trials, group.samples_per_s, "o-", color=colour, label=", ".join(name))
        axes.set_xscale("log", base=2)
        axes.set_ylim(0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(f"trials at a time, batches of {BATCH} each")
        axes.set_ylabel("samples a second, all together")
        axes.legend()

    drawn = save("gpu", "Trials on one GPU", "", 3.4, paint)
    stored.with_suffix(".svg").write_text(drawn.svg, encoding="utf-8")


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
    ready.wait(timeout=300)
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
