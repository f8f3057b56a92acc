"""A server that speaks S3 on loopback, and a proxy before it that does to requests what networks do."""

import contextlib
import logging
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import requests
from moto.server import ThreadedMotoServer

from tests.nodes import free_port


class Server:
    """moto's S3, by its address; credentials are checked once `check_credentials` is called."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.port = self._moto.get_host_and_port()[1]
        self.address = f"127.0.0.1:{self.port}"

    def make_bucket(self, name: str) -> None:
        requests.put(f"http://{self.address}/{name}", timeout=10).raise_for_status()

    def check_credentials(self, after: float) -> None:
        """Let so many requests pass, then ask moto's identity service, which knows nobody."""
        answer = requests.post(f"http://{self.address}/moto-api/reset-auth", data=str(after), timeout=10)
        answer.raise_for_status()

    def stop(self) -> None:
        self.check_credentials(after=float("inf"))  # moto keeps that in the process, too
        self._moto.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with a bucket "studies"; modules share what they write, as moto keeps it in the process."""
    server = Server()
    server.make_bucket("studies")
    yield server
    server.stop()


@pytest.fixture
def credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a user whose S3 is that server."""
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{server.address}",
        "AWS_ACCESS_KEY_ID": f"of-nobody-{secrets.token_hex(8)}",
        "AWS_SECRET_ACCESS_KEY": f"of-nobody-{secrets.token_hex(8)}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


_GOOGLES = """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="studies").run()
"""


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    """The address of a server that speaks Google's protocol, with a bucket "studies"."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", _GOOGLES, str(port)], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
        process.kill()


class Proxy:
    """Passes connections on to a server; `fault` is what happens to the requests of new ones.

    "busy" answers 503, "stalled" never answers, "cut" ends the connection in the middle of what is sent.
    `count` limits how many connections suffer.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._fault: str | None = None
        self._count = 0
        self.suffered = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def fault(self, kind: str, count: int = 10**9) -> Iterator[None]:
        self.suffered = 0
        self._fault, self._count = kind, count
        with self._lock:
            for each in self._open:  # connections that a client would use again
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            self._fault = None

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            fault = self._fault if self.suffered < self._count else None
            self.suffered += fault is not None
            threading.Thread(target=self._serve, args=(client, fault), daemon=True).start()

    def _serve(self, client: socket.socket, fault: str | None) -> None:
        if fault == "busy":
            client.recv(2**16)
            client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            client.close()
            return
        if fault == "stalled":
            time.sleep(1.2)
            client.close()
            return
        server = socket.create_connection(("127.0.0.1", self._port))
        with self._lock:
            self._open |= {client, server}
        threading.Thread(target=self._pump, args=(server, client, None), daemon=True).start()
        self._pump(client, server, 1_000 if fault == "cut" else None)

    def _pump(self, source: socket.socket, sink: socket.socket, most: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while chunk := source.recv(2**16 if most is None else min(2**16, most - passed)):
                sink.sendall(chunk)
                passed += len(chunk)
                if most is not None and passed >= most:
                    break
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open -= {source, sink}
