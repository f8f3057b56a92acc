"""A provider's notice that it takes a machine back: heard, whatever its metadata server does before."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from cluster import spot

ROOT = Path(__file__).resolve().parents[1]

NOTHING = (404, "")


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server that gives its answers in turn, the last for ever; and what it was asked."""
    monkeypatch.setattr(spot, "INTERVAL_S", 0.01)
    answers, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            asked.append((self.command, self.path, dict(self.headers)))
            self.answer(200, "a-token")

        def do_GET(self):
            asked.append((self.command, self.path, dict(self.headers)))
            self.answer(*(answers.pop(0) if len(answers) > 1 else answers[0]))

        def answer(self, code, text):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers, asked
    server.shutdown()


def test_of_aws_is_heard_once_there_is_one_with_the_seconds_that_are_left(metadata):
    address, answers, asked = metadata
    ends_at = (datetime.now(UTC) + timedelta(seconds=120)).strftime("%Y-%m-%dT%H:%M:%SZ")
    notice = json.dumps({"action": "terminate", "time": ends_at})
    answers += [NOTHING, NOTHING, (500, ""), (200, "{"), (200, "{}"), (200, "[]"), (200, notice)]
    assert spot.wait("aws", address) == pytest.approx(120, abs=5)
    put, get = asked[:2]
    assert put[:2] == ("PUT", "/latest/api/token")
    assert get[1] == "/latest/meta-data/spot/instance-action"
    assert {name.lower(): value for name, value in get[2].items()}["x-aws-ec2-metadata-token"] == "a-token"
    assert len(asked) == 14


def test_of_google_is_heard_once_there_is_one(metadata):
    address, answers, asked = metadata
    answers += [(200, "FALSE"), (503, ""), (200, "TRUE")]
    assert spot.wait("gcp", address) == 30
    assert [path for _, path, _ in asked] == ["/computeMetadata/v1/instance/preempted"] * 3
    assert {name.lower(): value for name, value in asked[0][2].items()}["metadata-flavor"] == "Google"


@pytest.mark.parametrize("name", ["gpu.yaml", "gcp.yaml"])
def test_starting_a_worker_ends_the_program_of_an_earlier_start_and_not_its_own_shell(tmp_path, name):
    """The command as Ray's launcher runs it, with Ray played; pkill tells what it would end."""
    settings = yaml.safe_load((ROOT / "cluster" / name).read_text())
    program = tmp_path / "mmjsd-study" / "cluster" / "spot.py"
    scripts, started, ended = tmp_path / "bin", tmp_path / "started", tmp_path / "ended"
    for folder in (program.parent, scripts, tmp_path / "mmjsd-venv" / "bin"):
        folder.mkdir(parents=True)
    program.write_text(f"import os, time; open('{started}', 'a').write(f'{{os.getpid()}} '); time.sleep(60)")
    (tmp_path / "mmjsd-venv" / "bin" / "activate").touch()
    (scripts / "python").symlink_to(sys.executable)
    for command, what in (("ray", "true"), ("pkill", f'pgrep -a "$@" >> {ended}')):
        (scripts / command).write_text(f"#!/bin/sh\n{what}\n")
        (scripts / command).chmod(0o755)
    (tmp_path / ".bash_profile").write_text(f"export PATH={scripts}:$PATH\n")
    command = settings["worker_start_ray_commands"][-1].replace("-n 65536", "-n")
    environment = os.environ | {"HOME": str(tmp_path), "RAY_HEAD_IP": "127.0.0.1"}

    def programs(count):
        for _ in range(100):
            found = [int(each) for each in started.read_text().split()] if started.exists() else []
            if len(found) == count:
                return found
            time.sleep(0.1)
        raise AssertionError(f"expected {count} programs, found {found}")

    try:
        for count in (1, 2):
            shell = ["bash", "--login", "-c", "-i", f"true && ({command})"]
            assert subprocess.run(shell, env=environment, capture_output=True, check=False).returncode == 0
            running = programs(count)
        told = dict(line.split(" ", 1) for line in ended.read_text().splitlines())
        assert str(running[0]) in told
        assert not [line for line in told.values() if line.startswith("bash")]
    finally:
        for pid in map(int, started.read_text().split()):
            os.kill(pid, signal.SIGKILL)
