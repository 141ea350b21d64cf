"""The DuckDB catalog of a lake: a view per result table, views and macros for common questions, comments on all."""

import contextlib
import glob
import os
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from apriel_assets.tables.meanings import TABLE_MEANINGS
from apriel_assets.tables.schemas import LAKE_COLUMNS, TABLES, table_schema
from apriel_assets.tables.views import FUNCTIONS, VIEWS
from resources.artifact_store import digest
from resources.atomic import replaced_file

_REVISION = "catalog_revision"
_TYPES = {
    "int64": "BIGINT",
    "int32": "INTEGER",
    "double": "DOUBLE",
    "float": "FLOAT",
    "string": "VARCHAR",
    "bool": "BOOLEAN",
}


def quoted(text: str) -> str:
    """Return a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def write_catalog(final: Path, lake: Path) -> None:
    """Write the catalog beside the present one and swap it in.

    Args:
        final: the catalog's file.
        lake: directory of the tables' files, absolute.
    """
    with replaced_file(final) as temporary, duckdb.connect(str(temporary)) as connection:
        connection.execute(";\n".join(["BEGIN", *_statements(lake), "COMMIT"]))


def catalog_is_current(catalog: Path, lake: Path) -> bool:
    """Return whether the catalog is of this version, of this lake and of the tables that have files in it.

    Views hold absolute paths, so a home that was moved or copied needs them written anew. A table's view is empty as
    long as it has no file; who wrote the first one may have been killed before the catalog followed.
    """
    with contextlib.suppress(duckdb.Error):
        with duckdb.connect(str(catalog), read_only=True) as connection:
            found = connection.execute(f"SELECT {_REVISION}()").fetchall()
        return found == [(_revision(lake, _filled(lake)),)]
    return False


def has_files(table: Path) -> bool:
    """Return whether any recipe has rows in a table's directory; stops at the first of perhaps thousands of files."""
    with contextlib.suppress(FileNotFoundError):
        for recipe in os.scandir(table):
            with os.scandir(recipe) as files:
                if any(file.name.endswith(".parquet") for file in files):
                    return True
    return False


def _filled(lake: Path) -> list[str]:
    return [name for name in TABLES if has_files(lake / name)]


def _revision(lake: Path, filled: Sequence[str]) -> str:
    return digest([str(lake), *filled, *_definitions()])


def _statements(lake: Path) -> list[str]:
    filled = _filled(lake)  # looked at once: the revision must be of these very views
    tables = [_table_view(name, lake, is_filled=name in filled) for name in TABLES]
    revision = f"CREATE MACRO {_REVISION}() AS {quoted(_revision(lake, filled))}"
    return [*tables, *_definitions(), revision]


def _definitions() -> list[str]:
    """Return what does not depend on which files there are: comments, macros, views, in an order that works."""
    found = []
    for name, columns in TABLES.items():
        lake_columns = {column: text for column, (_, text) in LAKE_COLUMNS.items()}
        meanings = {column: text for column, (_, text) in columns.items()} | lake_columns
        found += _comments(name, TABLE_MEANINGS[name], meanings)
    for name, function in FUNCTIONS.items():
        found.append(f"CREATE MACRO {name}({', '.join(function.parameters)}) AS {function.sql}")
        found.append(f"COMMENT ON MACRO {name} IS {quoted(function.meaning)}")
    for name, view in VIEWS.items():
        if view.parameters:
            found.append(f"CREATE MACRO {name}({', '.join(view.parameters)}) AS TABLE {view.sql}")
            found.append(f"COMMENT ON MACRO TABLE {name} IS {quoted(view.meaning)}")
        else:
            found.append(f"CREATE VIEW {name} AS {view.sql}")
            found += _comments(name, view.meaning, view.columns)
    return found


def _comments(view: str, meaning: str, columns: dict[str, str]) -> list[str]:
    own = f'COMMENT ON VIEW "{view}" IS {quoted(meaning)}'
    return [
        own,
        *(f'COMMENT ON COLUMN "{view}"."{column}" IS {quoted(text)}' for column, text in columns.items()),
    ]


def table_source(name: str, files: Sequence[str]) -> str:
    """Return the SELECT over a table's files, paths or globs of which each has one, with every column of its schema."""
    fields = [*table_schema(name), *(pa.field(column, dtype) for column, (dtype, _) in LAKE_COLUMNS.items())]
    columns = ", ".join(f'NULL::{_type(field.type)} AS "{field.name}"' for field in fields)
    source = f"SELECT {columns} WHERE false"
    if files:
        listed = ", ".join(map(quoted, files))
        # By name, after the schema: files of an older version lack columns, and every column must be there.
        source += f" UNION ALL BY NAME SELECT * FROM read_parquet([{listed}], union_by_name = true)"  # noqa: S608  quoted
    return source


def _table_view(name: str, lake: Path, *, is_filled: bool) -> str:
    pattern = f"{glob.escape(str(lake / name))}/*/*.parquet"  # a directory's own name may hold brackets
    return f'CREATE VIEW "{name}" AS {table_source(name, [pattern] if is_filled else [])}'


def _type(dtype: pa.DataType) -> str:
    return _type(dtype.value_type) + "[]" if pa.types.is_list(dtype) else _TYPES[str(dtype)]
