"""Do two homes hold the same results? All tables, row by row, but for what a clock or a device measured."""

import re
from pathlib import Path

import pyarrow.parquet as pq

from apriel_assets.tables.schemas import TABLES
from resources.lake import Lake

MEASURED_TABLES = ("builds", "throughput", "mixer_costs", "cost_check", "devices", "roofline", "published")
_MEASURED = re.compile(
    r"seconds|per_s$|mfu$|speedup|measured|date$|device|^version$|peak_memory|^low_s|^high_s"
)


def table_rows(home: Path, recipe: str, table: str) -> list[str]:
    """Return a table's rows as text, in an order that does not depend on when they were written."""
    rows = Lake(home).read(table, recipe)
    kept = [name for name in rows.schema.names if not _MEASURED.search(name)]
    return sorted(map(repr, rows.select(kept).to_pylist()))


def differing_tables(one: Path, other: Path, recipe: str) -> list[str]:
    """Return the tables that differ between two homes, each with how many rows do."""
    found = []
    for name in TABLES:
        if name in MEASURED_TABLES:
            continue
        rows = [set(table_rows(home, recipe, name)) for home in (one, other)]
        if rows[0] != rows[1]:
            found.append(f"{name}: {len(rows[0] ^ rows[1])} rows")
    return found


def unseen_rows(home: Path) -> list[str]:
    """Return the tables whose view in the catalog shows another number of rows than their files have."""
    counts = (f"select '{name}', count(*) from \"{name}\"" for name in TABLES)
    seen = dict(Lake(home).query(" union all ".join(counts))[1])
    found = []
    for name in TABLES:
        files = (home / "lake" / name).glob("*/[!.]*.parquet")
        expected = sum(pq.read_metadata(path).num_rows for path in files)
        if seen[name] != expected:
            found.append(f"{name}: {seen[name]} of {expected} rows")
    return found
