"""Evaluate what is shipped again on a schedule, although nothing upstream changed."""

import datetime
import time
from collections.abc import Sequence

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.records import asset_key
from apriel_assets.assets.reevals import DATES
from sensors.requests import PastRequests, Retries, Wanted, due_one_by_one, wanted_tags

NAME, RETRIES_NAME = "reevaluation", "reevaluation_retries"


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


def reevaluation_retries_sensor(
    assets: Sequence[AssetPlan], retries: Retries, interval_s: int
) -> dg.SensorDefinition:
    """Return the sensor that asks again for what failed on the last date: a schedule asks once.

    Args:
        assets: as the schedule's.
        retries: how often, and when.
        interval_s: between two looks.
    """

    @dg.sensor(
        name=RETRIES_NAME,
        asset_selection=dg.AssetSelection.assets(*(asset_key(own.key) for own in assets)),
        minimum_interval_seconds=interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks again for re-evaluations of the last date that failed.",
    )
    def reevaluation_retries(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        dates = context.instance.get_dynamic_partitions(DATES)
        if not dates:
            return dg.SkipReason("nothing was evaluated again yet")
        past = PastRequests(context.instance, RETRIES_NAME, retries, time.time(), schedule=NAME)
        wanted = [own for asset in assets if past.was_asked_for(own := _wanted(asset, max(dates)))]
        requests, reasons = due_one_by_one(past, wanted)
        return requests or dg.SkipReason("; ".join(reasons) or f"no re-evaluation of {max(dates)} failed")

    return reevaluation_retries


def date_key(time: datetime.datetime, cron: str) -> str:
    """Return the partition of a tick: its date, with the time if the schedule may fire several times a day."""
    minute, hour = cron.split()[:2] if len(cron.split()) == 5 else ("0", "0")
    once_a_day = (minute.isdigit() and hour.isdigit()) and cron != "@hourly"
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%d" if once_a_day else "%Y-%m-%dT%H:%M")


def _request(asset: AssetPlan, date: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{asset.key} {date}",
        asset_selection=[asset_key(asset.key)],
        partition_key=date,
        tags=wanted_tags([_wanted(asset, date)]),
    )


def _wanted(asset: AssetPlan, date: str) -> Wanted:
    return Wanted(asset=asset.key, partition=date, goal=asset.code_version, state="any")


def _is_built(instance: dg.DagsterInstance, asset: AssetPlan) -> bool:
    """Return whether what the model is made from was materialized; evaluating it again may come before its evals."""
    return all(
        instance.get_latest_materialization_event(asset_key(upstream.key)) is not None
        for upstream in asset.upstream
    )
