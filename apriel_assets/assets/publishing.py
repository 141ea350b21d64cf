"""What the lake shows of an artifact: its tables and its `builds` row, and that they are all there."""

from collections.abc import Mapping

import pyarrow as pa

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.build_rows import build_row
from resources.artifact_store import Artifact
from resources.lake import Lake

_BUILDS = "builds"


def publish(lake: Lake, plan: AssetPlan, partition: str | None, artifact: Artifact) -> dict[str, pa.Table]:
    """Replace what the asset (or its partition) shows by this artifact; return the artifact's tables."""
    tables = {name: artifact.table(name) for name in artifact.table_names}
    lake.publish(
        {**tables, _BUILDS: build_row(artifact)},
        recipe=plan.recipe,
        asset=plan.key,
        version=artifact.data_version,
        partition=partition,
        address=artifact.address,
    )
    return tables


def tidy_lake(
    lake: Lake,
    recipe: str,
    assets: Mapping[str, AssetPlan],
    fresh: Mapping[tuple[str, str | None], Artifact],
) -> list[tuple[str, str | None]]:
    """Drop the rows of what a recipe no longer has and publish what it has and the lake does not; return the latter.

    A recipe that gets back what it dropped, or that finds another recipe's results in the home, has nothing to run, and
    else only a run publishes.

    Args:
        lake: of the home.
        recipe: its name.
        assets: the recipe's assets by key.
        fresh: the artifact of each asset and partition that is up to date.
    """
    lake.prune(recipe, ((key, part) for key, own in assets.items() for part in own.partition_keys))
    found = []
    for (key, partition), artifact in fresh.items():
        names = [*artifact.table_names, _BUILDS]
        if not lake.holds(names, recipe, key, partition, artifact.address):
            publish(lake, assets[key], partition, artifact)
            found.append((key, partition))
    return found
