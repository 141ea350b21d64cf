"""What the lake shows of an artifact: its tables and its `builds` row, and that they are all there."""

from collections.abc import Collection, Mapping

import pyarrow as pa

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.build_rows import build_row
from resources.artifact_store import Artifact
from resources.lake import Lake

_BUILDS = "builds"


def publish(lake: Lake, plan: AssetPlan, partition: str | None, artifact: Artifact) -> dict[str, pa.Table]:
    """Replace what the asset (or its partition) shows by this artifact; return the rows of its tables."""
    tables = {name: _shown(plan, artifact.table(name)) for name in artifact.table_names}
    builds = _with_column(build_row(artifact), "asset", [plan.key])
    lake.publish(
        {**tables, _BUILDS: builds},
        variant=plan.variant,
        recipe=plan.recipe,
        asset=plan.key,
        version=artifact.data_version,
        partition=partition,
        address=artifact.address,
    )
    return tables


def variant_rows(rows: pa.Table, variant: str, parents: Collection[str]) -> pa.Table:
    """Return rows of a variant's models under the names that tell them from the recipe's own: `forward_kl/h9`.

    Args:
        rows: as the variant's artifact has them, of a recipe of its own.
        variant: its name.
        parents: those of the column `parent` that are the variant's, too.
    """
    if "model" in rows.column_names:
        rows = _with_column(rows, "model", [f"{variant}/{name}" for name in rows.column("model").to_pylist()])
    if "parent" in rows.column_names:
        given = rows.column("parent").to_pylist()
        rows = _with_column(
            rows, "parent", [f"{variant}/{name}" if name in parents else name for name in given]
        )
    return rows


def _shown(plan: AssetPlan, rows: pa.Table) -> pa.Table:
    if plan.variant is None or plan.name == plan.key:
        return rows
    parents = {given.name.rpartition("/")[2] for given in plan.upstream if given.variant is not None}
    return variant_rows(rows, plan.variant, parents)


def _with_column(rows: pa.Table, name: str, values: list[str | None]) -> pa.Table:
    index = rows.schema.get_field_index(name)
    return rows.set_column(index, rows.schema.field(index), pa.array(values, pa.string()))


def tidy_lake(
    lake: Lake,
    recipe: str,
    assets: Mapping[str, AssetPlan],
    settled: Mapping[tuple[str, str | None], Artifact],
) -> list[tuple[str, str | None]]:
    """Drop the rows of what a recipe no longer has and publish what it has and the lake does not; return the latter.

    A recipe that gets back what it dropped, or that finds another recipe's results in the home, has nothing to run, and
    else only a run publishes.

    Args:
        lake: of the home.
        recipe: its name.
        assets: the recipe's assets by key.
        settled: the artifact of each asset and partition that is up to date, and made from what is. What stands behind
            a stale one may be another recipe's, and would be shown as this one's if the run were cut.
    """
    lake.prune(recipe, ((key, part) for key, own in assets.items() for part in own.partition_keys))
    found = []
    for (key, partition), artifact in settled.items():
        names = [*artifact.table_names, _BUILDS]
        if not lake.holds(names, recipe, key, partition, artifact.address):
            publish(lake, assets[key], partition, artifact)
            found.append((key, partition))
    return found
