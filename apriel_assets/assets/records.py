"""What Dagster has recorded of many assets at once: a few queries, however many partitions there are."""

from collections.abc import Mapping, Sequence

import dagster as dg
from dagster._core.storage.event_log.base import EventRecordsFilter

Materializations = dict[tuple[str, str | None], dg.EventLogRecord]

CHUNK = 500  # ids in one query; SQLite limits the variables of a statement


def asset_key(asset: str) -> dg.AssetKey:
    """Return Dagster's form of an asset's key (`h1/h6`)."""
    return dg.AssetKey(asset.split("/"))


def latest_materializations(
    instance: dg.DagsterInstance, wanted: Mapping[str, Sequence[str | None]]
) -> Materializations:
    """Return the latest materialization of each asset and partition that has one.

    Args:
        instance: Dagster's records.
        wanted: partition keys by asset; `(None,)` for an asset without partitions.
    """
    if not wanted:
        return {}
    records = {
        record.asset_entry.asset_key: record.asset_entry
        for record in instance.get_asset_records([asset_key(asset) for asset in wanted])
    }
    found: Materializations = {}
    places: dict[int, tuple[str, str | None]] = {}
    for asset, partitions in wanted.items():
        entry = records.get(asset_key(asset))
        if entry is None or entry.last_materialization_record is None:
            continue
        if None in partitions:
            found[asset, None] = entry.last_materialization_record
            continue
        ids = instance.get_latest_storage_id_by_partition(
            asset_key(asset),
            dg.DagsterEventType.ASSET_MATERIALIZATION,
            {partition for partition in partitions if partition is not None},
        )
        places |= {storage_id: (asset, partition) for partition, storage_id in ids.items()}
    for record in _by_storage_id(instance, list(places)):
        found[places[record.storage_id]] = record
    return found


def _by_storage_id(instance: dg.DagsterInstance, ids: Sequence[int]) -> list[dg.EventLogRecord]:
    found: list[dg.EventLogRecord] = []
    for start in range(0, len(ids), CHUNK):
        wanted = EventRecordsFilter(
            event_type=dg.DagsterEventType.ASSET_MATERIALIZATION, storage_ids=ids[start : start + CHUNK]
        )
        found.extend(instance.event_log_storage.get_event_records(wanted))
    return found


def recorded_address(record: dg.EventLogRecord | None) -> str | None:
    """Return the artifact's address by a materialization's record, or None."""
    if record is None or record.asset_materialization is None:
        return None
    value = record.asset_materialization.metadata.get("address")
    return str(value.value) if value else None
