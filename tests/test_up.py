"""`ray up` by ssh, on machines that are namespaces: each has its own processes, network, /tmp and home."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from study import store
from tests.nodes import RAY, ROOT, kill_tree, names_below, wait_for
from tests.test_cluster import TWO

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
APART = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

DISK = Path("/mnt")
"""Where every machine sees the test's folder; all else but /tmp and /run is the disk of this machine."""

BOOT = f"""
mount --bind "$1" {DISK} && mount -o bind,ro "$2" {DISK}/project &&
mount --bind {DISK}/$3/passwd /etc/passwd && mount --bind {DISK}/$3/hosts /etc/hosts &&
mount -t tmpfs none /tmp && mount -t tmpfs none /run && mkdir /run/sshd &&
ip link set lo up && echo up && {{ sleep infinity & wait; }}
"""

SSHD_CONFIG = f"""
HostKey {DISK}/key
AuthorizedKeysFile {DISK}/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
SetEnv RAY_raylet_start_wait_time_s=300 RAY_agent_register_timeout_ms=300000
"""


class Machine:
    """A machine of the site, with a home of its own and an address."""

    def __init__(self, site, name, address):
        self.home, self.address = DISK / name, address
        Path(site, name).mkdir()
        Path(site, name, "passwd").write_text(
            f"root:x:0:0::{self.home}:/bin/bash\nsshd:x:100:65534::/run/sshd:\n"
        )
        debian = f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n"
        Path(site, name, "hosts").write_text(debian)
        boot = ["bash", "-c", BOOT, "boot", site, ROOT, name]
        self.process = subprocess.Popen(["unshare", *APART, *boot], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "up\n"
        (self.init,) = psutil.Process(self.process.pid).children()

    def command(self, *words):
        """What runs the words on this machine, from the project's folder and with nobody's settings."""
        enter = ("nsenter", "--target", str(self.init.pid), "--mount", "--net", "--pid")
        path = f"PATH={RAY.parent}:{os.environ['PATH']}"
        settings = (f"--chdir={DISK}/project", "-i", f"HOME={self.home}", path, "RAY_AUTH_MODE=token")
        return [*enter, "env", *settings, *map(str, words)]

    def run(self, *words, seconds=900):
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=seconds)

    def must(self, *words):
        said = self.run(*words)
        assert said.returncode == 0, said.stdout + said.stderr
        return said.stdout

    def ip(self, *words):
        """`ip`, which here may name processes of this machine."""
        subprocess.run(["nsenter", "--target", str(self.init.pid), "--net", "ip", *words], check=True)

    def names(self):
        """Of the processes that run here."""
        return set(names_below(self.process))


@pytest.fixture
def site():
    """A laptop, a head and a worker on one network; the laptop has the key of the other two."""
    _skip_where_there_can_be_none()
    site = tempfile.mkdtemp(prefix="site-", dir="/tmp")
    for name in ("project", "shared"):
        Path(site, name).mkdir()
    Path(site, "sshd_config").write_text(SSHD_CONFIG)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{site}/key"], check=True)
    machines = []
    try:
        for number, name in enumerate(("laptop", "head", "worker"), 1):
            machines.append(Machine(site, name, f"198.51.100.{number}"))
        laptop, *nodes = machines
        laptop.ip("link", "add", "net", "type", "bridge")
        laptop.ip("addr", "add", f"{laptop.address}/24", "dev", "net")
        laptop.ip("link", "set", "net", "up")
        for node in nodes:
            name = node.home.name
            laptop.ip(
                "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(node.init.pid)
            )
            laptop.ip("link", "set", name, "master", "net", "up")
            node.ip("addr", "add", f"{node.address}/24", "dev", "eth0")
            node.ip("link", "set", "eth0", "up")
            node.ip("route", "add", "default", "via", laptop.address)
            _install(Path(site, name))
            node.must(SSHD, "-f", DISK / "sshd_config")
        _give_keys(Path(site, "laptop"), Path(site, "key"))
        yield Path(site), *machines
    finally:
        for machine in machines:
            kill_tree(machine.process)
        shutil.rmtree(site, ignore_errors=True)


def _skip_where_there_can_be_none():
    if Path(sys.prefix).is_relative_to("/tmp"):
        pytest.skip(f"needs an environment outside /tmp, of which each machine has its own, not {sys.prefix}")
    needed = ("rsync", "ssh", "ssh-keygen", "unshare", "nsenter", "ip")
    missing = [name for name in needed if shutil.which(name) is None] + ([] if SSHD else ["sshd"])
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    tried = subprocess.run(["unshare", *APART, "true"], capture_output=True, text=True)
    if os.geteuid() != 0 or tried.returncode != 0:
        pytest.skip(f"needs root and its right to make namespaces; {tried.stderr}")


def _install(home):
    """This environment as ~/mmjsd-venv, for setup.sh to find done, and a Python to find at all."""
    venv = home / "mmjsd-venv"
    venv.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (venv / name).symlink_to(Path(sys.prefix, name))
    wanted = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")) + b"\n"
    (venv / "installed").write_text(f"{hashlib.sha256(wanted).hexdigest()}  -\n")
    (home / ".profile").write_text(f'PATH="{sys.base_prefix}/bin:$PATH"\n')
    (home / ".bashrc").touch()


def _give_keys(home, key):
    for name in (".ssh", ".ray"):
        (home / name).mkdir(mode=0o700)
    shutil.copy(key, home / ".ssh" / "id_ed25519")
    token = home / ".ray" / "auth_token"
    token.write_text(64 * "c")
    token.chmod(0o600)


def test_up_submit_and_down_as_the_file_says(site):
    folder, laptop, head, worker = site
    text = (ROOT / "cluster" / "onprem.yaml").read_text()
    for old, new in (
        ("REPLACE-WITH-THE-HEAD", head.address),
        ("REPLACE-WITH-A-WORKER", worker.address),
        ("REPLACE-WITH-YOUR-USER", "root"),
        (" ray start --", " ray start --num-cpus=1 --"),  # so that a trial of two takes both machines
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "laptop" / "onprem.yaml").write_text(text)
    file = laptop.home / "onprem.yaml"
    idle = head.names()

    laptop.must(RAY, "up", "--yes", file)
    wait_for(lambda: "ray::DashboardAgent" in worker.names(), head.process, 600)
    tunnel = subprocess.Popen(laptop.command(RAY, "dashboard", file))
    patient = ("--max-concurrent", "1")  # the worker may be late
    where = ("--address", "auto", "--out", DISK / "shared" / "study")
    study = ("study/run.py", "--space", "smoke", *TWO, *where, *patient)
    place = ("--address", "http://localhost:8265", "--working-dir", ".")
    for _ in range(10):
        said = laptop.run(RAY, "job", "submit", *place, "--", "env", "MMJSD_COMMIT=abc", "python", *study)
        if "submitted successfully" in said.stdout:
            break
        time.sleep(10)  # the tunnel has yet to stand, or the head's agent to report itself
    kill_tree(tunnel)
    assert said.returncode == 0, said.stdout + said.stderr
    (row,) = store.read(folder / "shared" / "study").trials.to_pylist()
    assert (row["state"], row["workers"], row["commit"]) == ("COMPLETE", 2, "abc")

    said = laptop.must(RAY, "down", "--yes", file)
    assert "Exception occurred" not in said, said
    wait_for(lambda: head.names() <= idle, laptop.process, 30)
    left = idle | {"python"}  # Ray's log monitor, which the next `ray up` or `ray stop` ends
    wait_for(lambda: worker.names() <= left, laptop.process, 300)  # it misses its head for a minute first
