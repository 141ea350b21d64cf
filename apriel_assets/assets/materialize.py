"""How an asset is materialized: an input-addressed artifact whose tables go to the lake."""

import warnings
from collections.abc import Sequence
from typing import Any

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan, OnePartition, input_name
from apriel_assets.assets.described import definition_metadata, description, freshness, kinds, stage, tags
from apriel_assets.assets.launch import launched_build
from apriel_assets.assets.publishing import publish
from apriel_assets.assets.records import latest_materializations, recorded_address
from apriel_assets.assets.shown import check_results, check_specs, materialization_metadata
from apriel_assets.errors import UserError
from resources.artifact_store import Artifact
from resources.home import Home
from resources.launchers.execution import Execution


def to_dagster(plan: AssetPlan, owners: Sequence[str] = (), pool: str | None = None) -> dg.AssetsDefinition:
    """Turn an asset plan into a Dagster asset.

    Args:
        plan: of the asset.
        owners: e-mail addresses, and teams as `team:name`.
        pool: of Dagster, in which its steps take a slot.
    """
    # Dagster is pinned, so its note that some of its parts may still change says nothing to a user.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _asset(plan, owners, pool)


def _asset(plan: AssetPlan, owners: Sequence[str], pool: str | None) -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey(plan.key.split("/")),
        deps=[_dependency(given) for given in plan.inputs],
        group_name=stage(plan),
        code_version=plan.code_version,
        description=description(plan),
        kinds=kinds(plan),
        owners=list(owners),
        pool=pool,
        tags=tags(plan),
        partitions_def=_partitions(plan),
        backfill_policy=dg.BackfillPolicy.single_run() if plan.is_partitioned else None,
        metadata=definition_metadata(plan),
        check_specs=check_specs(plan),
        freshness_policy=freshness(plan),
    )
    def materialize(
        context: dg.AssetExecutionContext, home: Home, execution: dg.ResourceParam[Execution]
    ) -> dg.MaterializeResult:
        version, made = None, {}
        for partition in context.partition_keys if plan.is_partitioned else [None]:
            artifact, metadata = _bring_up(plan, context, home, execution, partition)
            version = None if plan.is_partitioned else dg.DataVersion(artifact.data_version)
            context.add_asset_metadata(metadata, partition_key=partition)
            made[partition] = artifact
        results = check_results(plan, context.instance, home.store, made)
        return dg.MaterializeResult(data_version=version, check_results=results)

    return materialize


def _partitions(plan: AssetPlan) -> dg.PartitionsDefinition | None:
    if plan.dynamic_partitions:
        return dg.DynamicPartitionsDefinition(name=plan.dynamic_partitions)
    return dg.StaticPartitionsDefinition(list(plan.partitions)) if plan.partitions else None


def _dependency(given: AssetPlan | OnePartition) -> dg.AssetDep:
    if isinstance(given, OnePartition):
        mapping = dg.SpecificPartitionsPartitionMapping([given.partition])
        return dg.AssetDep(dg.AssetKey(given.asset.key.split("/")), partition_mapping=mapping)
    return dg.AssetDep(dg.AssetKey(given.key.split("/")))


def _bring_up(
    plan: AssetPlan,
    context: dg.AssetExecutionContext,
    home: Home,
    execution: Execution,
    partition: str | None,
) -> tuple[Artifact, dict[str, Any]]:
    inputs = _inputs(plan, context.instance, home, partition)
    versions = {
        input_name(asset, part): artifact.data_version
        for asset, parts in inputs.items()
        for part, artifact in parts.items()
    }
    versions |= plan.outside(partition) if plan.outside else {}
    address = home.store.address(plan.name, plan.code_version, versions, partition)
    provenance: dict[str, Any] = {
        "partition": partition,
        "recipe": plan.recipe,
        "recipe_slice": plan.slice,
        "code_version": plan.code_version,
        "inputs": versions,
    }
    build = launched_build(
        plan, partition, address=address, inputs=inputs, home=home, execution=execution, context=context,
        provenance=provenance,
    )  # fmt: skip
    artifact, built = home.store.get_or_create(plan.name, address, provenance, build)
    step = plan.key + (f"[{partition}]" if partition else "")
    context.log.info("%s: %s %s", step, "built" if built else "found in the store", artifact.path)
    tables = publish(home.lake, plan, partition, artifact)
    return artifact, materialization_metadata(plan, artifact, built, tables)


def _inputs(
    plan: AssetPlan, instance: dg.DagsterInstance, home: Home, partition: str | None
) -> dict[str, dict[str | None, Artifact]]:
    found: dict[str, dict[str | None, Artifact]] = {}
    wanted = plan.reads_of(partition)
    latest = latest_materializations(instance, wanted)
    by_key = {given.key: given for given in plan.upstream}
    for upstream, partitions in wanted.items():
        given = by_key[upstream]
        label = plan.calls(given)
        found[label] = {}
        for part in partitions:
            address = recorded_address(latest.get((upstream, part)))
            artifact = home.store.find(given.name, address) if address else None
            if artifact is None:
                name = upstream + (f"[{part}]" if part else "")
                raise UserError(
                    f"{plan.key} needs {name}, which is not built or was damaged; run `apriel run`"
                )
            found[label][part] = artifact
    return found
