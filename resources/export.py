"""Query results outside of the lake: a CSV or Parquet file, a pandas or Polars frame."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from apriel_assets.errors import UserError
from resources.atomic import replaced_file

if TYPE_CHECKING:
    import pandas
    import polars  # type: ignore[import-not-found]  # optional

FORMATS = (".csv", ".parquet")


def check_name(path: Path) -> None:
    """Refuse a file whose name says no format that we write.

    Raises:
        UserError: a name that does not end with one of `FORMATS`, or a directory that is not there.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: cannot tell the format; end the name with {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no directory {path.parent}; make it first")


def write_file(rows: pa.Table | pa.RecordBatchReader, path: Path) -> int:
    """Write rows to a .csv or .parquet file, replacing it as a whole; return how many there are.

    In CSV, lists (placements, token ids) become text with spaces between their items; Parquet keeps types and lists.

    Raises:
        UserError: as `check_name`, or the file cannot be written.
    """
    check_name(path)
    is_csv, count = path.suffix == ".csv", 0
    batches = rows.to_reader() if isinstance(rows, pa.Table) else rows
    schema = _flat(batches.schema.empty_table()).schema if is_csv else batches.schema
    try:
        with replaced_file(path) as temporary, _writer(temporary, schema, is_csv) as writer:
            for batch in batches:
                table = pa.Table.from_batches([batch])
                writer.write_table(_flat(table) if is_csv else table)
                count += table.num_rows
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another file") from error
    return count


def _writer(path: Path, schema: pa.Schema, is_csv: bool) -> pyarrow.csv.CSVWriter | pq.ParquetWriter:
    return pyarrow.csv.CSVWriter(path, schema) if is_csv else pq.ParquetWriter(path, schema)


def to_pandas(table: pa.Table) -> "pandas.DataFrame":
    """Return the table as a pandas frame.

    Raises:
        UserError: pandas is not installed.
    """
    _library("pandas")
    return table.to_pandas()


def to_polars(table: pa.Table) -> "polars.DataFrame":
    """Return the table as a Polars frame.

    Raises:
        UserError: Polars is not installed.
    """
    return _library("polars").from_arrow(table)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{name} is not installed: pip install 'apriel-assets[frames]'") from error


def _flat(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [_text(value) for value in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(texts, pa.string()))
    return table


def _text(value: Any) -> str | None:
    return " ".join(map(str, value)) if isinstance(value, list) else None if value is None else str(value)
