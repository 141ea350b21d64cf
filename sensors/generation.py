"""Ask for real generation where the scores of placements cannot be trusted.

That is where the audit failed (scores do not order placements as generation does), or where every candidate of a budget
has too small an effective sample size. Once for each search result: what was asked for stands on the run.
"""

import time
from collections.abc import Mapping

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.records import asset_key, latest_materializations, recorded_address
from apriel_assets.recipe_automation import GenerationSection
from resources.artifact_store import Artifact, ArtifactStore, digest
from sensors.requests import PastRequests, Retries, Wanted, assets_in_flight, due_one_by_one

NAME = "generation"


def generation_sensor(
    asset: AssetPlan,
    assets: Mapping[str, AssetPlan],
    store: ArtifactStore,
    settings: GenerationSection,
    retries: Retries,
) -> dg.SensorDefinition:
    """Return the sensor.

    Args:
        asset: generates from the candidates of one budget, its partition.
        assets: the recipe's assets by key.
        store: the home's artifacts.
        settings: how often to look.
        retries: of a run that failed.
    """

    @dg.sensor(
        name=NAME,
        asset_selection=dg.AssetSelection.assets(asset_key(asset.key)),
        minimum_interval_seconds=settings.interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for real generation where the audit failed, or all candidates are under the ESS floor.",
    )
    def generation(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        found = searched(asset, assets, store, context.instance)
        doubts = {budget: reasons_for(assets, artifacts) for budget, artifacts in found.items()}
        doubts = {budget: reasons for budget, reasons in doubts.items() if reasons}
        requests, skipped = due_one_by_one(
            PastRequests(context.instance, NAME, retries, time.time()),
            [_wanted(asset, budget, found[budget]) for budget in doubts],
            {budget: {"apriel/reason": "; ".join(reasons)} for budget, reasons in doubts.items()},
        )
        return requests or dg.SkipReason("; ".join(skipped) or "the scores of no budget are in doubt")

    return generation


def _wanted(asset: AssetPlan, budget: str, artifacts: Mapping[str, Artifact]) -> Wanted:
    addresses = sorted(artifact.address for artifact in artifacts.values())
    return Wanted(
        asset=asset.key, partition=budget, goal=digest([asset.code_version, addresses]), state="any"
    )


def searched(
    asset: AssetPlan, assets: Mapping[str, AssetPlan], store: ArtifactStore, instance: dg.DagsterInstance
) -> dict[str, dict[str, Artifact]]:
    """Return, for each budget that was searched to the end, its placements and finalists, and the audit.

    Nothing while any of these is being made anew: a doubt about what is replaced a minute later is none.
    """
    keys = [key for key in ("audit", "placements", "finalists") if key in assets]
    if set(assets_in_flight(instance)) & {None, *keys}:
        return {}
    records = latest_materializations(instance, {key: assets[key].partition_keys for key in keys})
    found: dict[str, dict[str, Artifact]] = {}
    for budget in asset.partitions:
        own: dict[str, Artifact] = {}
        for key in keys:
            address = recorded_address(records.get((key, budget if assets[key].partitions else None)))
            artifact = store.find(key, address) if address else None
            if artifact is not None and artifact.provenance["code_version"] == assets[key].code_version:
                own[key] = artifact
        if len(own) == len(keys):
            found[budget] = own
    return found


def reasons_for(assets: Mapping[str, AssetPlan], artifacts: Mapping[str, Artifact]) -> list[str]:
    """Return why the scores of a budget's candidates are in doubt; nothing if they are not."""
    found = []
    figures = artifacts["placements"].provenance["figures"]
    if figures["num_scored"] and figures["num_under_ess_floor"] >= figures["num_scored"]:
        found.append(f"all {figures['num_scored']} candidates are under the ESS floor")
    if "audit" in artifacts:
        failed = [
            check.name
            for check in assets["audit"].checks
            if check.passes(artifacts["audit"], None)[0] is False
        ]
        found += [f"audit: {name} failed" for name in failed]
    return found
