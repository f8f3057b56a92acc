"""The two Parquet tables that hold every number of a study: schema, write, read.

A run's folder has `results/trials/<trial_id>.parquet`, one row, written when the trial has ended, and
`results/measurements/<trial_id>.parquet`, one row a score. Each file has one writer at a time and
appears whole: it is written under a temporary name and renamed. So a crash loses no finished number.
When a study ends, its measurements are put together in `results/measurements/compacted.parquet`.
Once a folder holds very many files, reading it leaves a hidden snapshot beside it, which may be deleted.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from study.files import whole_file

SCHEMA_VERSION = "1"

State = Literal["COMPLETE", "STOPPED", "DIVERGED", "FAILED"]
"""COMPLETE trained to the end; STOPPED by the scheduler; DIVERGED: the loss became non-finite; FAILED."""

UNITS: Mapping[str, str] = {
    "loss": "nats per sample",
    "reconstruction": "nats per sample",
    "content_divergence": "nats per sample",
    "style_divergence": "nats per sample",
    "log_likelihood": "nats per sample",
    "log_likelihood_as_released": "nats per sample",
    "frechet_distance": "squared units of the features",
}
"""Metrics with a unit; all others are shares in [0, 1]."""

LOWER_IS_BETTER = frozenset(
    {"loss", "reconstruction", "content_divergence", "style_divergence", "frechet_distance"}
)
"""Metrics that improve downwards; all others improve upwards."""

_UTC = pa.timestamp("us", tz="UTC")

TRIALS = pa.schema(
    [
        pa.field("study", pa.string(), nullable=False),
        pa.field("space", pa.string(), nullable=False),
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("config_hash", pa.string(), nullable=False),
        pa.field("replicate", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("epochs", pa.int32(), nullable=False),
        pa.field("started_at", _UTC, nullable=False),
        pa.field("finished_at", _UTC, nullable=False),
        pa.field("wall_s", pa.float64(), nullable=False),
        pa.field("device_s", pa.float64(), nullable=False),
        pa.field("evaluation_s", pa.float64()),
        pa.field("samples_per_s", pa.float64()),
        pa.field("peak_memory_gib", pa.float64()),
        pa.field("workers", pa.int32(), nullable=False),
        pa.field("device", pa.string(), nullable=False),
        pa.field("host", pa.string(), nullable=False),
        pa.field("commit", pa.string(), nullable=False),
        pa.field("dirty", pa.bool_(), nullable=False),
        pa.field("versions", pa.string(), nullable=False),
        pa.field("objective_metric", pa.string(), nullable=False),
        pa.field("objective_value", pa.float64()),
        pa.field("config", pa.string(), nullable=False),
        pa.field("phase", pa.string()),
        pa.field("lost_s", pa.float64()),
    ]
)
"""Columns that every trial has; the objectives of a study with several follow as `objective.<metric>`, swept
fields as `param.<dotted path>`. `device_s` led to the trial's results, `lost_s` vanished with its processes
since their last checkpoint, or went into an earlier try of which nothing was used: null if there was none.

Files of older commits may lack a column that may be null: it reads as null, under the same schema version.
"""

MEASUREMENTS = pa.schema(
    [
        pa.field("study", pa.string(), nullable=False),
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("config_hash", pa.string(), nullable=False),
        pa.field("replicate", pa.int32(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("posterior", pa.string(), nullable=False),
        pa.field("given", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("standard_error", pa.float64()),
        pa.field("num_samples", pa.int64(), nullable=False),
        pa.field("attribute", pa.string()),
    ]
)

_METADATA = {
    b"mmjsd.schema_version": SCHEMA_VERSION.encode(),
    b"mmjsd.units": json.dumps(UNITS, sort_keys=True).encode(),
    b"mmjsd.lower_is_better": json.dumps(sorted(LOWER_IS_BETTER)).encode(),
}


_COMPACTED = "compacted.parquet"
"""The measurements of many trials. What a trial's own file holds beside it, after a crash, it holds too."""

_MANY = 1000
"""So many files take longer to open than to read, so that `read` keeps a snapshot of them all beside them."""

_TOGETHER = 64
"""So many files are put together as they are read: Arrow gives each column of each memory of its own."""

_ATTEMPTS = 3
"""So often a folder is listed whose files vanish while they are read."""

_TRIAL_ID = re.compile(r"\w[\w.-]*", re.ASCII)
"""What may be the name of a trial; none leads out of a folder."""

_SNAPSHOT_OF = b"mmjsd.snapshot_of"
"""Metadata of a snapshot: a digest of the columns, and of the names, sizes and times of the files."""


class StoreError(ValueError):
    """A results file that cannot be read; the message names it and the way out."""


@dataclass(frozen=True)
class StudyTables:
    """Both tables of a run, as Arrow."""

    trials: pa.Table
    measurements: pa.Table


def write_trial(
    out: Path,
    row: Mapping[str, Any],
    params: Mapping[str, Any],
    objectives: Mapping[str, float | None] = MappingProxyType({}),
    swept: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> None:
    """Write the row of an ended trial.

    Args:
        out: the study's folder.
        row: by column of `TRIALS`.
        params: the value of each swept field that applies, by dotted path.
        objectives: each one's value, of a study that has several.
        swept: values of all swept fields, so that all files of a study have the same columns and types.
    """
    assert row["state"] in get_args(State), row["state"]
    fields = list(TRIALS)
    known = {name: None for name in TRIALS.names if TRIALS.field(name).nullable} | dict(row)
    values = [pa.array([known[field.name]], field.type) for field in TRIALS]
    for metric, number in objectives.items():
        fields.append(pa.field(f"objective.{metric}", pa.float64()))
        values.append(pa.array([number], pa.float64()))
    for path in sorted({*params, *swept}):
        array = _param_array(params.get(path), swept.get(path, ()))
        fields.append(pa.field(f"param.{path}", array.type))
        values.append(array)
    table = pa.Table.from_arrays(values, schema=pa.schema(fields))
    _write(table, _file(out, "trials", row["trial_id"]))


def write_measurements(out: Path, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all measurements that a trial has so far; they replace what it had written before."""
    table = pa.Table.from_pylist(list(rows), schema=MEASUREMENTS)
    _write(table, _file(out, "measurements", trial_id))


def read(out: Path) -> StudyTables:
    """Both tables of the run in folder `out`: ended trials, and measurements of those still running too.

    Raises:
        StoreError: if the folder holds no results, or a file is damaged or of another kind.
    """
    results = Path(out) / "results"
    has_begun = (Path(out) / "study.json").is_file()  # the folder of results comes with the first of them
    if not (results.is_dir() or has_begun):
        raise StoreError(f"{out} holds no results: expected a folder 'results' that study/run.py wrote")
    return StudyTables(
        trials=_read(results / "trials", TRIALS),
        measurements=_read(results / "measurements", MEASUREMENTS),
    )


def read_measurements(out: Path, trial_id: str) -> list[dict[str, Any]]:
    """The measurements that one trial has written, none if it has not written yet."""
    own = _file(out, "measurements", trial_id)
    whole = own.with_name(_COMPACTED)
    if own.exists():
        table = _read_file(own, MEASUREMENTS)
    elif whole.exists():
        table = _read_file(whole, MEASUREMENTS)
        table = table.filter(pc.equal(table["trial_id"], trial_id))
    else:
        return []
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def measured_trials(out: Path) -> set[str]:
    """The names of the trials of which there are measurements.

    Raises:
        StoreError: if a file of these is cut off.
    """
    folder = Path(out) / "results" / "measurements"
    names = set()
    for path in folder.glob("*.parquet"):
        with _named(path), _open(path) as file:
            whole = path.name == _COMPACTED
            names |= set(file.read(["trial_id"])[0].unique().to_pylist()) if whole else {path.stem}
    return names


def compact(out: Path) -> None:
    """Put the measurements of all trials that will not be trained again into one file.

    The file appears whole before the trials' own are removed; a reader prefers these where it finds both.
    What a killed process was writing is removed too, so nobody else may be at work on the study.
    """
    folder = Path(out) / "results" / "measurements"
    for unfinished in folder.parent.glob("*/.*.parquet.*"):
        unfinished.unlink()
    ended = {row["trial_id"] for row in ended_trials(out) if row["state"] in ("COMPLETE", "STOPPED")}
    parts = [path for path in sorted(folder.glob("*.parquet")) if path.stem in ended]
    if not parts:
        return
    whole = folder / _COMPACTED
    table = _read_files([*([whole] if whole.exists() else []), *parts], MEASUREMENTS).cast(MEASUREMENTS)
    _write(table.sort_by([(name, "ascending") for name in ("trial_id", "epoch")]), whole)
    for path in parts:
        path.unlink()


def read_trial(out: Path, trial_id: str) -> dict[str, Any] | None:
    """The row of one trial, without its swept fields' columns, once it has ended."""
    path = _file(out, "trials", trial_id)
    if not path.exists():
        return None
    row: dict[str, Any] = _without_params(_read_file(path, TRIALS)).to_pylist()[0]
    return row


def write_lost(out: Path, trial_id: str, lost_s: float) -> None:
    """Set, in the row of an ended trial, the device-seconds that were lost."""
    path = _file(out, "trials", trial_id)
    table = _read_file(path, TRIALS)
    place = table.schema.get_field_index("lost_s")
    _write(table.set_column(place, TRIALS.field("lost_s"), pa.array([lost_s], pa.float64())), path)


def forget_trial(out: Path, trial_id: str) -> None:
    """Remove the row of a trial that is to be tried again."""
    _file(out, "trials", trial_id).unlink(missing_ok=True)


def ended_trials(out: Path) -> list[dict[str, Any]]:
    """The rows of all trials that have ended, without their swept fields' columns."""
    table = _read(Path(out) / "results" / "trials", TRIALS)
    rows: list[dict[str, Any]] = _without_params(table).to_pylist()
    return rows


def _file(out: Path, table: str, trial_id: str) -> Path:
    return Path(out) / "results" / table / f"{trial_id}.parquet"


def _without_params(trials: pa.Table) -> pa.Table:
    return trials.select([name for name in trials.column_names if not name.startswith("param.")])


def _param_array(value: object, others: Sequence[object]) -> pa.Array:
    """A swept field's value as a column that could hold the others, too.

    Numbers and strings as they are, a simplex as list of float64; text where types differ.
    """
    types = {_plain_array(each).type for each in (value, *others)} - {pa.null()}
    array = _plain_array(value)
    if types == {pa.int64(), pa.float64()}:
        return array.cast(pa.float64())
    if len(types) > 1:
        return pa.array([None if value is None else str(array[0].as_py())], pa.string())
    return array.cast(types.pop()) if types else array


def _plain_array(value: object) -> pa.Array:
    if isinstance(value, (tuple, list)):
        return pa.array([[float(each) for each in value]], pa.list_(pa.float64()))
    return pa.array([json.dumps(value, sort_keys=True) if isinstance(value, dict) else value])


def _aligned(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """The tables with a swept field's values of several types, such as 4 and "all", made text in all.

    Files of one study have the same types, but for those that earlier versions wrote.
    """
    found: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for column in table.schema:
            if not pa.types.is_null(column.type):
                found.setdefault(column.name, set()).add(column.type)
    number = {pa.int64(), pa.float64()}
    mixed = [name for name, types in found.items() if len(types) > 1 and not types <= number]
    aligned = []
    for table in tables:
        for name in mixed:
            if name in table.column_names:
                texts = [None if value is None else str(value) for value in table[name].to_pylist()]
                table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
        aligned.append(table)
    return aligned


def _write(table: pa.Table, path: Path, metadata: Mapping[bytes, bytes] = MappingProxyType({})) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        whole = table.replace_schema_metadata({**_METADATA, **metadata})
        pq.write_table(whole, temporary, write_page_checksum=True)


def _open(source: Path | pa.BufferReader, **options: Any) -> pq.ParquetFile:
    """A file in which bits that have flipped are told; those of earlier versions have no checksums."""
    return pq.ParquetFile(source, page_checksum_verification=True, **options)


def _read(folder: Path, schema: pa.Schema) -> pa.Table:
    """All files of a table; where they are many, from a snapshot if none has changed since it was made."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(FileNotFoundError):  # a study has ended meanwhile and compacted them
            return _read_now(folder, schema)
    return _read_now(folder, schema)


def _read_now(folder: Path, schema: pa.Schema) -> pa.Table:
    with _named(folder):
        files = [*folder.iterdir()] if folder.is_dir() else []
    paths = sorted((file for file in files if file.suffix == ".parquet"), key=str)
    if len(paths) < _MANY:
        return _encoded(_read_files(paths, schema), schema)
    snapshot = folder.with_name(f".{folder.name}.snapshot")
    states = [(path.name, state.st_size, state.st_mtime_ns) for path in paths if (state := path.stat())]
    digest = hashlib.sha256(repr((schema.names, states)).encode()).hexdigest().encode()
    with suppress(OSError, KeyError, pa.ArrowException):
        file = _open(snapshot, read_dictionary=_repeated(schema))
        if (file.schema_arrow.metadata or {})[_SNAPSHOT_OF] == digest:
            return file.read().replace_schema_metadata(_METADATA)
    table = _encoded(_read_files(paths, schema), schema)
    with suppress(OSError):  # the folder may be someone else's
        _write(table, snapshot, {_SNAPSHOT_OF: digest})
    return table


def _read_files(paths: Sequence[Path], schema: pa.Schema) -> pa.Table:
    own = pa.array([path.stem for path in paths if path.name != _COMPACTED], pa.string())
    tables: list[pa.Table] = []
    latest: list[pa.Table] = []
    for path in paths:
        table = _read_file(path, schema)
        if path.name == _COMPACTED and len(own):
            table = table.filter(pc.invert(pc.is_in(table["trial_id"], own)))
        latest.append(table)
        if len(latest) == _TOGETHER:
            tables += [pa.concat_tables(latest).combine_chunks()] if _have_one_schema(latest) else latest
            latest = []
    tables += latest
    if not tables:
        return schema.empty_table().replace_schema_metadata(_METADATA)
    if _have_one_schema(tables):
        return pa.concat_tables(tables)
    return pa.concat_tables(_aligned(tables), promote_options="permissive")


def _have_one_schema(tables: Sequence[pa.Table]) -> bool:
    return all(table.schema.equals(tables[0].schema) for table in tables)


def _read_file(path: Path, schema: pa.Schema) -> pa.Table:
    with _named(path):
        content = pa.BufferReader(path.read_bytes())
        file = _open(content)
        names = set(file.schema_arrow.names)
        if repeated := [name for name in _repeated(schema) if name in names]:
            file = _open(content, metadata=file.metadata, read_dictionary=repeated)
        table = file.read(use_threads=False)
        table.validate(full=True)  # texts that are no text, and codes of nothing
        types = {field.name: _plain(field.type) for field in table.schema}
    version = (table.schema.metadata or {}).get(b"mmjsd.schema_version", b"").decode()
    if version and version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}; expected {SCHEMA_VERSION}: "
            "read it with the commit that manifest.json names, or train again into a new folder"
        )
    missing = [field for field in schema if field.name not in types]
    needed = [field.name for field in missing if not field.nullable]
    if needed or not version:
        lacks = f"lacks {', '.join(needed)}" if needed else "has no schema version"
        raise StoreError(f"{path} is not a results file: it {lacks}; move it out of the folder")
    if wrong := [field for field in schema if types.get(field.name, field.type) != field.type]:
        what = f"{wrong[0].name} is of type {types[wrong[0].name]}, and not {wrong[0].type}"
        raise StoreError(f"{path} is not a results file: its {what}; move it out of the folder")
    if fault := _wrong_value(table, schema):
        raise StoreError(f"{path} is not a results file: its {fault}; move it out of the folder")
    for name in pc.unique(table["trial_id"]).to_pylist():
        if not _TRIAL_ID.fullmatch(name):  # names are parts of paths, and files may be a stranger's
            raise StoreError(
                f"{path} names a trial {name!r}, which is no name of one; move it out of the folder"
            )
        if name != path.stem and path.name != _COMPACTED:  # what keeps folders alike leaves such copies
            raise StoreError(f"{path} holds the trial {name}, as a copy would; move it out of the folder")
    for field in missing:
        nulls = pa.nulls(table.num_rows, field.type)
        if field.name in _repeated(schema):
            nulls = nulls.dictionary_encode()
        table = table.add_column(schema.get_field_index(field.name), field.name, nulls)
    return table


def _wrong_value(table: pa.Table, schema: pa.Schema) -> str | None:
    """What a row holds that this module does not write, if one does."""
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            return f"{field.name} is null"
    if schema is not TRIALS:
        return None
    for state, config in zip(table["state"].to_pylist(), table["config"].to_pylist(), strict=True):
        if state not in get_args(State):
            return f"state is {state!r}, and not one of {', '.join(get_args(State))}"
        try:
            is_object = isinstance(json.loads(config), dict)
        except ValueError:
            is_object = False
        if not is_object:
            return "config is no JSON object"
    return None


def _plain(kind: pa.DataType) -> pa.DataType:
    """Of the values that a column has, also where it keeps them as codes and a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Says of a file that cannot be read which one it is, and the way out."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own, of damaged files, have none
            why = os.strerror(error.errno)
            raise StoreError(f"{path} cannot be read ({why}); make it readable and try again") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(
            f"{path} is damaged ({reason}); delete it and start the study again with --resume: "
            "what it held is trained again"
        ) from error


def _encoded(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in one piece, and with repeated texts as codes and a dictionary."""
    table = table.combine_chunks()
    for name in _repeated(schema):
        table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    return table


@cache
def _repeated(schema: pa.Schema) -> list[str]:
    """Columns of few different texts, which are read as codes and a dictionary: those of the measurements."""
    return (
        [field.name for field in schema if pa.types.is_string(field.type)] if schema is MEASUREMENTS else []
    )
