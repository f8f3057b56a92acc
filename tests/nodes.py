"""Ray nodes that are processes of this machine, to be started, warned and killed; and what tells of them."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
RAY = Path(sys.executable).with_name("ray")


class Nodes:
    """A cluster whose nodes are processes here: a head that trains nothing, and three workers of one CPU."""

    WORKERS = 3

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        head = ("--head", f"--port={self.port}", f"--dashboard-port={self.dashboard}", "--num-cpus=0")
        self._start(*head, *self.head_options())
        for _ in range(self.WORKERS):
            self.add()

    def head_options(self) -> tuple[str, ...]:
        """Of `ray start`, besides."""
        return ()

    def program(self, _: Sequence[str]) -> list[str | Path]:
        """What starts a node with these options."""
        return [RAY, "start"]

    def add(self) -> None:
        """A further worker."""
        self._start(f"--address={self.address}", "--num-cpus=1")

    def preempt(self, process: subprocess.Popen[bytes]) -> None:
        """Warn of a worker's end and, fifteen seconds later, kill it, as a cloud does with spot machines."""
        number = self.processes.index(process)
        listed = "import json, ray; ray.init(logging_level='ERROR'); print(json.dumps(ray.nodes()))"
        told = self._say([sys.executable, "-c", listed], RAY_ADDRESS=self.address)
        (name,) = [
            node["NodeID"]
            for node in json.loads(told.splitlines()[-1])
            if f"{self.folder}/{number}/" in node["RayletSocketName"] and node["Alive"]
        ]
        warn = f"from cluster.spot import drain; drain({self.address!r}, {name!r}, 15.0)"
        self._say([sys.executable, "-c", warn], PYTHONPATH=str(ROOT))
        time.sleep(15)
        kill_tree(process)

    def _say(self, command: Sequence[str | Path], **settings: str) -> str:
        return subprocess.run(
            command,
            env={**self.environment, **settings},
            check=True,
            capture_output=True,
            text=True,
            timeout=100,
        ).stdout

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                kill_tree(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *options: str) -> None:
        number = len(self.processes)
        disk = f"--temp-dir={self.folder}/{number}"  # a node deletes a job's code when it no longer needs it
        own = ("--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}", disk)
        command = [*self.program(options), *options, *own, "--block", "--disable-usage-stats"]
        log = Path(self.folder, f"node{number}.log")
        with log.open("w") as opened:
            process = subprocess.Popen(
                command, env=self.environment, cwd="/tmp", stdout=opened, stderr=subprocess.STDOUT
            )
        self.processes.append(process)
        wait_for(lambda: "Ray runtime started" in log.read_text(), process)


def trains(node: subprocess.Popen[bytes]) -> bool:
    """Whether a worker of a trial runs on the node."""
    titles = [" ".join(child.cmdline()) for child in psutil.Process(node.pid).children(recursive=True)]
    return any("RayTrainWorker" in title for title in titles)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def names_below(process: subprocess.Popen[bytes]) -> list[str]:
    """The names of all that the process has started and that lives."""
    names = []
    for each in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            names.append(each.name())
    return names


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and all that it has started, Ray's own among them."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=20)
    process.wait()
