"""What Dagster has recorded of many assets at once: a few queries, however many partitions there are."""

import weakref
from collections.abc import Mapping, MutableMapping, Sequence

import dagster as dg
from dagster._core.event_api import EventRecordsFilter

Materializations = dict[tuple[str, str | None], dg.EventLogRecord]

CHUNK = 500  # ids in one query; SQLite limits the variables of a statement
KEPT = 20_000  # records that a process keeps

_known: MutableMapping[dg.DagsterInstance, dict[int, dg.EventLogRecord]] = weakref.WeakKeyDictionary()


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
    # Records never change. A run plans many times, and to read them again would be most of a plan's time.
    known = _known.setdefault(instance, {})
    missing = [storage_id for storage_id in ids if storage_id not in known]
    if len(known) + len(missing) > KEPT:
        known.clear()
        missing = list(ids)
    for start in range(0, len(missing), CHUNK):
        wanted = EventRecordsFilter(
            event_type=dg.DagsterEventType.ASSET_MATERIALIZATION, storage_ids=missing[start : start + CHUNK]
        )
        known.update(
            (record.storage_id, record) for record in instance.event_log_storage.get_event_records(wanted)
        )
    return [known[storage_id] for storage_id in ids if storage_id in known]


def recorded_address(record: dg.EventLogRecord | None) -> str | None:
    """Return the artifact's address by a materialization's record, or None."""
    if record is None or record.asset_materialization is None:
        return None
    value = record.asset_materialization.metadata.get("address")
    return str(value.value) if value else None
