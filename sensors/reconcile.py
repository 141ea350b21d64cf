"""Rebuild what is stale, as `apriel run` does, without anybody asking.

Level-triggered: every look starts from the plan as it is now, so an edit that came while nobody looked is not missed,
and a second look asks for nothing that the first one asked for.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan, input_name
from apriel_assets.assets.records import Materializations, asset_key, latest_materializations
from apriel_assets.planning.execute import Batch, frontier
from apriel_assets.planning.plan import Plan, PlanRow
from apriel_assets.planning.selection import ancestors
from apriel_assets.recipe_automation import AutomationSection
from resources.artifact_store import digest
from sensors.requests import PastRequests, Retries, Wanted, assets_in_flight, run_key, wanted_tags

NAME = "reconcile"
_DATA_VERSION = "dagster/data_version"
_SHOWN_REASONS = 5
_IDLE_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Reconciling:
    """What the sensor needs of the code location."""

    assets: Mapping[str, AssetPlan]
    plan: Callable[[dg.DagsterInstance], Plan]
    not_now: Callable[[dg.DagsterInstance], str | None]  # why nothing may be asked for at present
    tidy: Callable[[Plan], object]  # makes the tables show what the recipe has


def reconcile_sensor(what: Reconciling, settings: AutomationSection) -> dg.SensorDefinition:
    """Return the sensor; it runs from the start only if the recipe says so, else when switched on in the UI."""
    keys = [asset_key(key) for key in what.assets]
    idle = _Idle()

    @dg.sensor(
        name=NAME,
        asset_selection=dg.AssetSelection.assets(*keys),
        minimum_interval_seconds=settings.interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING
        if settings.reconcile
        else dg.DefaultSensorStatus.STOPPED,
        description="Rebuilds what is stale: asks for what has no stale ancestor, until all is up to date.",
    )
    def reconcile(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        if reason := what.not_now(context.instance):
            return dg.SkipReason(reason)
        now, events = time.time(), context.instance.event_log_storage.get_maximum_record_id()
        if idle.holds(events, now):
            return dg.SkipReason(_summary(()))
        past = PastRequests(context.instance, NAME, Retries(settings.retries, settings.retry_wait_s), now)
        # Before the plan: a run that ends while it is made must not look as if nobody had ever worked on its assets.
        busy = assets_in_flight(context.instance)
        plan = what.plan(context.instance)
        what.tidy(plan)
        if not plan.rows:
            idle.since(events, now)
        found, reasons = due_requests(what.assets, plan, context.instance, past, busy)
        return found or dg.SkipReason(_summary(reasons))

    return reconcile


class _Idle:
    """Remembers that nothing was stale, so that a long plan is not made twice a minute while nothing happens."""

    def __init__(self) -> None:
        self._events: int | None = None
        self._seen = float("-inf")

    def since(self, events: int | None, now: float) -> None:
        """Nothing was stale when this was the last event."""
        self._events, self._seen = events, now

    def holds(self, events: int | None, now: float) -> bool:
        """Return whether nothing was recorded since; not for long, since damaged files record nothing."""
        return events == self._events and now - self._seen < _IDLE_S


def due_requests(
    assets: Mapping[str, AssetPlan],
    plan: Plan,
    instance: dg.DagsterInstance,
    past: PastRequests,
    busy: Mapping[str | None, str],
) -> tuple[list[dg.RunRequest], list[str]]:
    """Return what to ask for now, and why the rest of the plan is not asked for.

    First attempts run together, as `apriel run` has them; after a failure each row runs alone, so that one that takes
    its process down does not keep back the others.

    Args:
        assets: the recipe's assets by key.
        plan: as it is now.
        instance: Dagster's records.
        past: what was asked for before, read before the plan was made.
        busy: run that works on each asset, likewise.
    """
    ready = [row for batch in frontier(assets, plan) for row in batch.rows]
    reasons: list[str] = []
    wanted = _wanted(assets, ready, instance)
    first: list[PlanRow] = []
    found: list[dg.RunRequest] = []
    for row in ready:
        if run := _blocker(assets, row.asset, busy):
            reasons.append(f"{row.asset}: waits for run {run}")
            continue
        attempt = past.next_attempt(wanted[row.place])
        if isinstance(attempt, str):
            reasons.append(attempt)
        elif attempt == 0:
            first.append(row)
        else:
            found.append(_request(Batch((row,)), [wanted[row.place]], attempt))
    for batch in frontier(assets, replace(plan, rows=tuple(first))):
        found.append(_request(batch, [wanted[row.place] for row in batch.rows], 0))
    reasons += [f"{row.asset}: {row.reason}" for row in plan.rows if row.blocked]
    return found, reasons


def _request(batch: Batch, wanted: Sequence[Wanted], attempt: int) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=run_key(wanted, attempt),
        asset_selection=[asset_key(key) for key in batch.assets],
        tags={**batch.tags, **wanted_tags(wanted)},
    )


def _blocker(assets: Mapping[str, AssetPlan], asset: str, busy: Mapping[str | None, str]) -> str | None:
    if not busy:
        return None
    involved: Iterable[str | None] = (None, asset, *ancestors(assets, asset))
    return next((busy[key] for key in involved if key in busy), None)


def _wanted(
    assets: Mapping[str, AssetPlan], rows: Sequence[PlanRow], instance: dg.DagsterInstance
) -> dict[tuple[str, str | None], Wanted]:
    """Return, for each row, what it would be made from and what it is now."""
    places: dict[str, set[str | None]] = {}
    for row in rows:
        places.setdefault(row.asset, set()).add(row.partition)
        for upstream, partitions in assets[row.asset].reads_of(row.partition).items():
            places.setdefault(upstream, set()).update(partitions)
    records = latest_materializations(instance, {asset: list(parts) for asset, parts in places.items()})
    return {row.place: _one_wanted(assets[row.asset], row.partition, records) for row in rows}


def _one_wanted(asset: AssetPlan, partition: str | None, records: Materializations) -> Wanted:
    versions = {
        input_name(upstream, part): _data_version(records.get((upstream, part)))
        for upstream, parts in asset.reads_of(partition).items()
        for part in parts
    }
    now = records.get((asset.key, partition))
    return Wanted(
        asset=asset.key,
        partition=partition,
        goal=digest([asset.code_version, versions], 12),
        state=str(now.storage_id) if now else "none",
    )


def _data_version(record: dg.EventLogRecord | None) -> str | None:
    if record is None or record.asset_materialization is None:
        return None
    return (record.asset_materialization.tags or {}).get(_DATA_VERSION)


def _summary(reasons: Sequence[str]) -> str:
    if not reasons:
        return "everything is up to date"
    more = len(reasons) - _SHOWN_REASONS
    return "; ".join(reasons[:_SHOWN_REASONS]) + (f"; and {more} more" if more > 0 else "")
