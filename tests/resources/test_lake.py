"""Tables are replaced as a whole, readers never see a mix, and the catalog refuses writes and foreign files."""

import threading

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apriel_assets.errors import UserError
from apriel_assets.tables.schemas import TABLES, table_schema, to_table
from resources.lake import Lake


def rows(value, count=3):
    row = {
        "model": "h4",
        "task": "recall",
        "metric": "accuracy",
        "value": float(value),
        "num_problems": count,
    }
    return to_table("evals", [row] * count)


@pytest.fixture
def lake(tmp_path):
    lake = Lake(tmp_path)
    lake.publish({"evals": rows(1)}, recipe="r", asset="evals/h4", version="v1", partition="recall")
    return lake


def test_rerun_replaces_and_never_appends(lake):
    lake.publish({"evals": rows(2)}, recipe="r", asset="evals/h4", version="v2", partition="recall")
    assert lake.query("select count(*), min(value), min(version) from evals")[1] == [(3, 2.0, "v2")]


def test_every_table_has_a_view_with_its_columns_also_when_empty(lake):
    for name, columns in TABLES.items():
        found, _ = lake.query(f'select * from "{name}" limit 0')
        assert set(found) == {*columns, "recipe", "version", "variant"}


def test_published_figures_are_there(lake):
    assert lake.query("select count(*) from published")[1][0][0] > 0


@pytest.mark.parametrize(
    "sql",
    [
        "create table t (a int)",
        "drop view evals",
        "copy (select 1) to 'x.csv'",
        "copy (select 1 as model) to '{lake}/evals/tiny/evals.parquet'",
        "create temp table x as select 1",
        "explain analyze copy (select 1) to '{lake}/x.csv'",
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('/etc/passwd')",
        "attach '/tmp/other.duckdb'",
        "install httpfs",
        "set enable_external_access = true",
        "select 1; select 2",
        "selec 1",
        "",
    ],
)
def test_catalog_refuses_writes_foreign_files_and_nonsense_in_one_line(lake, sql):
    files = {path: path.read_bytes() for path in lake.home.rglob("*.parquet")}
    with pytest.raises(UserError) as error:
        lake.query(sql.format(lake=lake.home / "lake"))
    assert {path: path.read_bytes() for path in lake.home.rglob("*.parquet")} == files
    assert "\n" not in str(error.value)
    assert lake.query("select count(*) from evals")[1] == [(3,)]


def test_reader_sees_whole_tables_while_a_writer_replaces_them(lake):
    stop = threading.Event()

    def write():
        value = 0
        while not stop.is_set():
            value += 1
            lake.publish(
                {"evals": rows(value)}, recipe="r", asset="evals/h4", version=str(value), partition="recall"
            )

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(40):
            ((count, low, high),) = lake.query("select count(*), min(value), max(value) from evals")[1]
            assert count == 3
            assert low == high
    finally:
        stop.set()
        writer.join()


def test_moved_home_still_answers(lake, tmp_path):
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    assert Lake(moved).query("select count(*) from evals")[1] == [(3,)]


def test_prune_drops_what_the_recipe_no_longer_has(lake):
    lake.publish({"evals": rows(5)}, recipe="other", asset="evals/h9", version="v1")
    assert lake.prune("r", [("evals/h4", "copy")]) == ["evals.h4@recall.parquet"]
    assert lake.query("select distinct recipe from evals")[1] == [("other",)]


def test_read_has_every_column_of_the_schema_in_its_type(lake):
    for name in TABLES:
        found = lake.read(name, "r")
        expected = pa.schema(
            [*table_schema(name), ("recipe", pa.string()), ("version", pa.string()), ("variant", pa.string())]
        )
        assert found.schema.equals(expected)
    assert lake.read("evals", "r").column("value").to_pylist() == [1.0] * 3
    assert lake.read("evals", "other").num_rows == 0
    placements = to_table("placements", [{"placement": ["fa", "swa"], "budget": 0.5}])
    lake.publish({"placements": placements}, recipe="r", asset="finalists", version="v1")
    assert lake.read("placements", "r").column("placement").to_pylist() == [["fa", "swa"]]


def test_read_of_some_assets_takes_their_partitions_and_no_other(lake):
    for asset, partition in (("evals/h4", "copy"), ("evals/h40", "copy"), ("evals/h5", None)):
        lake.publish({"evals": rows(2)}, recipe="r", asset=asset, version=asset, partition=partition)
    found = lake.read("evals", "r", ["evals/h4"]).column("version").to_pylist()
    assert sorted(set(found)) == ["evals/h4", "v1"]
    assert set(lake.read("evals", "r", ["evals/h5", "evals/h9"]).column("version").to_pylist()) == {
        "evals/h5"
    }
    assert lake.read("evals", "r", []).num_rows == 0


@pytest.mark.parametrize("count", [1, 2000])
def test_a_file_says_which_artifact_its_rows_are_from(lake, count):
    table = {"evals": rows(1, count)}
    lake.publish(table, recipe="r", asset="evals/h6", version="v", address="abc")
    assert lake.holds(["evals"], "r", "evals/h6", None, "abc")
    assert not lake.holds(["evals"], "r", "evals/h6", None, "abd")
    assert not lake.holds(["evals", "builds"], "r", "evals/h6", None, "abc")


def test_empty_home_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="apriel run"):
        Lake(tmp_path).query("select 1")


def test_file_of_an_older_version_shows_null_in_columns_that_it_lacks(lake):
    path = next(lake.home.glob("lake/evals/r/*.parquet"))
    pq.write_table(pq.read_table(path).drop_columns(["seed"]), path)
    assert lake.query("select distinct seed, value from evals")[1] == [(None, 1.0)]
    lake.rebuild_catalog()
    assert lake.query("select distinct seed, value from evals")[1] == [(None, 1.0)]


def test_catalog_of_another_version_is_written_anew(lake):
    with duckdb.connect(str(lake.home / "catalog.duckdb")) as connection:
        connection.execute("CREATE OR REPLACE MACRO catalog_revision() AS 'older'; DROP VIEW ranking")
    assert lake.query("from ranking")[1] == []


def test_rows_whose_writer_was_killed_before_the_catalog_followed_are_seen(lake):
    """The first file of a table is there, its view is still that of an empty one."""
    first = next(lake.home.glob("lake/evals/r/*.parquet"))
    elsewhere = lake.home / "lake" / "evals" / "r" / "kept"
    first.rename(elsewhere)
    lake.rebuild_catalog()
    assert lake.query("select count(*) from evals")[1] == [(0,)]
    elsewhere.rename(first)
    assert lake.query("select count(*) from evals")[1] == [(3,)]
    first.unlink()  # and the other way: the last file is gone
    assert lake.query("select count(*) from evals")[1] == [(0,)]


def test_who_may_only_read_sees_the_tables_of_the_last_catalog(lake, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    lake.publish({"training": to_table("training", [])}, recipe="r", asset="h1/h4", version="v")
    next(lake.home.glob("lake/training/r/*.parquet")).unlink()
    monkeypatch.setattr(Lake, "rebuild_catalog", refuse)
    assert lake.query("select count(*) from evals")[1] == [(3,)]
    (lake.home / "catalog.duckdb").unlink()
    with pytest.raises(PermissionError):
        lake.query("select count(*) from evals")


@pytest.mark.parametrize("place", [10, -30])
def test_a_damaged_file_holds_no_artifacts_rows(place, lake):
    lake.publish({"evals": rows(1)}, recipe="r", asset="evals/h6", version="v", address="abc")
    (path,) = lake.home.glob("lake/evals/r/evals.h6.parquet")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert not lake.holds(["evals"], "r", "evals/h6", None, "abc")


def test_views_and_macros_cannot_be_replaced(lake):
    for sql in ("create or replace macro mcnemar_p(a, b) as 0", "drop view ranking"):
        with pytest.raises(UserError, match="only queries"):
            lake.query(sql)


def test_arrow_takes_parameters(lake):
    found = lake.arrow("select count(*) as n from evals where model = $model", {"model": "h4"})
    assert found.column("n").to_pylist() == [3]
    with pytest.raises(UserError, match="refused"):
        lake.arrow("from nowhere")
