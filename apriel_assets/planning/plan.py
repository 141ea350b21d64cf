"""What would run, per asset and partition, and why.

Dagster itself knows what is stale (`CachingStaleStatusResolver`, an internal API: Dagster is pinned and a test
compares with GraphQL's `staleStatus`). We add what Dagster cannot know: which recipe keys changed, and whether the
files of a finished artifact are still there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleCause, StaleStatus
from dagster._core.loader import LoadingContext

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.materialize import latest_address
from resources.artifact_store import Artifact, ArtifactStore


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One asset (partition) that is not up to date."""

    asset: str
    partition: str | None
    reason: str
    seconds: float | None  # what it took the last time, None if it never ran


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is stale now, and what may become stale once that has run."""

    rows: tuple[PlanRow, ...]
    downstream: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the plan in the CLI's documented JSON form."""
        rows = [
            {"asset": row.asset, "partition": row.partition, "reason": row.reason, "seconds": row.seconds}
            for row in self.rows
        ]
        return {"rows": rows, "downstream": list(self.downstream)}


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


def make_plan(
    assets: Mapping[str, AssetPlan], defs: dg.Definitions, instance: dg.DagsterInstance, store: ArtifactStore
) -> Plan:
    """Return all stale assets and partitions, upstream first.

    Args:
        assets: the recipe's assets by key.
        defs: the definitions made from the same recipe.
        instance: Dagster's records of the home.
        store: the home's artifacts.
    """
    graph = defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, _Loading(instance))
    rows = []
    for key in graph.toposorted_asset_keys:
        asset = assets[key.to_user_string()]
        for partition in asset.partition_keys:
            last = _last_artifact(instance, store, asset, partition)
            status = resolver.get_status(key, partition)
            if status == StaleStatus.FRESH:
                reason = last if isinstance(last, str) else None
            else:
                reason = _reason(asset, resolver.get_stale_causes(key, partition), last)
            if reason is not None:
                seconds = last.provenance["figures"]["seconds"] if isinstance(last, Artifact) else None
                rows.append(PlanRow(asset=asset.key, partition=partition, reason=reason, seconds=seconds))
    return Plan(rows=tuple(rows), downstream=_downstream(assets, rows))


def _last_artifact(
    instance: dg.DagsterInstance, store: ArtifactStore, asset: AssetPlan, partition: str | None
) -> Artifact | str | None:
    """Return the last materialization's artifact, or what is wrong with it, or None if there was none."""
    address = latest_address(instance, asset.key, partition)
    if address is None:
        return None
    return store.find(asset.key, address) or f"files missing or damaged: artifacts/{asset.key}/{address}"


def _reason(asset: AssetPlan, causes: Sequence[StaleCause], last: Artifact | str | None) -> str:
    if last is None:
        return "never built"
    if isinstance(last, str):
        return last
    parts = []
    if last.provenance["code_version"] != asset.code_version:
        changed = changed_keys(last.provenance["recipe_slice"], asset.slice)
        parts.append(f"recipe changed: {'; '.join(changed)}" if changed else "new revision of its code")
    # A dependency is an asset's key, or for partitioned assets a (key, partition) pair.
    keys: list[dg.AssetKey | None] = [getattr(c.dependency, "asset_key", c.dependency) for c in causes]  # type: ignore
    upstream = sorted({key.to_user_string() for key in keys if key is not None})
    if upstream:
        parts.append(f"upstream changed: {', '.join(upstream)}")
    return " | ".join(parts) or "; ".join(sorted({cause.reason for cause in causes})) or "stale"


def changed_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Return `key: old -> new` for every leaf in which two recipe slices differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted(set(before) | set(after))
            for line in changed_keys(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if before == after else [f"{prefix} {_short(before)} -> {_short(after)}"]


def _short(value: Any, limit: int = 60) -> str:
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _downstream(assets: Mapping[str, AssetPlan], rows: Sequence[PlanRow]) -> tuple[str, ...]:
    """Return the assets of which something may become stale that is not yet."""
    stale = {(row.asset, row.partition) for row in rows}
    reached = set(stale)
    for asset in assets.values():  # upstream first, so one pass closes the set
        for partition in asset.partition_keys:
            read = asset.reads_of(partition).items()
            if any((key, part) in reached for key, parts in read for part in parts):
                reached.add((asset.key, partition))
    stale_assets = {asset for asset, _ in stale}
    return tuple(key for key in assets if key in {asset for asset, _ in reached} - stale_assets)
