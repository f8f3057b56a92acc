"""Checks launcher files offline: Ray's own schema, and what it does not see."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster import providers
from cluster.batch import check_slurm
from cluster.findings import CheckError, Finding, placeholders, run_checks, texts
from cluster.kubernetes import check_rayjob

PROJECT = Path(__file__).resolve().parents[1]

TOKEN = "~/.ray/auth_token"
"""Where Ray looks for the token, on every machine."""


def check_file(path: Path) -> list[Finding]:
    """What is wrong with a launcher file of Ray, a RayJob of KubeRay or a batch script of Slurm.

    Raises:
        CheckError: if it cannot be read or is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if text.startswith("#!"):
        return list(check_slurm(path, text))
    try:
        settings = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        return [Finding("yaml", (" ".join(str(error).split()),))]
    if not isinstance(settings, dict):
        raise CheckError(f"{path} is no launcher file: expected settings such as cluster_name: ...")
    if "apiVersion" in settings:
        return [Finding("yaml"), *check_rayjob(settings)]
    if "provider" not in settings:
        raise CheckError(f"{path} is no launcher file: it has neither a provider nor an apiVersion")
    return [Finding("yaml"), *_check_launcher(settings)]


_NEEDED = ("mmjsd", "study", "search_spaces", "analysis", "cluster", "pyproject.toml", "constraints.txt")
"""What of the project every node needs."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that stands twice: YAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice!r} stands twice, {node.start_mark}")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _check_launcher(settings: Mapping[str, Any]) -> Iterator[Finding]:
    kind = str(settings["provider"].get("type")) if isinstance(settings["provider"], dict) else ""
    if kind not in providers.PROVIDERS:
        known = ", ".join(providers.PROVIDERS)
        yield Finding("provider", (f"provider.type is {kind!r}; expected one of {known}",))
        return
    problems = tuple(_schema(settings))
    yield Finding("Ray's schema", problems)
    if problems:  # nothing below could be trusted to find what it looks for
        return
    checks = {
        "placeholders": placeholders,
        "secrets": _secrets,
        **providers.PROVIDERS[kind],
        "worker limits": _worker_limits,
        "commands": _commands,
        "ports": _ports,
        "token": _token,
        "files": _files,
    }
    yield from run_checks(checks, settings)


def _schema(settings: Mapping[str, Any]) -> Iterator[str]:
    """What `ray up` would say before it talks to the provider."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        # What is wrong is raised; what is written besides is advice that fits no cluster of ours.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            prepared = prepare_config(dict(settings))
            if prepared["provider"]["type"] == "aws":  # of which `ray up` knows what a machine has
                for node in prepared.get("available_node_types", {}).values():
                    node.setdefault("resources", {})
            validate_config(prepared)
    except jsonschema.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path)
        yield f"{where}: {error.message}" if where else error.message
    except (Exception, SystemExit) as error:  # whatever Ray raises is the finding
        yield " ".join(str(error).split()) or type(error).__name__


_SECRET = (
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|BEGIN [A-Z ]*PRIVATE KEY|RAY_AUTH_TOKEN=\S"
    r"|AWS_(SECRET_ACCESS_KEY|SESSION_TOKEN)=[\"']?[^\s\"'$]"  # $: the name of what stands elsewhere
)


def _secrets(settings: Mapping[str, Any]) -> Iterator[str]:
    """Credentials that stand in the file, which is read by more people than they are meant for."""
    for where, text in texts(settings):
        if re.search(_SECRET, text):
            yield f"{where} holds a secret; keep it out of the file, in the environment or in {TOKEN}"
        elif where.endswith("gcp_credentials.credentials"):
            yield f"{where} holds a secret; log in with gcloud instead"


def _worker_limits(settings: Mapping[str, Any]) -> Iterator[str]:
    whole = settings.get("max_workers", 2)
    if settings.get("idle_timeout_minutes", 5) <= 0:
        yield "idle_timeout_minutes is 0, so that workers would end between two trials; 10 is a good value"
    if settings["provider"]["type"] == "local":
        return
    types = settings.get("available_node_types", {})
    for name, node in types.items():
        least, most = node.get("min_workers", 0), node.get("max_workers", whole)
        if name == settings["head_node_type"]:
            continue
        if least < 0 or most < 0:
            yield f"{name}: min_workers and max_workers cannot be negative"
        if least > most:
            yield f"{name}: min_workers {least} is more than its max_workers {most}"
        if most > whole:
            yield f"{name}: max_workers {most} is more than the cluster's max_workers {whole}"
    if whole < 1:
        yield "max_workers is 0: the cluster would have no workers, and its head trains nothing"


def _commands(settings: Mapping[str, Any]) -> Iterator[str]:
    """Every node gets the pinned environment, and all nodes find each other."""
    setup = settings.get("setup_commands", [])
    for node in ("head", "worker"):
        commands = " ".join([*setup, *settings.get(f"{node}_setup_commands", [])])
        if not re.search(r"cluster/setup\.sh|--constraint\b|-c \S*constraints\.txt", commands):
            yield f"{node}_setup_commands install no pinned environment; call cluster/setup.sh"
    start = {node: " ".join(settings.get(f"{node}_start_ray_commands", [])) for node in ("head", "worker")}
    if not re.search(r"ray start .*--head", start["head"]):
        yield "head_start_ray_commands lack 'ray start --head'"
    if "--autoscaling-config" not in start["head"]:
        yield "head_start_ray_commands lack --autoscaling-config, without which no worker ever starts"
    port = re.search(r"--port[= ](\d+)", start["head"])
    joined = re.search(r"ray start [^&;]*--address[= ]\"?\$\{?RAY_HEAD_IP\}?:(\d+)", start["worker"])
    if joined is None:
        yield "worker_start_ray_commands lack 'ray start --address=$RAY_HEAD_IP:PORT'"
    elif joined[1] != (port[1] if port else "6379"):
        yield f"workers look for the head at port {joined[1]}, it listens at {port[1] if port else 6379}"


def _ports(settings: Mapping[str, Any]) -> Iterator[str]:
    for where, text in texts(settings):
        if re.search(r"--dashboard-host[= ](0\.0\.0\.0|::)", text):
            yield f"{where} opens the dashboard to the network; leave --dashboard-host at 127.0.0.1"
        if "run_options" in where and re.match(r"(-p|--publish)\b", text):
            yield f"{where} publishes a port; leave it out, the tunnel of `ray dashboard` needs none"


def _token(settings: Mapping[str, Any]) -> Iterator[str]:
    """Ray's token authentication is on in every process, and the token is there, for its owner alone."""
    for node in ("head", "worker"):
        start = " ".join(settings.get(f"{node}_start_ray_commands", []))
        if "RAY_AUTH_MODE=token" not in start:
            yield f"{node}_start_ray_commands lack RAY_AUTH_MODE=token, so whoever reaches a port runs code"
    mounts = settings.get("file_mounts", {})
    source = mounts.get(TOKEN)
    if source is None:
        yield f"file_mounts brings no token; add {TOKEN}: {TOKEN}"
        return
    file = Path(source).expanduser()
    if not file.is_file():
        yield f"{source} is missing; make it with: ray get-auth-token --generate && chmod 600 {source}"
        return
    if file.stat().st_mode & 0o077:
        yield f"{source} can be read by other users of this machine; chmod 600 {source}"
    if len(file.read_text(encoding="utf-8").strip()) < 32:
        yield f"{source} holds fewer than 32 characters, which can be guessed; make another"


def _files(settings: Mapping[str, Any]) -> Iterator[str]:
    mounts = {target: source for target, source in settings.get("file_mounts", {}).items() if target != TOKEN}
    for target, source in mounts.items():
        found = Path(source).expanduser()
        found = found if found.is_absolute() else PROJECT / found
        if not found.exists():
            yield f"file_mounts: {source} for {target} does not exist; paths count from the project's folder"
    whole = any((PROJECT / source).resolve() == PROJECT for source in mounts.values())
    names = {Path(target).name for target in mounts}
    for needed in _NEEDED:
        if needed not in names and not whole:
            yield f"file_mounts lacks {needed}, which every node needs"
