"""What is refused before anything starts: options that exclude each other, and what is not to be had here."""

import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path

from mmjsd.config import require
from study.config import (
    LATE_OBJECTIVES,
    OF_CLASSES,
    OF_SEVERAL,
    Sampler,
    StudyConfig,
    TrialConfig,
    is_measured,
)
from study.preview import plural
from study.space import Cases, Choice, SearchSpace

_UNPACKED = "working_dir_files"
"""The folder in which Ray unpacks the code of jobs, and from which it deletes that again."""


def check_objectives(
    options: StudyConfig, sampler: Sampler, base: TrialConfig, trained: Sequence[TrialConfig]
) -> None:
    """Refuse what several objectives, one that is measured late, or the data set rule out."""
    has_one = len(base.modalities) == 1
    for name in options.objectives:
        samples = "attributes and no class" if name in OF_CLASSES else "a class and no attributes"
        reason = (
            "which has one modality" if has_one and name in OF_SEVERAL else f"whose samples have {samples}"
        )
        told = f"{name} is not measured on {base.data.name}, {reason}; choose other --objectives"
        require(is_measured(name, base), told)
    several, scheduler = len(options.objectives) > 1, options.scheduler
    require(
        not (several and sampler == "cmaes"),
        "--sampler cmaes seeks one objective; choose another sampler, or name one of the --objectives",
    )
    require(
        not (several and scheduler != "none"),
        f"--scheduler {scheduler} judges by one objective; leave it out, or name one of the --objectives",
    )
    require(
        not (several and options.confirm),
        "--confirm ranks by one objective; leave it out, or name one of the --objectives",
    )
    for late in LATE_OBJECTIVES.intersection(options.objectives):
        require(
            scheduler == "none",
            f"{late} is measured after the last epoch alone, too late for --scheduler {scheduler}; "
            "leave it out, or choose other --objectives",
        )
        for config in trained:
            draws = config.evaluation.importance_samples
            require(draws > 0, f"{late} needs evaluation.importance_samples >= 1, got {draws}")


def check_scheduler(options: StudyConfig, tried: Sequence[TrialConfig]) -> None:
    """Refuse a scheduler that would never be asked: a trial's last evaluation stops nothing."""
    is_asked = any(config.evaluation.every < config.training.epochs for config in tried)
    every, epochs = tried[0].evaluation.every, plural(tried[0].training.epochs, "epoch")
    require(
        options.scheduler == "none" or is_asked,
        f"--scheduler {options.scheduler} stops configs between evaluations, but evaluation.every {every} "
        f"leaves only that of the last of {epochs}; choose a smaller --evaluation.every, or leave it out",
    )


def check_sampler(sampler: Sampler, space: SearchSpace) -> list[str]:
    """Refuse CMA-ES where no field is a number: there it would be a random search.

    Returns:
        What the sampler draws at random in a space that has numbers too.
    """
    if sampler != "cmaes":
        return []
    unordered = [name for name, domain in space.domains.items() if isinstance(domain, (Choice, Cases))]
    require(
        len(unordered) < len(space.domains),
        "--sampler cmaes seeks among numbers, of which the space varies none; choose tpe, or leave it out",
    )
    return unordered


def check_machine(options: StudyConfig, gpus_per_worker: float, num_gpus: int) -> None:
    """Refuse a Ray that cannot be had here, and workers for which this machine has no room.

    Which room a cluster has shows when it is joined.
    """
    if options.address:
        require(
            not options.address.startswith("ray://"),
            f"--address {options.address} is Ray's client, through which no study can run; give HOST:PORT of "
            "the head on a machine of the cluster, or submit a job",
        )
        return
    is_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    require(not is_job, "this is a job of a Ray cluster; add --address auto")
    workers, cores = options.workers, os.cpu_count() or 1
    advice = "take fewer, or join a cluster with --address"
    cpus, gpus = plural(cores, "CPU"), plural(num_gpus, "GPU")
    need = plural(workers * gpus_per_worker, "GPU")
    require(workers <= cores, f"--workers {workers} is more than this machine's {cpus}; {advice}")
    has_room = workers * gpus_per_worker <= num_gpus
    require(has_room, f"the workers need {need}, this machine has {gpus}; {advice}")


def check_workers(workers: int, trained: Sequence[TrialConfig]) -> None:
    """Refuse batches and evaluations of which each worker cannot have a share."""
    for config in trained:
        num_samples, batch_size = config.evaluation.num_samples, config.training.batch_size
        require(
            num_samples >= workers,
            f"evaluation.num_samples {num_samples} are too few for {workers} workers; "
            "raise it, or take fewer --workers",
        )
        require(
            batch_size % workers == 0,
            f"training.batch_size {batch_size} does not split evenly over {workers} workers",
        )


def check_kept(out: Path | None, storage: str | None) -> None:
    """Refuse to keep a study's folder, or its database, where it goes: with a job's code, or in memory."""
    require(
        not re.match(r"sqlite(\+\w+)?://(/?$|.*:memory:)", storage or ""),
        "--storage keeps SQLite's database in memory, where it is lost when the study ends; name a file, "
        "such as sqlite:///study.db",
    )
    places = {"--storage": storage or "", "--out": str(out or "")}
    for option, place in places.items():
        require(
            _UNPACKED not in place.split("/"),
            f"{option} would lie in the folder of this job's code, which Ray deletes; give it an absolute "
            "path that every node sees",
        )


def check_reachable(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto" and other names that Ray resolves
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {address} ({error}); check --address") from None
