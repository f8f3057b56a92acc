"""Checks a Ray cluster that runs, from inside each of its nodes."""

import hashlib
import importlib.util
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.findings import CheckError, Finding

PACKAGES = ("ray", "torch", "torchvision", "optuna", "numpy", "pyarrow", "pydantic", "safetensors")
"""Those whose versions have to be equal on all nodes."""

CODE = ("mmjsd", "study", "search_spaces")
"""Packages of the project whose files have to be equal on all nodes."""

TIMEOUT_S = 120.0
"""For what a node is asked; starting a process that imports torch takes a few seconds."""

MAX_SKEW_S = 2.0
"""Clocks that differ by more mix up the times in tables and logs; by 15 minutes, S3 refuses every request."""

MIN_FREE_GB = 10.0
"""Free on each node's disks, for data, logs and what Ray spills."""

_ELEMENTS = 2**20
"""Of the float32 tensor that nodes reduce: 4 MiB, as much as the gradients of a model at full width."""


@dataclass(frozen=True)
class Node:
    """A node that is alive, and the process on it that answers."""

    name: str
    node_id: str
    gpus: int
    probe: Any


class Probe:
    """What one node says of itself; runs there."""

    def facts(self) -> dict[str, Any]:
        """Versions, code, disks, and whether a token is asked for."""
        from ray._private.authentication.authentication_utils import is_token_auth_enabled

        versions = {"python": ".".join(map(str, sys.version_info[:3]))}
        for package in PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                versions[package] = "missing"
        disks = {
            str(path): shutil.disk_usage(path).free / 1e9
            for path in (Path(tempfile.gettempdir()), Path.home())
            if path.exists()
        }
        return {
            "versions": versions,
            "code": self._code(),
            "free_gb": disks,
            "has_token": is_token_auth_enabled(),
        }

    def _code(self) -> str:
        """A digest of the project's files as this node would import them; "missing" without them."""
        digest = hashlib.sha256()
        for package in CODE:
            spec = importlib.util.find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                return "missing"
            root = Path(spec.submodule_search_locations[0])
            for file in sorted(root.rglob("*.py")):
                digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:12]

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def free_address(self) -> str:
        """Where a process of this node can be reached by the others."""
        with socket.socket() as opened:
            opened.bind(("", 0))
            port = opened.getsockname()[1]
        return f"tcp://{ray.util.get_node_ip_address()}:{port}"

    def write(self, out: str, name: str) -> None:
        """Write a small file where studies will."""
        from study.files import Bucket, is_url

        if is_url(out):
            Bucket(out).write(name, self.content(name))
        else:
            Path(out).mkdir(parents=True, exist_ok=True)
            (Path(out) / name).write_bytes(self.content(name))

    def remove(self, out: str, name: str) -> None:
        """Remove what `write` wrote, if it did."""
        from study.files import Bucket, is_url

        if is_url(out):
            Bucket(out).remove([name])
        else:
            (Path(out) / name).unlink(missing_ok=True)

    def content(self, name: str) -> bytes:
        """What `write` writes."""
        return f"written by {name}\n".encode()

    def reduce(self, address: str, rank: int, size: int, backend: str) -> tuple[bool, float]:
        """Sum a tensor over all nodes, twice; whether the sum is right, and the second time's seconds."""
        import torch
        from torch import distributed

        device = "cuda" if backend == "nccl" else "cpu"
        distributed.init_process_group(backend, init_method=address, rank=rank, world_size=size)
        try:
            expected = torch.full((_ELEMENTS,), size * (size + 1) / 2, device=device)
            for _ in range(2):
                tensor = torch.full((_ELEMENTS,), rank + 1.0, device=device)
                started = time.perf_counter()
                distributed.all_reduce(tensor)
                is_right = bool((tensor == expected).all())  # waits for the device
                seconds = time.perf_counter() - started
            return is_right, seconds
        finally:
            distributed.destroy_process_group()

    def gpus(self) -> list[str]:
        """The GPUs that torch can use, by trying each."""
        import torch

        names = []
        for index in range(torch.cuda.device_count()):
            square = torch.ones(64, 64, device=f"cuda:{index}")
            if float((square @ square).sum()) == 64.0**3:
                names.append(torch.cuda.get_device_name(index))
        return names


def check_cluster(address: str, out: str | None = None) -> Iterator[Finding]:
    """Every check of the cluster at an address; `out` is where its studies will write.

    Raises:
        CheckError: if there is no cluster, or `out` lies in the home of a user that is none, or in a folder
            that Ray deletes.
    """
    from study.files import is_url

    if out is not None and not is_url(out):
        try:
            out = str(Path(out).expanduser().absolute())  # a node's own folder is another
        except RuntimeError as error:
            raise CheckError(f"cannot find {out}: {error}; choose another --out") from None
        if "working_dir_files" in Path(out).parts:  # where Ray unpacks the code of jobs
            raise CheckError(
                "--out would lie in the folder of this job's code, which Ray deletes; give it an absolute "
                "path that every node sees"
            )
    started_here = not ray.is_initialized()
    if started_here:
        _join(address)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes' own copies may differ
    try:
        yield from _check(out)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        if started_here:
            ray.shutdown()


def _join(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # where nothing listens, Ray itself would go on trying for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise CheckError(
            f"no Ray cluster answers at {address}, or none that takes this token: {_first_line(error)}"
        ) from None


def _check(out: str | None) -> Iterator[Finding]:
    nodes = list(_nodes())
    facts, problems = _ask(nodes, lambda node: node.probe.facts.remote())
    yield Finding("nodes", tuple(problems), f"{len(nodes)}: {', '.join(node.name for node in nodes)}")
    if problems:
        return
    yield _versions(facts)
    yield _code(facts)
    yield _token(facts)
    yield _disks(facts)
    yield _clocks(nodes)
    if out is not None:
        yield _storage(nodes, out)
    # The last that these processes are asked, as one that is stuck answers no more.
    yield _all_reduce(nodes, "gloo")
    _end(nodes)
    gpus = _gpus(nodes)
    yield gpus
    if any(node.gpus for node in nodes) and not gpus.problems:
        holders = _with_their_gpus(nodes)
        yield _all_reduce(holders, "nccl")
        _end(holders)


def _nodes() -> Iterator[Node]:
    """The nodes that are alive, each with a process that takes no resources of a study."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    for node in sorted(alive, key=lambda node: str(node["NodeManagerHostname"])):
        name = f"{node['NodeManagerHostname']} ({node['NodeID'][:6]})"
        gpus = int(node["Resources"].get("GPU", 0))
        yield Node(name, node["NodeID"], gpus, _start(node["NodeID"], 0))


def _start(node_id: str, gpus: int) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return ray.remote(Probe).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=strategy).remote()


def _ask(nodes: Sequence[Node], question: Callable[[Node], Any]) -> tuple[dict[str, Any], list[str]]:
    """Each node's answer by its name, and a sentence for each that has none."""
    asked = {node.name: question(node) for node in nodes}
    answers, problems = {}, []
    deadline = time.monotonic() + TIMEOUT_S
    for name, reference in asked.items():
        try:
            answers[name] = ray.get(reference, timeout=max(0.1, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            problems.append(f"{name} has not answered within {TIMEOUT_S:g} s")
        except (ray.exceptions.RayError, OSError, ValueError) as error:
            cause = getattr(error, "cause", None) or error
            problems.append(f"{name}: {_first_line(cause)}")
    return answers, problems


def _versions(facts: Mapping[str, Mapping[str, Any]]) -> Finding:
    first, *others = facts
    expected = facts[first]["versions"]
    problems = [
        f"{name} has {package} {found}, {first} has {expected[package]}"
        for name in others
        for package, found in facts[name]["versions"].items()
        if found != expected[package]
    ]
    missing = [package for package, found in expected.items() if found == "missing"]
    if missing:
        problems.append(f"{first} lacks {', '.join(missing)}; run cluster/setup.sh on every node")
    return Finding(
        "versions",
        tuple(problems),
        f"Python {expected['python']}, ray {expected['ray']}, torch {expected['torch']}",
    )


def _code(facts: Mapping[str, Mapping[str, Any]]) -> Finding:
    first, *others = facts
    digest = facts[first]["code"]
    problems = [
        f"{name} has other code of the project ({facts[name]['code']}) than {first} ({digest}); "
        "submit with --working-dir, or bring it by `ray up`"
        for name in others
        if facts[name]["code"] != digest
    ]
    if digest == "missing":
        problems.append(f"{first} has no code of the project; submit with --working-dir")
    return Finding("code", tuple(problems), digest)


def _token(facts: Mapping[str, Mapping[str, Any]]) -> Finding:
    problems = (
        f"{name} asks for no token, so whoever reaches its ports runs code; set RAY_AUTH_MODE=token"
        for name, each in facts.items()
        if not each["has_token"]
    )
    return Finding("token", tuple(problems))


def _disks(facts: Mapping[str, Mapping[str, Any]]) -> Finding:
    free = [(gb, name, path) for name, each in facts.items() for path, gb in each["free_gb"].items()]
    problems = [
        f"{name} has {gb:.1f} GB free at {path}; expected {MIN_FREE_GB:g} or more"
        for gb, name, path in free
        if gb < MIN_FREE_GB
    ]
    return Finding("disk", tuple(problems), f"{min(free)[0]:.0f} GB free on {min(free)[1]}, the fullest")


def _clocks(nodes: Sequence[Node]) -> Finding:
    """How far each node's clock is from ours, as far as the time that asking takes lets that be known."""
    problems: list[str] = []
    worst = 0.0
    for node in nodes:
        sent = time.time()
        answers, silent = _ask([node], lambda node: node.probe.clock.remote())
        received = time.time()
        problems += silent
        for there in answers.values():
            skew = max(sent - there, there - received, 0.0)
            worst = max(worst, skew)
            if skew > MAX_SKEW_S:
                problems.append(
                    f"{node.name}'s clock is off by {skew:.1f} s; expected at most {MAX_SKEW_S:g}"
                )
    return Finding("clocks", tuple(problems), f"at most {worst:.3f} s apart, for all that can be told")


def _gpus(nodes: Sequence[Node]) -> Finding:
    """Whether torch can use the GPUs that Ray hands out; those that a study holds make it wait."""
    holders = _with_their_gpus(nodes)
    found, silent = _ask(holders, lambda node: node.probe.gpus.remote())
    _end(holders)
    problems = [f"{each}; do its GPUs work, and does no study hold them?" for each in silent]
    for node in holders:
        if node.name in found and len(found[node.name]) != node.gpus:
            usable = len(found[node.name])
            problems.append(f"{node.name} has {node.gpus} GPUs for Ray, of which torch can use {usable}")
    kinds = sorted({kind for each in found.values() for kind in each})
    count = sum(node.gpus for node in holders)
    return Finding("GPUs", tuple(problems), f"{count}: {', '.join(kinds)}" if holders else "none")


def _all_reduce(nodes: Sequence[Node], backend: str) -> Finding:
    """Whether the nodes can add up tensors, as data-parallel training does after each step."""
    check = f"all-reduce by {backend}"
    if len(nodes) < 2:
        return Finding(check, (), "needs two nodes")
    addresses, problems = _ask(nodes[:1], lambda node: node.probe.free_address.remote())
    if problems:
        return Finding(check, tuple(problems))
    (address,) = addresses.values()
    ranks = {node.name: rank for rank, node in enumerate(nodes)}
    found, problems = _ask(
        nodes, lambda node: node.probe.reduce.remote(address, ranks[node.name], len(nodes), backend)
    )
    problems += [f"{name} got a wrong sum" for name, (is_right, _) in found.items() if not is_right]
    slowest = max((seconds for _, seconds in found.values()), default=0.0)
    return Finding(check, tuple(problems), f"{1000 * slowest:.1f} ms for 4 MiB over {len(nodes)} nodes")


def _storage(nodes: Sequence[Node], out: str) -> Finding:
    """Whether every node can write where studies will, and this one reads what they wrote."""
    from study.files import Bucket, FilesError, is_url

    names = {node.name: f".check-{node.node_id}" for node in nodes}
    written, problems = _ask(nodes, lambda node: node.probe.write.remote(out, names[node.name]))
    try:
        for node in written:
            name = names[node]
            if is_url(out):
                content = Bucket(out).read(name)
            else:
                content = (Path(out) / name).read_bytes() if (Path(out) / name).exists() else None
            if content != Probe().content(name):
                problems.append(f"{node} writes to {out}, and what it wrote is not there for this node")
    except (FilesError, OSError) as error:
        problems.append(_first_line(error))
    _, left = _ask(nodes, lambda node: node.probe.remove.remote(out, names[node.name]))
    return Finding("storage", tuple(problems or left), out)


def _with_their_gpus(nodes: Sequence[Node]) -> list[Node]:
    """The nodes that have GPUs, each with a further process that holds them all."""
    having = [node for node in nodes if node.gpus]
    return [replace(node, probe=_start(node.node_id, node.gpus)) for node in having]


def _end(nodes: Sequence[Node]) -> None:
    for node in nodes:
        ray.kill(node.probe)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
