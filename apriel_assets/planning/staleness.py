"""Dagster's verdict on every asset and partition, from few queries.

Dagster's own resolver (`CachingStaleStatusResolver`, an internal API: Dagster is pinned, and a test compares with
GraphQL's `staleStatus`) asks its storage once or twice for each partition read. Ours reads the same records in bulk.
"""

from collections.abc import Mapping

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.data_version import CachingStaleStatusResolver, DataProvenance
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.loader import LoadingContext

from apriel_assets.assets.records import Materializations


class _Loading(LoadingContext):
    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._loaders: dict = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict:
        return self._loaders


class StaleStatusResolver(CachingStaleStatusResolver):
    """Dagster's rules on records that were read beforehand."""

    def __init__(
        self, instance: dg.DagsterInstance, graph: BaseAssetGraph, records: Materializations
    ) -> None:
        super().__init__(instance, graph, _Loading(instance))
        self._records: Mapping = {
            AssetKeyPartitionKey(dg.AssetKey(asset.split("/")), partition): record
            for (asset, partition), record in records.items()
        }
        self._seen_updated: set[tuple[int, dg.AssetKey]] = set()

    def _get_latest_data_version_record(self, key: AssetKeyPartitionKey) -> dg.EventLogRecord | None:
        return self._records.get(key)

    def _is_dep_updated(self, provenance: DataProvenance, dep_key: AssetKeyPartitionKey) -> bool:
        if dep_key.partition_key is None:
            return super()._is_dep_updated(provenance, dep_key)
        latest = self._records.get(dep_key)
        cursor = provenance.input_storage_ids[dep_key.asset_key]
        if latest is None or (cursor is not None and latest.storage_id <= cursor):
            return False
        # One updated partition of an asset makes its reader stale; the others need not be looked up.
        reader = (id(provenance), dep_key.asset_key)
        if reader in self._seen_updated:
            return True
        updated = super()._is_dep_updated(provenance, dep_key)
        if updated:
            self._seen_updated.add(reader)
        return updated
