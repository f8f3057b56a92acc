"""What a study's folder says about it: study.json, what was asked, and manifest.json, what carried it out."""

import json
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from mmjsd.config import require
from study.claim import CLAIM
from study.config import Objective, Preset, Sampler, Scheduler, Study
from study.files import Bucket, whole_file
from study.questions import Question

_PACKAGES = ("ray", "torch", "torchvision", "optuna", "numpy", "scipy", "scikit-learn", "pyarrow", "pydantic")
"""Those whose version may change a number."""

JOURNAL = "journal"
"""What study.json calls Optuna's storage where that is a file in the study's folder, and no database."""

_SAME = ("space", "objectives", "storage", "sampler", "scheduler", "seed")
"""What a study keeps for life, besides its fields and domains."""

_GROWS = ("trials", "replicates", "confirm", "confirm_replicates")
"""What may grow when a study is resumed."""

_SERVED = "tune/*"
"""What Ray Tune leaves in a study's folder of each session and each trial that it was given."""

_MOST_NEW = 100
"""Files that git does not know, of which so many are kept with the diff."""

_LONGEST_DIFF = 2**20
"""Characters; what is longer is data rather than code."""

_KINDS: Mapping[str, Any] = {
    "study": str,
    "space": str,
    "preset": Preset,
    "objectives": Annotated[list[Objective], Field(min_length=1)],
    "storage": str,
    "sampler": Sampler,
    "scheduler": Scheduler,
    "seed": int,
    "trials": PositiveInt,
    "replicates": PositiveInt,
    "confirm": NonNegativeInt,
    "confirm_replicates": NonNegativeInt,
    "base": dict[str, Any],
    "domains": dict[str, dict[str, Any]],
}
"""What a resumed study reads of its study.json, which others may have written."""

_GONE = "put back a copy, or choose another --out; a report of what is there can do without"
"""What is left where a file of the study is no more."""

_ADDED = {"storage": JOURNAL, "objectives": ["mean_coherence"], "confirm": 0, "confirm_replicates": 0}
"""What a study.json may lack that an earlier version wrote, and what that version did."""


def study_values(
    study: Study, question: Question, command: Sequence[str], storage: str = JOURNAL
) -> dict[str, Any]:
    """The content of study.json; neither `command` nor `storage` may hold credentials."""
    return {
        "study": study.name,
        "space": study.space_name,
        "question": question.title,
        "description": question.description,
        "command": list(command),
        "preset": study.preset,
        "storage": storage,
        "sampler": study.sampler,
        "scheduler": study.scheduler,
        "trials": study.trials,
        "replicates": study.replicates,
        "confirm": study.confirm,
        "confirm_replicates": study.confirm_replicates,
        "seed": study.seed,
        "objective_metric": study.objectives[0],
        "objectives": list(study.objectives),
        "base": study.base.resolved().to_dict(),
        "domains": {path: domain.to_json() for path, domain in study.space.domains.items()},
        "workers": study.workers,
        "gpus_per_worker": study.gpus_per_worker,
        "started_at": _now(),
    }


def refuse_taken(out: Path, bucket_url: str | None) -> None:
    """Raise ValueError unless a study may start in this folder."""
    where = bucket_url or out
    advice = "add --resume to go on with it, or choose another --out"
    require(_stored(out, bucket_url, "study.json") is None, f"{where} already holds a study; {advice}")
    begun = b'"resumed"' in (_stored(out, bucket_url, "manifest.json") or b"")  # a study that came no further
    known = (CLAIM, *["manifest.json"] * begun)
    taken = any(name not in known and not name.startswith(".") for name in _names(out, bucket_url))
    require(not taken, f"{where} is not empty and holds no study; choose another --out")


def _names(out: Path, bucket_url: str | None) -> list[str]:
    """What a study's folder holds."""
    if bucket_url is not None:
        return [entry.name for entry in Bucket(bucket_url).entries()]
    return [path.name for path in out.iterdir()] if out.is_dir() else []


def stored_values(out: Path, bucket_url: str | None) -> dict[str, Any]:
    """The study.json of the folder that is to be resumed.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    file = f"{bucket_url or out}/study.json"
    text = _stored(out, bucket_url, "study.json")
    if text is None:
        has_results = "results" in _names(out, bucket_url)
        advice = _GONE if has_results else "leave out --resume to start a study"
        raise ValueError(f"nothing to resume: there is no {file}; {advice}")
    try:
        values: dict[str, Any] = {**_ADDED, **json.loads(text)}
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{file} is damaged: it is no JSON object; {_GONE}") from None
    missing = [name for name in _KINDS if name not in values]
    require(not missing, f"{file} is damaged: it lacks {', '.join(missing)}; {_GONE}")
    for name, kind in _KINDS.items():
        try:
            TypeAdapter(kind).validate_python(values[name], strict=True)
        except ValidationError as error:
            what = f"{name} cannot be {error.errors()[0]['input']!r}"
            raise ValueError(f"{file} is damaged: {what}; {_GONE}") from None
    return values


def refuse_changed(stored: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
    """Raise ValueError, naming the first difference, unless `values` go on with the stored study."""
    before, after = _comparable(stored), _comparable(json.loads(json.dumps(values)))
    for name in {**before, **after}:
        old, new = before.get(name, "fixed"), after.get(name, "fixed")
        advice = "resume with the same settings, or choose another --out"
        require(old == new, f"the study in {where} has {name} {old!r}, not {new!r}; {advice}")
    for name in _GROWS:
        old, new = stored[name], values[name]
        require(old <= new, f"the study in {where} has {old} {name}, which can grow but not shrink to {new}")


def write_start(study: Study, values: Mapping[str, Any], data_digest: str) -> None:
    """Write both files of a study that starts; study.json, which makes the folder a study, last."""
    spec = study.base.spec
    data = {"name": spec.name, "digest": data_digest, "num_classes": spec.num_classes}
    manifest = {
        **_session(study, values),
        "python": platform.python_version(),
        "hardware": _hardware(),
        "host": socket.gethostname(),
        "data": data,
        "resumed": [],
        "ended_at": None,
    }
    _write(study.out / "manifest.json", manifest)
    _write(study.out / "study.json", values)


def write_resumed(
    study: Study, stored: Mapping[str, Any], values: Mapping[str, Any], data_digest: str
) -> None:
    """Note in manifest.json that a study goes on, and in study.json if it has grown.

    Raises:
        ValueError: if the data are not those with which it started, or manifest.json does not tell.
    """
    file = study.out / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        old, resumed = str(manifest["data"]["digest"]), [*manifest["resumed"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        told = (
            f"{study.where}/manifest.json is missing or damaged, so what the study was started on is unknown"
        )
        raise ValueError(f"{told}; {_GONE}") from None
    require(
        old == data_digest,
        f"the study in {study.where} was started on other data (digest {old[:12]}, now {data_digest[:12]}); "
        "bring those back, or choose another --out",
    )
    grown = {name: values[name] for name in _GROWS if values[name] != stored[name]}
    session = {**_session(study, values), "grown": grown}
    _write(file, {**manifest, "resumed": [*resumed, session], "ended_at": None})
    if grown:
        _write(study.out / "study.json", {**stored, **grown})


class Before:
    """Both files of a study that is to go on, as they were, for the case that this is refused."""

    def __init__(self, out: Path) -> None:
        self._out, self._served = out, {*out.glob(_SERVED)}
        files = (out / "manifest.json", out / "study.json")
        self._contents = {file: file.read_bytes() for file in files if file.exists()}

    def put_back(self) -> None:
        """Write them again, unless trials were served since: these are the grown study's."""
        if {*self._out.glob(_SERVED)} == self._served:
            for file, content in self._contents.items():
                _write(file, json.loads(content))


def write_ended(out: Path) -> None:
    """Note in manifest.json that nothing is left to train; less than planned if a sampler repeated itself."""
    file = out / "manifest.json"
    _write(file, {**json.loads(file.read_text(encoding="utf-8")), "ended_at": _now()})


def _stored(out: Path, bucket_url: str | None, name: str) -> bytes | None:
    """A file of the study's folder, or of its bucket; none if there is none."""
    if bucket_url is not None:
        return Bucket(bucket_url).read(name)
    require(out.is_dir() or not out.exists(), f"{out} is a file; choose a folder for --out")
    return (out / name).read_bytes() if (out / name).is_file() else None


def _session(study: Study, values: Mapping[str, Any]) -> dict[str, Any]:
    """What carries out the study from now on."""
    return {
        "started_at": values["started_at"],
        "command": values["command"],
        "commit": study.commit,
        "dirty": study.dirty,
        "diff": _diff() if study.dirty else "",
        "versions": json.loads(study.versions),
    }


def commit() -> tuple[str, bool]:
    """The project's git commit, and whether files differ from it; "" and False where nothing tells.

    Code that travels without its repository has it in MMJSD_COMMIT: a commit, with -dirty behind it if files
    differ, as `git describe --always --abbrev=40 --dirty --exclude='*'` prints it.
    """
    head = _git("rev-parse", "HEAD").strip()
    if not head:
        told = os.environ.get("MMJSD_COMMIT", "")
        return told.removesuffix("-dirty"), told.endswith("-dirty")
    return head, bool(_git("status", "--porcelain"))


def versions() -> dict[str, str]:
    """Versions of the packages that may change a number."""
    return {package: metadata.version(package) for package in _PACKAGES}


def gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs, without starting CUDA."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    if names or shutil.which("nvidia-smi") is None:
        return names
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return listed.stdout.strip().splitlines() if listed.returncode == 0 else []


def _hardware() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus(),
    }


def _diff() -> str:
    """How the project's files differ from the commit, with Python files that git does not know."""
    new = _git("ls-files", "--others", "--exclude-standard", "-z", "*.py").split("\0")[:-1]
    parts = [_git("diff", "HEAD")]
    parts += [_git("diff", "--no-index", os.devnull, name) for name in new[:_MOST_NEW]]
    return "".join(parts)[:_LONGEST_DIFF]


def _git(*arguments: str) -> str:
    """What git says about the project; "" where git or the project's repository is missing."""
    project = Path(__file__).resolve().parents[1]
    if not (project / ".git").exists() or shutil.which("git") is None:
        return ""
    done = subprocess.run(
        ["git", "-C", str(project), *arguments], capture_output=True, text=True, errors="replace", check=False
    )
    return done.stdout if done.returncode in (0, 1) else ""  # 1: two files differ


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two studies the same, by the names that a user gave."""
    fields = {
        f"{section}.{name}": value
        for section, leaves in values["base"].items()
        if isinstance(leaves, dict)
        for name, value in leaves.items()
    }
    fields.pop("data.dir", None)
    domains = {}
    for path, domain in values["domains"].items():
        parameters = (f"{name}={value}" for name, value in domain.items() if name != "type")
        domains[f"the domain of {path}"] = f"{domain.get('type')}({', '.join(parameters)})"
    return {"space": values["space"], **domains, **fields, **{name: values[name] for name in _SAME}}


def _write(file: Path, values: Mapping[str, Any]) -> None:
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
