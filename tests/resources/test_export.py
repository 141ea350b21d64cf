import pyarrow as pa
import pytest

from apriel_assets.errors import UserError
from resources import export
from resources.export import to_pandas, to_polars, write_file

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
    pytest.importorskip("pandas")
    frame = to_pandas(TABLE)
    assert list(frame.columns) == TABLE.column_names
    assert frame["n"].tolist() == [1, 2]


def test_polars_frame():
    pytest.importorskip("polars")
    frame = to_polars(TABLE)
    assert frame.columns == TABLE.column_names
    assert frame["placement"].to_list() == [["fa", "swa"], None]


def test_frame_without_its_library_says_what_to_install(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(export.importlib, "import_module", absent)
    with pytest.raises(UserError, match="apriel-assets\\[frames\\]"):
        to_pandas(TABLE)
