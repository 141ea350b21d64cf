"""Evaluate what is shipped again on a schedule, although nothing upstream changed."""

import datetime
from collections.abc import Sequence

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.records import asset_key
from apriel_assets.assets.reevals import DATES
from sensors.requests import Wanted, wanted_tags

NAME = "reevaluation"


def reevaluation_schedule(assets: Sequence[AssetPlan], cron: str) -> dg.ScheduleDefinition:
    """Return the schedule: one run per shipped model, keyed by date.

    Args:
        assets: one for each shipped model; their partitions are dates.
        cron: when, UTC.
    """
    job = dg.define_asset_job(
        NAME, selection=dg.AssetSelection.assets(*(asset_key(own.key) for own in assets))
    )

    @dg.schedule(
        name=NAME,
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Evaluates every shipped model again and holds it against the last result.",
    )
    def reevaluation(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        date = date_key(context.scheduled_execution_time, cron)
        built = [asset for asset in assets if _is_built(context.instance, asset)]
        if not built:
            return dg.SkipReason("no shipped model is built yet")
        context.instance.add_dynamic_partitions(DATES, [date])
        return [_request(asset, date) for asset in built]

    return reevaluation


def date_key(time: datetime.datetime, cron: str) -> str:
    """Return the partition of a tick: its date, with the time if the schedule may fire several times a day."""
    minute, hour = cron.split()[:2] if len(cron.split()) == 5 else ("0", "0")
    once_a_day = (minute.isdigit() and hour.isdigit()) and cron != "@hourly"
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%d" if once_a_day else "%Y-%m-%dT%H:%M")


def _request(asset: AssetPlan, date: str) -> dg.RunRequest:
    wanted = Wanted(asset=asset.key, partition=date, goal=asset.code_version, state="any")
    return dg.RunRequest(
        run_key=f"{asset.key} {date}",
        asset_selection=[asset_key(asset.key)],
        partition_key=date,
        tags=wanted_tags([wanted]),
    )


def _is_built(instance: dg.DagsterInstance, asset: AssetPlan) -> bool:
    """Return whether what the model is made from was materialized; evaluating it again may come before its evals."""
    return all(
        instance.get_latest_materialization_event(asset_key(upstream.key)) is not None
        for upstream in asset.upstream
    )
