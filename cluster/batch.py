"""Checks a batch script of Slurm offline."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from cluster.findings import NEARLY, Finding, placeholders

_NAMES = """
account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
container-env container-id container-image container-mount-home container-mounts container-name
container-workdir container-writable contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task
deadline delay-boot dependency distribution error exclude exclusive export export-file extra extra-node-info
get-user-env gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint hold
ignore-pbs input job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu
mem-per-gpu mincpus network nice no-container-mount-home no-kill no-requeue nodefile nodelist nodes ntasks
ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket oom-kill-step open-mode output overcommit
oversubscribe parsable partition prefer priority profile propagate qos quiet reboot requeue reservation
resv-ports segment signal sockets-per-node spread-job stepmgr switches tasks-per-node test-only thread-spec
threads-per-core time time-min tmp tres-bind tres-per-job tres-per-task uid use-min-nodes verbose wait
wait-all-nodes wckey wrap
"""
_OPTIONS = frozenset(_NAMES.split())
"""Long options of sbatch and of NVIDIA's pyxis. There may be others, so that only what is nearly one of these
is told."""

_LETTERS = """
A=account B=extra-node-info C=constraint D=chdir F=nodefile G=gpus H=hold J=job-name L=licenses M=clusters
N=nodes O=overcommit Q=quiet S=core-spec W=wait a=array b=begin c=cpus-per-task d=dependency e=error i=input
k=no-kill m=distribution n=ntasks o=output p=partition q=qos s=oversubscribe t=time v=verbose w=nodelist
x=exclude
"""
_SHORT = dict(pair.split("=") for pair in _LETTERS.split())
"""Their long names by sbatch's letters."""


_TIME = r"(\d+-)?\d+(:\d+){0,2}|infinite|unlimited"
"""Minutes and M:S, H:M:S, or after days H, H:M and H:M:S."""


def check_slurm(path: Path, text: str) -> Iterator[Finding]:
    """Every check of a batch script."""
    options = _options(text)
    yield Finding("bash", tuple(_bash(path)))
    yield Finding("options", tuple(_unknown(options)))
    yield Finding(
        "placeholders", tuple(placeholders({f"#SBATCH --{key}": each for key, each in options.items()}))
    )
    yield Finding("nodes", tuple(_nodes(options)))
    yield Finding("GPUs", tuple(_gpus(options, text)))
    yield Finding("ports", tuple(_ports(text)))
    yield Finding("token", tuple(_token(text)))


def _options(text: str) -> dict[str, str]:
    """Values by option's long name, from the lines that begin with #SBATCH."""
    found: dict[str, str] = {}
    for line in re.findall(r"^#SBATCH\s+(.*)", text, re.MULTILINE):
        try:
            parts = shlex.split(line, comments=True)
        except ValueError:  # a quotation that does not end
            parts = line.split()
        while parts:
            word = parts.pop(0)
            name, _, value = word[2:].partition("=") if word.startswith("--") else (word[1:2], "", word[2:])
            if not word.startswith("-"):
                continue
            if not value and parts and not parts[0].startswith("-"):
                value = parts.pop(0)
            if word.startswith("--") or name in _SHORT:
                found[_SHORT.get(name, name)] = value
    return found


def _bash(path: Path) -> Iterator[str]:
    if shutil.which("bash") is None:
        return
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        yield (done.stderr.strip().splitlines() or ["bash refuses it"])[0]


def _unknown(options: Mapping[str, str]) -> Iterator[str]:
    for key in options:
        if key not in _OPTIONS:
            for guess in get_close_matches(key, _OPTIONS, n=1, cutoff=NEARLY):
                yield f"sbatch has no option --{key}; did you mean --{guess}?"
    for needed in ("nodes", "time", "cpus-per-task"):
        if needed not in options:
            yield f"#SBATCH --{needed} is missing"
    if "time" in options and not re.fullmatch(_TIME, options["time"], re.IGNORECASE):
        yield f"#SBATCH --time cannot be {options['time']!r}; expected minutes, H:MM:SS or days-H:MM:SS"


def _nodes(options: Mapping[str, str]) -> Iterator[str]:
    for name in ("ntasks-per-node", "tasks-per-node"):
        tasks = options.get(name, "1")
        if tasks != "1":
            yield f"--{name} is {tasks}; expected 1, as each node runs one Ray"


def _gpus(options: Mapping[str, str], text: str) -> Iterator[str]:
    asks = any(
        name.startswith("gpus") or (name.startswith(("gres", "tres-per")) and "gpu" in value)
        for name, value in options.items()
    )
    if asks and "--num-gpus" not in text:
        yield "the nodes have GPUs, but ray start lacks --num-gpus"
    if not asks and re.search(r"gpu", options.get("partition", "")):
        yield "the partition has GPUs, but the job asks for none; add --gpus-per-node"


def _ports(text: str) -> Iterator[str]:
    if re.search(r"--dashboard-host[= ](0\.0\.0\.0|::)", text):
        yield "the dashboard is open to the network; leave --dashboard-host at 127.0.0.1"


def _token(text: str) -> Iterator[str]:
    if "RAY_AUTH_MODE=token" not in text:
        yield "RAY_AUTH_MODE=token is missing, so every user of the nodes could run code in the job"
    if not re.search(r"^umask 0?077\b", text, re.MULTILINE):
        yield "umask 077 is missing, so every user of the nodes could read the token"
