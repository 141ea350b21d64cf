"""Which artifacts failed a blocking check, by Dagster's records."""

from collections.abc import Mapping

import dagster as dg
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.records import Materializations, asset_key

COMPLETED = {AssetCheckExecutionRecordStatus.FAILED, AssetCheckExecutionRecordStatus.SUCCEEDED}

Verdicts = dict[tuple[str, str | None], str]  # (asset, partition) -> name of the blocking check that failed


def failed_checks(
    assets: Mapping[str, AssetPlan], instance: dg.DagsterInstance, latest: Materializations
) -> Verdicts:
    """Return the artifacts that fail a blocking check by its latest result.

    Each result is on all partitions that exist; its metadata names those that failed (`partitions`).
    """
    keys = {
        dg.AssetCheckKey(asset_key(asset.key), check.name): asset
        for asset in assets.values()
        for check in asset.checks
        if check.blocking and any((asset.key, partition) in latest for partition in asset.partition_keys)
    }
    if not keys:
        return {}
    newest = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys))
    found: Verdicts = {}
    for key, asset in keys.items():
        record = _completed(instance, key, newest.get(key))
        verdict = _failed_verdict(record)
        if verdict is None or record is None:
            continue
        if not asset.partitions and record.run_id != latest[asset.key, None].run_id:
            continue  # on an earlier artifact
        named = verdict.metadata.get("partitions")
        partitions = str(named.value).split(", ") if named else asset.partition_keys
        found |= {(asset.key, partition): key.name for partition in partitions}
    return found


def _completed(
    instance: dg.DagsterInstance, key: dg.AssetCheckKey, newest: AssetCheckExecutionRecord | None
) -> AssetCheckExecutionRecord | None:
    if newest is None or newest.status in COMPLETED:
        return newest
    # A run that goes on, or died, has announced the check without a result.
    storage = instance.event_log_storage
    return next(iter(storage.get_asset_check_execution_history(key, limit=1, status=COMPLETED)), None)


def _failed_verdict(record: AssetCheckExecutionRecord | None) -> dg.AssetCheckEvaluation | None:
    """Return the check's result if it failed as an error, else None."""
    event = record.event.dagster_event if record and record.event else None
    if record is None or event is None or record.status != AssetCheckExecutionRecordStatus.FAILED:
        return None
    verdict = event.asset_check_evaluation_data
    return verdict if verdict.severity == dg.AssetCheckSeverity.ERROR else None
