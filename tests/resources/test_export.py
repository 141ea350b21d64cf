import pandas
import polars
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from apriel_assets.errors import UserError
from resources import export
from resources.export import to_pandas, to_polars, write_file
from tests.tables.made_up_home import write_home

TABLE = pa.table({"placement": [["fa", "swa"], None], "value": [0.5, None], "n": [1, 2]})


def test_csv_has_lists_as_text_and_nulls_empty(tmp_path):
    write_file(TABLE, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        '"placement","value","n"',
        '"fa swa",0.5,1',
        ",,2",
    ]


def test_parquet_keeps_types_and_replaces_the_file(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_text("old")
    write_file(TABLE, path)
    assert pa.parquet.read_table(path).equals(TABLE)
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


def test_pandas_frame():
    frame = to_pandas(TABLE)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == TABLE.column_names
    assert frame["n"].tolist() == [1, 2]
    assert frame["placement"][0].tolist() == ["fa", "swa"]
    assert frame["value"].isna().tolist() == [False, True]


def test_polars_frame():
    frame = to_polars(TABLE)
    assert isinstance(frame, polars.DataFrame)
    assert frame.columns == TABLE.column_names
    assert frame["placement"].to_list() == [["fa", "swa"], None]
    assert frame["value"].to_list() == [0.5, None]


def test_every_format_says_the_same_of_a_worked_query(tmp_path):
    rows = write_home(tmp_path / "home").arrow("from ranking")
    write_file(rows, tmp_path / "r.parquet")
    write_file(rows, tmp_path / "r.csv")
    expected = rows.column("accuracy").to_pylist()
    assert pyarrow.parquet.read_table(tmp_path / "r.parquet").column("accuracy").to_pylist() == expected
    assert pyarrow.csv.read_csv(tmp_path / "r.csv").column("accuracy").to_pylist() == expected
    assert to_pandas(rows)["accuracy"].tolist() == to_polars(rows)["accuracy"].to_list() == expected


def test_frame_without_its_library_says_what_to_install(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(export.importlib, "import_module", absent)
    with pytest.raises(UserError, match="apriel-assets\\[frames\\]"):
        to_pandas(TABLE)
