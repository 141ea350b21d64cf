"""What Dagster's records say was materialized before."""

from collections.abc import Iterator

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.records import asset_key, recorded_address
from resources.artifact_store import Artifact, ArtifactStore

_RECORDS = 20  # of one asset (partition): enough to see past an artifact that was recorded several times


def recorded_artifacts(
    instance: dg.DagsterInstance, store: ArtifactStore, plan: AssetPlan, partition: str | None
) -> Iterator[Artifact]:
    """Yield the artifacts that an asset (partition) was materialized as, newest first, each once.

    What is no longer stored is passed over.
    """
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=asset_key(plan.key), asset_partitions=[partition] if partition else None
        ),
        limit=_RECORDS,
    ).records
    for address in dict.fromkeys(recorded_address(record) for record in found):
        if address is not None and (artifact := store.find(plan.name, address)) is not None:
            yield artifact
