"""The result lake: one Parquet file per (table, recipe, asset), and a DuckDB catalog that holds only views on them.

A re-run replaces a file as a whole, so there are no appends and no duplicates; readers never wait for writers.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from apriel_assets.errors import UserError
from apriel_assets.tables.published import published_rows
from apriel_assets.tables.schemas import LAKE_COLUMNS, TABLES, table_schema, to_table
from resources.atomic import replaced_file, temporary_name

_READING = (duckdb.StatementType.SELECT,)  # not EXPLAIN: with ANALYZE it runs what it explains
CATALOG = "catalog.duckdb"
_ADDED = "automation."  # how names of the files of what sensors and schedules asked for begin


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _file_name(asset: str, partition: str | None) -> str:
    return asset.replace("/", ".") + (f"@{partition}" if partition else "") + ".parquet"


@dataclass(frozen=True)
class Lake:
    """The result tables of one home."""

    home: Path

    def publish(
        self,
        tables: Mapping[str, pa.Table],
        *,
        recipe: str,
        asset: str,
        version: str,
        partition: str | None = None,
    ) -> None:
        """Replace what `asset` holds in each table by these rows."""
        for name, rows in tables.items():
            for column, value in (("recipe", recipe), ("version", version)):
                rows = rows.append_column(column, pa.array([value] * rows.num_rows, LAKE_COLUMNS[column][0]))
            final = self.home / "lake" / name / recipe / _file_name(asset, partition)
            first = not any((self.home / "lake" / name).glob("*/*.parquet"))
            with replaced_file(final) as temporary:
                pq.write_table(rows, temporary)
            if first:
                self.rebuild_catalog()

    def prune(self, recipe: str, keep: Iterable[tuple[str, str | None]]) -> list[str]:
        """Drop rows of assets (and partitions) that the recipe no longer has; return the names of their files.

        Nothing is lost: the artifacts keep their tables and are published again if the recipe returns. What sensors
        and schedules added is in no recipe's plan and stays.
        """
        kept = {_file_name(asset, partition) for asset, partition in keep}
        files = self.home.glob(f"lake/*/{recipe}/*.parquet")
        gone = [path for path in files if path.name not in kept and not path.name.startswith(_ADDED)]
        for path in gone:
            path.unlink(missing_ok=True)
        if gone:
            self.rebuild_catalog()
        return sorted(path.name for path in gone)

    def read(self, name: str, recipe: str) -> pa.Table:
        """Return all rows of a table for one recipe, with the lake's columns; empty if there are none."""
        files = sorted((self.home / "lake" / name / recipe).glob("*.parquet"))
        parts = [pq.read_table(path) for path in files]
        return pa.concat_tables(parts, promote_options="default") if parts else _empty(name)

    def rebuild_catalog(self) -> Path:
        """Write the views beside the catalog and swap them in."""
        final = self.home / CATALOG
        with replaced_file(self.home / "lake" / "published" / "any" / "published.parquet") as temporary:
            rows = to_table("published", published_rows())
            for column, (dtype, _) in LAKE_COLUMNS.items():
                rows = rows.append_column(column, pa.nulls(rows.num_rows, dtype))
            pq.write_table(rows, temporary)
        temporary = temporary_name(final)
        try:
            with duckdb.connect(str(temporary)) as connection:
                for name in TABLES:
                    connection.execute(self._view(name))
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
        return final

    def _view(self, name: str) -> str:
        pattern = self.home.resolve() / "lake" / name / "*" / "*.parquet"
        if any((self.home / "lake" / name).glob("*/*.parquet")):
            source = f"SELECT * FROM read_parquet({_quoted(str(pattern))}, union_by_name = true)"
        else:
            columns = ", ".join(
                f'NULL::{_duckdb_type(field.type)} AS "{field.name}"' for field in _empty(name).schema
            )
            source = f"SELECT {columns} WHERE false"
        comment = _quoted(", ".join(TABLES[name]))
        return f'CREATE VIEW "{name}" AS {source}; COMMENT ON VIEW "{name}" IS {comment}'

    def connect(self) -> duckdb.DuckDBPyConnection:
        """Open the catalog for reading; it can read the lake's files and nothing else.

        Raises:
            UserError: the home has no results yet.
        """
        if not (self.home / "lake").is_dir():
            raise UserError(f"no results in {self.home}; run `apriel run --home {self.home}` first")
        if not self._catalog_is_current():
            self.rebuild_catalog()
        connection = duckdb.connect(str(self.home / CATALOG), read_only=True)
        connection.execute(f"SET allowed_directories = [{_quoted(str(self.home.resolve() / 'lake'))}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        return connection

    def query(self, sql: str) -> tuple[list[str], list[tuple]]:
        """Run one read-only statement; return column names and rows.

        Raises:
            UserError: no results yet, several statements, a write, or SQL that DuckDB refuses (its reason, one line).
        """
        with self.connect() as connection:
            try:
                statements = connection.extract_statements(sql)
                if len(statements) != 1:
                    raise UserError("give exactly one SQL statement")
                # A read-only connection still lets COPY overwrite the files that it may read.
                if statements[0].type not in _READING:
                    raise UserError(f"only queries are allowed, not {statements[0].type.name}; try SELECT")
                result = connection.execute(sql)
                return [column[0] for column in result.description or []], result.fetchall()
            except duckdb.Error as error:
                lines = str(error).splitlines()
                raise UserError(f"SQL refused: {lines[0]}; tables: {', '.join(TABLES)}") from error

    def _catalog_is_current(self) -> bool:
        # Views hold absolute paths, so a home that was moved or copied needs them written anew.
        with contextlib.suppress(duckdb.Error, IndexError):
            with duckdb.connect(str(self.home / CATALOG), read_only=True) as connection:
                rows = connection.execute(
                    "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal"
                ).fetchall()
            views = dict(rows)
            return set(views) == set(TABLES) and str(self.home.resolve()) in views["published"]
        return False


def _empty(name: str) -> pa.Table:
    lake_columns = [pa.field(column, dtype) for column, (dtype, _) in LAKE_COLUMNS.items()]
    return pa.schema([*table_schema(name), *lake_columns]).empty_table()


def _duckdb_type(dtype: pa.DataType) -> str:
    if pa.types.is_list(dtype):
        return _duckdb_type(dtype.value_type) + "[]"
    names = {
        "int64": "BIGINT",
        "int32": "INTEGER",
        "double": "DOUBLE",
        "float": "FLOAT",
        "string": "VARCHAR",
        "bool": "BOOLEAN",
    }
    return names[str(dtype)]
