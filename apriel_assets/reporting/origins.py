"""Where every number of the page comes from: the builds behind each result table."""

from collections.abc import Sequence
from dataclasses import dataclass

from apriel_assets.reporting.sections import ABSENT, Table, shown
from apriel_assets.reporting.summary import Row, Tables, table_rows


@dataclass(frozen=True, kw_only=True)
class Origin:
    """An asset whose rows a section shows."""

    asset: str
    note: str  # how many of its partitions


def origins(tables: Tables, sources: Sequence[str]) -> list[Origin]:
    """Return the assets that have rows in these result tables, in the order in which they were built."""
    partitions: dict[str, int] = {}
    for row in _builds(tables):
        if set(row["tables"] or ()) & set(sources):
            partitions[row["asset"]] = partitions.get(row["asset"], 0) + (row["partition"] is not None)
    return [
        Origin(asset=asset, note=f" ({count} partitions)" if count > 1 else "")
        for asset, count in partitions.items()
    ]


def origins_table(tables: Tables) -> Table:
    """Return a row per build: hash, commit, device, seed, day, seconds."""
    return Table(
        title="Builds",
        headings=("asset", "partition", "hash", "commit", "device", "seed", "date", "seconds", "tables"),
        rows=[
            (
                row["asset"],
                row["partition"] or ABSENT,
                row["address"] or ABSENT,
                row["code"] or ABSENT,
                row["device"] or ABSENT,
                ABSENT if row["seed"] is None else str(row["seed"]),
                row["date"] or ABSENT,
                shown(row["seconds"], ",.1f"),
                ", ".join(row["tables"] or ()) or ABSENT,
            )
            for row in _builds(tables)
        ],
        note="Hash: the artifact's address, a directory under artifacts/<asset>/; its provenance.json has recipe"
        " values, inputs, libraries and the hash of each file.",
    )


def _builds(tables: Tables) -> list[Row]:
    return sorted(table_rows(tables, "builds"), key=lambda row: (row["asset"], row["partition"] or ""))
