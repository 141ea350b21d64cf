"""The result lake: one Parquet file per (table, recipe, asset), and a DuckDB catalog that holds only views on them.

A re-run replaces a file as a whole, so there are no appends and no duplicates; readers never wait for writers.
"""

import contextlib
import glob
import logging
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from apriel_assets.errors import UserError
from apriel_assets.tables.published import published_rows
from apriel_assets.tables.schemas import LAKE_COLUMNS, TABLES, table_schema, to_table
from apriel_assets.tables.views import VIEWS
from resources.atomic import replaced_file
from resources.catalog import catalog_is_current, has_files, quoted, table_source, write_catalog
from resources.file_hashes import SMALL_BYTES, stamp
from resources.home_format import check_format
from resources.sealed_parquet import seal_problem, write_sealed

logger = logging.getLogger(__name__)

_READING = (duckdb.StatementType.SELECT,)  # not EXPLAIN: with ANALYZE it runs what it explains
CATALOG = "catalog.duckdb"
# No extension comes by itself, no Python variable of ours is a table, nothing is written beside the catalog.
_CLOSED = (
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "python_enable_replacements = false",
    "temp_directory = ''",
)
_MOST_MEMORY = 4 << 30  # bytes, of one query; at most half of the machine's
_LOCKED = ("enable_external_access = false", "lock_configuration = true")
_BATCH_ROWS = 10_000
_ADDRESS = b"address"  # in a file's footer: of the artifact that its rows are from
# A home has thousands of files of a few rows: most of the time to read one goes into its footer.
_SMALL_ROWS = 1000
_SMALL: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
_ADDED = "automation."  # how names of the files of what sensors and schedules asked for begin


# What this process knows of the lake's files: path -> (stamp, artifact's address).
_addresses: dict[Path, tuple[list[int], str | None]] = {}


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
        variant: str | None = None,
        partition: str | None = None,
        address: str = "",
    ) -> None:
        """Replace what `asset` holds in each table by these rows, which the artifact at `address` has."""
        for name, rows in tables.items():
            for column, value in (("recipe", recipe), ("version", version), ("variant", variant)):
                rows = rows.append_column(column, pa.array([value] * rows.num_rows, LAKE_COLUMNS[column][0]))
            final = self._file(name, recipe, asset, partition)
            first = not has_files(self.home / "lake" / name)
            with replaced_file(final) as temporary:
                _write(rows, temporary, address)
            if first:
                self.rebuild_catalog()

    def holds(
        self, tables: Iterable[str], recipe: str, asset: str, partition: str | None, address: str
    ) -> bool:
        """Return whether all of these tables show what the artifact at `address` has."""
        # Not the data version: two rankings that order alike share one, and differ in their scores.
        files = (self._file(name, recipe, asset, partition) for name in tables)
        return all(_address_in(path) == address for path in files)

    def _file(self, table: str, recipe: str, asset: str, partition: str | None) -> Path:
        return self.home / "lake" / table / recipe / _file_name(asset, partition)

    def prune(self, recipe: str, keep: Iterable[tuple[str, str | None]]) -> list[str]:
        """Drop rows of assets (and partitions) that the recipe no longer has; return the names of their files.

        Nothing is lost: the artifacts keep their tables, and `tidy_lake` shows them again when the recipe has them
        back. What sensors and schedules added is in no recipe's plan and stays.
        """
        kept = {_file_name(asset, partition) for asset, partition in keep}
        files = self.home.glob(f"lake/*/{recipe}/*.parquet")
        gone = [path for path in files if path.name not in kept and not path.name.startswith(_ADDED)]
        for path in gone:
            path.unlink(missing_ok=True)
        if gone:
            self.rebuild_catalog()
        return sorted(path.name for path in gone)

    def read(
        self, name: str, recipe: str, assets: Collection[str] | None = None, *, variants: bool = False
    ) -> pa.Table:
        """Return a table's rows for one recipe, of all assets or of some, with the lake's columns; maybe none.

        Args:
            name: of the table.
            recipe: its name.
            assets: of these alone; None: of all.
            variants: with the rows of the recipe's variants.
        """
        patterns = ["*.parquet"]
        if assets is not None:
            patterns = [_file_name(asset, part) for asset in assets for part in (None, "*")]
        files = [path for own in patterns for path in (self.home / "lake" / name / recipe).glob(own)]
        # By DuckDB: thousands of small files one by one would take pyarrow several times as long.
        with duckdb.connect() as connection:
            which = "" if variants else " WHERE variant IS NULL"
            source = table_source(name, sorted(glob.escape(str(path)) for path in files))
            rows = connection.execute(f"FROM ({source}){which}").to_arrow_table()
        schema = _schema(name)
        return rows.select(schema.names).cast(schema)

    def rebuild_catalog(self) -> Path:
        """Write the views beside the catalog and swap them in."""
        final = self.home / CATALOG
        with replaced_file(self.home / "lake" / "published" / "any" / "published.parquet") as temporary:
            rows = to_table("published", published_rows())
            for column, (dtype, _) in LAKE_COLUMNS.items():
                rows = rows.append_column(column, pa.nulls(rows.num_rows, dtype))
            write_sealed(rows, temporary, {})
        write_catalog(final, self.home.resolve() / "lake")
        return final

    def connect(self) -> duckdb.DuckDBPyConnection:
        """Open the catalog for reading; it can read the lake's files and nothing else.

        Raises:
            UserError: the home has no results yet, or a newer version wrote it.
        """
        check_format(self.home)
        if not (self.home / "lake").is_dir():
            raise UserError(f"no results in {self.home}; run `apriel run --home {self.home}` first")
        if not catalog_is_current(self.home / CATALOG, self.home.resolve() / "lake"):
            self._mend_catalog()
        connection = duckdb.connect(str(self.home / CATALOG), read_only=True)
        lake = str(self.home.resolve() / "lake")
        allowed = ", ".join(map(quoted, dict.fromkeys((lake, glob.escape(lake)))))  # as views write it, too
        memory = f"memory_limit = '{_memory_limit()}B'"
        for setting in (*_CLOSED, memory, f"allowed_directories = [{allowed}]", *_LOCKED):
            connection.execute(f"SET {setting}")
        return connection

    def _mend_catalog(self) -> None:
        try:
            self.rebuild_catalog()
        except OSError as error:
            if not (self.home / CATALOG).is_file():
                raise
            # Who may only read sees the tables that there were when it was written last.
            logger.warning(
                "%s is not of today and cannot be written: %s", self.home / CATALOG, error.strerror
            )

    def query(self, sql: str) -> tuple[list[str], list[tuple]]:
        """Run one read-only statement; return column names and rows.

        Raises:
            UserError: no results yet, several statements, a write, or SQL that DuckDB refuses (its reason, one line).
        """
        with self.rows(sql) as (columns, batches):
            return columns, [row for batch in batches for row in batch]

    @contextlib.contextmanager
    def rows(
        self, sql: str, seconds: float | None = None
    ) -> Iterator[tuple[list[str], Iterator[list[tuple]]]]:
        """Yield column names, and the rows in batches as they are computed, so that any number takes little memory.

        Errors: as `query`, and a statement that takes longer than `seconds`, reading its rows included.
        """
        with self._result(sql, seconds=seconds) as result:
            columns = [column[0] for column in result.description or []]
            yield columns, iter(lambda: result.fetchmany(_BATCH_ROWS), [])

    def arrow(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Run one read-only statement, `$name` being a parameter; return an Arrow table. Errors: as `query`."""
        with self._result(sql, parameters) as result:
            return result.to_arrow_table()

    @contextlib.contextmanager
    def arrow_batches(self, sql: str, seconds: float | None = None) -> Iterator[pa.RecordBatchReader]:
        """Yield Arrow batches as they are computed. Errors: as `rows`."""
        with self._result(sql, seconds=seconds) as result:
            yield result.to_arrow_reader(_BATCH_ROWS)

    @contextlib.contextmanager
    def _result(
        self, sql: str, parameters: Mapping[str, Any] | None = None, seconds: float | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        if re.search(r"[\ud800-\udfff]", sql):  # as arguments of a command come that are not UTF-8
            raise UserError("the statement is not UTF-8 text")
        over = threading.Event()
        with self.connect() as connection, _interrupted_after(seconds, connection, over):
            try:
                statements = connection.extract_statements(sql)
                if len(statements) != 1:
                    raise UserError("give exactly one SQL statement")
                # A read-only connection still lets COPY overwrite the files that it may read.
                if statements[0].type not in _READING:
                    raise UserError(f"only queries are allowed, not {statements[0].type.name}; try SELECT")
                yield connection.execute(sql, parameters)
            except Exception as error:
                # Of whatever kind: who reads rows meets an interrupt as that reader's error.
                if over.is_set():
                    raise UserError(
                        f"the query took longer than {seconds:g} s; ask for less, or give --timeout"
                    ) from error
                if not isinstance(error, duckdb.Error | pa.ArrowException | MemoryError):
                    raise
                lines = str(error).splitlines() or [type(error).__name__]
                names = ", ".join([*TABLES, *VIEWS])
                raise UserError(f"SQL refused: {lines[0]}; tables: {names}") from error


def _memory_limit() -> int:
    return min(_MOST_MEMORY, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


@contextlib.contextmanager
def _interrupted_after(
    seconds: float | None, connection: duckdb.DuckDBPyConnection, over: threading.Event
) -> Iterator[None]:
    """Interrupt what a connection computes when the time is over, and say so; None: never."""

    def interrupt() -> None:
        over.set()
        connection.interrupt()

    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, interrupt)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # or it could interrupt a connection that is closed


def _write(rows: pa.Table, path: Path, address: str) -> None:
    options = _SMALL if rows.num_rows < _SMALL_ROWS else {}
    write_sealed(rows, path, {_ADDRESS: address.encode()}, **options)


def _address_in(path: Path) -> str | None:
    """Return the artifact whose rows a file has; None: there is no file, it does not say so, or it is damaged."""
    try:
        seen = stamp(path)
        if _addresses.get(path, ([], None))[0] != seen:
            _addresses[path] = (seen, _read_address(path, seen[0]))
    except (OSError, pa.ArrowInvalid):
        return None
    return _addresses[path][1]


def _read_address(path: Path, num_bytes: int) -> str | None:
    # Of a large file only the footer is read: `apriel verify` reads all of it.
    if num_bytes < SMALL_BYTES and seal_problem(path):
        return None
    found = (pq.read_metadata(path).metadata or {}).get(_ADDRESS)
    return found.decode() if found else None


def _schema(name: str) -> pa.Schema:
    lake_columns = [pa.field(column, dtype) for column, (dtype, _) in LAKE_COLUMNS.items()]
    return pa.schema([*table_schema(name), *lake_columns])
