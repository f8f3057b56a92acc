"""The two tables: what is written comes back, whole or not at all, readable by others."""

import re

import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import store
from tests.studies import measurement, trial


def test_rows_come_back_as_they_were(tmp_path):
    row, rows = trial(objective_value=0.25), [measurement(0.1), measurement(0.2, epoch=2)]
    store.write_trial(tmp_path, row, {"objective.beta": 2.5})
    store.write_measurements(tmp_path, "abc-r0", rows)
    assert store.read_trial(tmp_path, "abc-r0") == row
    assert store.read_measurements(tmp_path, "abc-r0") == rows
    assert store.ended_trials(tmp_path) == [row]
    assert store.read(tmp_path).trials.to_pylist() == [{**row, "param.objective.beta": 2.5}]


VALUES = st.one_of(
    st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.text(max_size=5), st.booleans(), st.none()
)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_swept_values_of_any_types_can_be_read_together(tmp_path_factory, values):
    out = tmp_path_factory.mktemp("run")
    for number, value in enumerate(values):
        store.write_trial(out, trial(f"{number}-r0"), {"model.style_dim": value})
    column = store.read(out).trials["param.model.style_dim"].to_pylist()
    kinds = {
        bool if isinstance(v, bool) else float if isinstance(v, (int, float)) else type(v) for v in values
    }
    if len(kinds - {type(None)}) > 1:
        assert column == [None if value is None else str(value) for value in values]
    else:
        assert column == values


def test_a_simplex_is_a_list_of_float64(tmp_path):
    store.write_trial(tmp_path, trial(), {"objective.weights": (0.25, 0.75)})
    column = store.read(tmp_path).trials["param.objective.weights"]
    assert column.type == pa.list_(pa.float64())
    assert column.to_pylist() == [[0.25, 0.75]]


def test_a_field_that_only_some_trials_have_is_empty_in_the_others(tmp_path):
    store.write_trial(tmp_path, trial("a-r0"), {"objective.beta": 1.0})
    store.write_trial(tmp_path, trial("b-r0"), {"model.style_dim": {"svhn": 3}})
    rows = store.read(tmp_path).trials.to_pylist()
    assert [row["param.objective.beta"] for row in rows] == [1.0, None]
    assert [row["param.model.style_dim"] for row in rows] == [None, '{"svhn": 3}']


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ((None, 4), [None, 4]),
        ((1, 2.5), [1.0, 2.5]),
        ((4, "all", {"svhn": 3}), ["4", "all", '{"svhn": 3}']),
        ((None, (0.5, 0.5)), [None, [0.5, 0.5]]),
        ((None, None), [None, None]),
    ],
)
def test_all_files_of_a_study_have_the_same_columns_for_any_reader(tmp_path, values, written):
    swept = {"a.field": list(values), "of.one.case": [1, 2]}
    for number, value in enumerate(values):
        store.write_trial(tmp_path, trial(f"{number}-r0"), {"a.field": value}, swept=swept)
    store.write_trial(tmp_path, trial("9-r0"), {"of.one.case": 2}, swept=swept)
    folder = tmp_path / "results" / "trials"
    files = str(folder / "*.parquet")
    told = [[*written, None], [None] * len(values) + [2]]
    arrow = pq.read_table(folder)
    assert [arrow["param.a.field"].to_pylist(), arrow["param.of.one.case"].to_pylist()] == told
    assert len(pd.read_parquet(folder)["param.of.one.case"].dropna()) == 1
    frame = polars.read_parquet(files)
    assert [frame["param.a.field"].to_list(), frame["param.of.one.case"].to_list()] == told
    found = duckdb.sql(f'select "param.a.field", "param.of.one.case" from \'{files}\' order by trial_id')
    assert [list(each) for each in zip(*found.fetchall(), strict=True)] == told


def test_writing_again_replaces(tmp_path):
    store.write_measurements(tmp_path, "abc-r0", [measurement(0.1)])
    store.write_measurements(tmp_path, "abc-r0", [measurement(0.1), measurement(0.2, epoch=2)])
    assert [row["value"] for row in store.read_measurements(tmp_path, "abc-r0")] == [0.1, 0.2]
    assert len(list((tmp_path / "results" / "measurements").iterdir())) == 1


def test_a_write_that_was_cut_off_leaves_the_old_file(tmp_path, monkeypatch):
    store.write_measurements(tmp_path, "abc-r0", [measurement(0.1)])

    def cut(table, path, **_):
        path.write_bytes(b"PAR1 and no more")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", cut)
    with pytest.raises(KeyboardInterrupt):
        store.write_measurements(tmp_path, "abc-r0", [measurement(0.9)])
    assert [row["value"] for row in store.read_measurements(tmp_path, "abc-r0")] == [0.1]
    assert len(store.read(tmp_path).measurements) == 1


def test_a_bit_that_flips_is_told_and_changes_no_number(tmp_path):
    store.write_measurements(
        tmp_path, "abc-r0", [measurement(number / 7, epoch=number) for number in range(9)]
    )
    (file,) = (tmp_path / "results" / "measurements").iterdir()
    content, whole, told = file.read_bytes(), store.read(tmp_path).measurements, 0
    pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # before what describes them
    for place in range(4, pages, pages // 200):
        file.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            assert store.read(tmp_path).measurements.equals(whole), place
        except store.StoreError:
            told += 1
    assert told > 50


def test_other_readers_find_the_same_numbers(tmp_path):
    store.write_measurements(tmp_path, "abc-r0", [measurement(0.1), measurement(0.2, epoch=2)])
    files = str(tmp_path / "results" / "measurements" / "*.parquet")
    assert duckdb.sql(f"select sum(value) from '{files}'").fetchall()[0][0] == pytest.approx(0.3)
    frame = pd.read_parquet(tmp_path / "results" / "measurements")
    assert frame["value"].tolist() == [0.1, 0.2]


def test_units_and_direction_stand_in_the_files(tmp_path):
    store.write_trial(tmp_path, trial(), {})
    metadata = store.read(tmp_path).trials.schema.metadata
    assert b'"loss": "nats per sample"' in metadata[b"mmjsd.units"]
    assert b'"log_likelihood": "nats per sample"' in metadata[b"mmjsd.units"]
    assert b"reconstruction" in metadata[b"mmjsd.lower_is_better"]
    assert b"frechet_distance" in metadata[b"mmjsd.lower_is_better"]
    assert b"log_likelihood" not in metadata[b"mmjsd.lower_is_better"]


def test_a_folder_without_results_is_told(tmp_path):
    with pytest.raises(store.StoreError, match=f"{tmp_path} holds no results"):
        store.read(tmp_path)
    (tmp_path / "study.json").write_text("{}")
    assert store.read(tmp_path).trials.num_rows == 0  # a study that has just begun


def test_a_damaged_file_is_named_with_the_way_out(tmp_path):
    store.write_trial(tmp_path, trial(), {})
    file = tmp_path / "results" / "trials" / "abc-r0.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(store.StoreError, match=r"abc-r0\.parquet is damaged .*delete it .* --resume"):
        store.read(tmp_path)


def test_a_foreign_file_is_named_with_what_it_lacks(tmp_path):
    file = tmp_path / "results" / "measurements" / "x.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"value": [1.0]}), file)
    with pytest.raises(store.StoreError, match=r"x\.parquet is not a results file.*it lacks study, trial_id"):
        store.read(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("state", "WHAT", "state is 'WHAT', and not one of COMPLETE, STOPPED, DIVERGED, FAILED"),
        ("config", '{"model":', "config is no JSON object"),
        ("config", "[]", "config is no JSON object"),
        ("trial_id", None, "trial_id is null"),
    ],
)
def test_a_trial_with_a_value_that_nothing_writes_is_named(tmp_path, column, value, words):
    store.write_trial(tmp_path, trial(), {})
    file = tmp_path / "results" / "trials" / "abc-r0.parquet"
    table = pq.read_table(file)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array([value], pa.string())), file)
    for read in (store.read, store.ended_trials):
        with pytest.raises(
            store.StoreError, match=rf"abc-r0\.parquet is not a results file: its {words}; move"
        ):
            read(tmp_path)


def without(file, column):
    table = pq.read_table(file)
    pq.write_table(table.drop_columns([column]), file)


def test_a_file_of_an_older_commit_reads_with_a_null_in_the_column_that_it_lacks(tmp_path):
    for number in range(2):
        store.write_trial(tmp_path, trial(f"abc-r{number}", evaluation_s=2.5), {"objective.beta": 1.0})
    files = sorted((tmp_path / "results" / "trials").iterdir())
    without(files[0], "evaluation_s")
    assert store.read(tmp_path).trials["evaluation_s"].to_pylist() == [None, 2.5]
    assert store.read_trial(tmp_path, "abc-r0")["evaluation_s"] is None
    without(files[1], "evaluation_s")
    assert [row["evaluation_s"] for row in store.ended_trials(tmp_path)] == [None, None]
    assert store.read(tmp_path).trials.column_names == [*store.TRIALS.names, "param.objective.beta"]
    without(files[0], "wall_s")
    with pytest.raises(store.StoreError, match="it lacks wall_s"):
        store.read(tmp_path)


def test_a_snapshot_without_a_column_of_today_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_MANY", 2)
    for number in range(2):
        store.write_trial(tmp_path, trial(f"abc-r{number}", evaluation_s=2.5), {})
    names = [name for name in store.TRIALS.names if name != "evaluation_s"]
    with monkeypatch.context() as patch:
        patch.setattr(store, "TRIALS", pa.schema([store.TRIALS.field(name) for name in names]))
        store.read(tmp_path)
    without(tmp_path / "results" / ".trials.snapshot", "evaluation_s")
    assert store.read(tmp_path).trials["evaluation_s"].to_pylist() == [2.5, 2.5]


def test_many_files_are_read_from_a_snapshot_until_one_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_MANY", 2)
    for number in range(3):
        store.write_trial(tmp_path, trial(f"abc-r{number}", objective_value=0.5), {})
    first = store.read(tmp_path).trials
    assert (tmp_path / "results" / ".trials.snapshot").exists()
    assert set(pd.read_parquet(tmp_path / "results" / "trials")["trial_id"]) == set(
        first["trial_id"].to_pylist()
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            store,
            "_read_files",
            lambda paths, schema: pytest.fail("again") if paths else schema.empty_table(),
        )
        assert store.read(tmp_path).trials.equals(first)
    store.write_trial(tmp_path, trial("abc-r1", objective_value=0.75), {})
    assert store.read(tmp_path).trials["objective_value"].to_pylist() == [0.5, 0.75, 0.5]
    (tmp_path / "results" / ".trials.snapshot").write_bytes(b"torn")
    assert store.read(tmp_path).trials.num_rows == 3


def test_another_schema_version_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(store._METADATA, b"mmjsd.schema_version", b"0")
    store.write_trial(tmp_path, trial(), {})
    with pytest.raises(store.StoreError, match="schema version 0; expected 1"):
        store.read(tmp_path)


def test_a_file_without_a_column_that_came_later_reads_as_empty_there(tmp_path):
    store.write_trial(tmp_path, trial("a-r0"), {})
    store.write_trial(tmp_path, trial("b-r0"), {}, {"mean_coherence": 0.5, "log_likelihood": None})
    file = tmp_path / "results" / "trials" / "a-r0.parquet"
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["phase"]), file)
    rows = store.read(tmp_path).trials.to_pylist()
    assert [row["phase"] for row in rows] == [None, "search"]
    assert [row["objective.mean_coherence"] for row in rows] == [None, 0.5]
    assert store.read_trial(tmp_path, "a-r0")["phase"] is None
    assert store.read_trial(tmp_path, "b-r0")["objective.log_likelihood"] is None


def written(out, states):
    """One trial of each state, two measurements each."""
    for number, state in enumerate(states):
        name = f"t{number}-r0"
        store.write_measurements(out, name, [measurement(number, name), measurement(number, name, epoch=2)])
        if state:
            store.write_trial(out, trial(name, state=state), {})
    return out / "results" / "measurements"


def test_measurements_of_ended_trials_are_compacted_and_read_as_before(tmp_path):
    folder = written(tmp_path, ["COMPLETE", "FAILED", "STOPPED", "DIVERGED", ""])
    rows = store.read(tmp_path).measurements.to_pylist()
    (folder / ".t0-r0.parquet.123").write_bytes(b"PAR1")  # as a process that was killed leaves it
    store.compact(tmp_path)
    left = {"compacted.parquet", "t1-r0.parquet", "t3-r0.parquet", "t4-r0.parquet"}
    assert {path.name for path in folder.iterdir()} == left

    def sort(rows):
        return sorted(rows, key=lambda row: (row["trial_id"], row["epoch"]))

    assert sort(store.read(tmp_path).measurements.to_pylist()) == rows
    assert [row["epoch"] for row in store.read_measurements(tmp_path, "t2-r0")] == [1, 2]
    assert store.read_measurements(tmp_path, "t9-r0") == []
    assert duckdb.sql(f"select count(*), sum(value) from '{folder}/*.parquet'").fetchall() == [(10, 20.0)]
    before = (folder / "compacted.parquet").stat().st_mtime_ns
    store.compact(tmp_path)
    assert (folder / "compacted.parquet").stat().st_mtime_ns == before
    store.write_trial(tmp_path, trial("t4-r0"), {})  # the study was extended
    store.compact(tmp_path)
    assert sort(store.read(tmp_path).measurements.to_pylist()) == rows
    assert len(list(folder.iterdir())) == 3


def test_knows_of_which_trials_there_are_measurements_and_names_a_file_that_was_cut_off(tmp_path):
    assert store.measured_trials(tmp_path) == set()
    folder = written(tmp_path, ["COMPLETE", "FAILED", "STOPPED"])
    store.compact(tmp_path)
    assert store.measured_trials(tmp_path) == {"t0-r0", "t1-r0", "t2-r0"}
    (folder / "t1-r0.parquet").unlink()
    assert store.measured_trials(tmp_path) == {"t0-r0", "t2-r0"}
    whole = (folder / "compacted.parquet").read_bytes()
    (folder / "compacted.parquet").write_bytes(whole[:-1])
    with pytest.raises(store.StoreError, match=r"compacted.parquet is damaged .* is trained again"):
        store.measured_trials(tmp_path)


def test_a_crash_while_compacting_doubles_no_row(tmp_path, monkeypatch):
    folder = written(tmp_path, ["COMPLETE", "COMPLETE", "COMPLETE"])
    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "unlink", lambda path, missing_ok=False: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            store.compact(tmp_path)
    assert len(list(folder.iterdir())) == 4
    assert store.read(tmp_path).measurements.num_rows == 6
    store.compact(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["compacted.parquet"]
    assert store.read(tmp_path).measurements.num_rows == 6


def test_a_reader_follows_files_that_are_compacted_meanwhile(tmp_path, monkeypatch):
    written(tmp_path, ["COMPLETE", "COMPLETE"])
    read, late = store._read_file, []

    def slow(path, schema):
        if schema is store.MEASUREMENTS and not late:
            late.append(path)
            monkeypatch.setattr(store, "_read_file", read)
            store.compact(tmp_path)
            return slow(path, schema)
        return read(path, schema)

    monkeypatch.setattr(store, "_read_file", slow)
    assert store.read(tmp_path).measurements.num_rows == 4
    assert late


def test_a_trial_that_is_tried_again_is_forgotten_first(tmp_path):
    store.write_trial(tmp_path, trial(state="FAILED"), {})
    store.forget_trial(tmp_path, "abc-r0")
    store.forget_trial(tmp_path, "abc-r0")
    assert store.read_trial(tmp_path, "abc-r0") is None
    assert store.ended_trials(tmp_path) == []


@pytest.mark.parametrize("table", ["trials", "measurements"])
def test_a_copy_of_a_file_is_named(tmp_path, table):
    store.write_trial(tmp_path, trial(), {})
    store.write_measurements(tmp_path, "abc-r0", [measurement(0.1)])
    (file,) = (tmp_path / "results" / table).iterdir()
    copy = file.with_name(f"{file.stem} (conflicted copy).parquet")
    copy.write_bytes(file.read_bytes())
    told = rf"{re.escape(str(copy))} holds the trial {file.stem}, as a copy would; move it out"
    with pytest.raises(store.StoreError, match=told):
        store.read(tmp_path)
