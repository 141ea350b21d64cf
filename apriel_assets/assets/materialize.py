"""How an asset is materialized: an input-addressed artifact whose tables go to the lake."""

import time
import warnings
from pathlib import Path
from typing import Any

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan, Job, OnePartition
from apriel_assets.assets.shown import check_results, check_specs, materialization_metadata
from apriel_assets.errors import UserError
from resources import listeners
from resources.artifact_store import Artifact, Draft
from resources.home import Home
from resources.provenance import environment, peak_memory_bytes

SLICE_METADATA = "recipe_slice"


def latest_address(instance: dg.DagsterInstance, asset: str, partition: str | None) -> str | None:
    """Return the address recorded by the last materialization of an asset (partition), or None."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(asset.split("/")), asset_partitions=[partition] if partition else None
        ),
        limit=1,
    ).records
    if not records or records[0].asset_materialization is None:
        return None
    value = records[0].asset_materialization.metadata.get("address")
    return str(value.value) if value else None


def to_dagster(plan: AssetPlan) -> dg.AssetsDefinition:
    """Turn an asset plan into a Dagster asset."""
    # Dagster is pinned, so its note that backfill policies may still change says nothing to a user.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _asset(plan)


def _asset(plan: AssetPlan) -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey(plan.key.split("/")),
        deps=[_dependency(given) for given in plan.inputs],
        group_name=plan.group,
        code_version=plan.code_version,
        description=plan.description or (plan.build.__doc__ or "").strip(),
        kinds=set(plan.kinds),
        partitions_def=dg.StaticPartitionsDefinition(list(plan.partitions)) if plan.partitions else None,
        backfill_policy=dg.BackfillPolicy.single_run() if plan.partitions else None,
        metadata={SLICE_METADATA: dg.JsonMetadataValue(plan.slice)},
        check_specs=check_specs(plan),
    )
    def materialize(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult:
        version, results = None, []
        for partition in context.partition_keys if plan.partitions else [None]:
            artifact, metadata = _bring_up(plan, context, home, partition)
            version = None if plan.partitions else dg.DataVersion(artifact.data_version)
            context.add_asset_metadata(metadata, partition_key=partition)
            results.append(artifact)
        return dg.MaterializeResult(data_version=version, check_results=check_results(plan, results))

    return materialize


def _dependency(given: AssetPlan | OnePartition) -> dg.AssetDep:
    if isinstance(given, OnePartition):
        mapping = dg.SpecificPartitionsPartitionMapping([given.partition])
        return dg.AssetDep(dg.AssetKey(given.asset.key.split("/")), partition_mapping=mapping)
    return dg.AssetDep(dg.AssetKey(given.key.split("/")))


def _bring_up(
    plan: AssetPlan, context: dg.AssetExecutionContext, home: Home, partition: str | None
) -> tuple[Artifact, dict[str, Any]]:
    inputs = _inputs(plan, context.instance, home, partition)
    versions = {
        f"{asset}@{part}" if part else asset: artifact.data_version
        for asset, parts in inputs.items()
        for part, artifact in parts.items()
    }
    address = home.store.address(plan.key, plan.code_version, versions, partition)
    step = plan.key + (f"[{partition}]" if partition else "")

    def build(draft: Draft) -> None:
        job = Job(
            asset=plan.key,
            draft=draft,
            inputs=inputs,
            address=address,
            work_dir=home.store.work_directory(plan.key, address),
            home=Path(home.path),
            partition=partition,
            progress=listeners.reporter(step, context.log),
            started=time.monotonic(),
        )
        plan.build(job, **plan.reads, **plan.by_partition.get(partition, {}))
        draft.figures.setdefault("peak_memory_bytes", peak_memory_bytes())

    provenance = {
        "partition": partition,
        "recipe": plan.recipe,
        "recipe_slice": plan.slice,
        "code_version": plan.code_version,
        "inputs": versions,
    }
    existing = home.store.find(plan.key, address)
    if existing is None:
        provenance |= environment()  # asks torch for the device: not worth it to look something up
    artifact, built = home.store.get_or_create(plan.key, address, provenance, build)
    context.log.info("%s: %s %s", step, "built" if built else "found in the store", artifact.path)
    tables = {name: artifact.table(name) for name in artifact.table_names}
    home.lake.publish(
        tables, recipe=plan.recipe, asset=plan.key, version=artifact.data_version, partition=partition
    )
    return artifact, materialization_metadata(
        plan, artifact, built, {name: table.num_rows for name, table in tables.items()}
    )


def _inputs(
    plan: AssetPlan, instance: dg.DagsterInstance, home: Home, partition: str | None
) -> dict[str, dict[str | None, Artifact]]:
    found: dict[str, dict[str | None, Artifact]] = {}
    for upstream, partitions in plan.reads_of(partition).items():
        found[upstream] = {}
        for part in partitions:
            address = latest_address(instance, upstream, part)
            artifact = home.store.find(upstream, address) if address else None
            if artifact is None:
                name = upstream + (f"[{part}]" if part else "")
                raise UserError(
                    f"{plan.key} needs {name}, which is not built or was damaged; run `apriel run`"
                )
            found[upstream][part] = artifact
    return found
