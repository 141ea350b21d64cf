"""Bring a home up to date: plan, run the frontier, plan again, until nothing is stale.

Re-planning after each frontier is what gives early cut-off: if a rebuilt ranking comes out the same, nothing below
it runs.
"""

import itertools
import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterAssetCheckFailedError, DagsterExecutionInterruptedError

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.records import asset_key
from apriel_assets.errors import UserError
from apriel_assets.planning.plan import Plan, PlanRow, make_plan
from apriel_assets.planning.selection import ancestors
from resources.artifact_store import ArtifactStore
from resources.dead_runs import process_tags

logger = logging.getLogger(__name__)

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Batch:
    """Assets that one Dagster run materializes: several without partitions, or one with a range of them."""

    rows: tuple[PlanRow, ...]

    @property
    def assets(self) -> list[str]:
        return list(dict.fromkeys(row.asset for row in self.rows))

    @property
    def tags(self) -> dict[str, str]:
        first, last = self.rows[0].partition, self.rows[-1].partition
        if first is None or last is None:
            return {}
        return {
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        }


def frontier(assets: Mapping[str, AssetPlan], plan: Plan) -> list[Batch]:
    """Return what can run now: the rows none of whose ancestors is stale or failed a check, grouped into runs."""
    # What is kept back does not wait for anything: all that is made from it is kept back as well.
    stale = {row.asset for row in plan.ready}
    free = {key for key in stale if not ancestors(assets, key) & stale}
    ready = [row for row in plan.ready if row.asset in free]
    plain = tuple(row for row in ready if row.partition is None)
    batches = [Batch(plain)] if plain else []
    partitioned = [row for row in ready if row.partition is not None]
    for key, rows in itertools.groupby(partitioned, key=lambda row: row.asset):
        batches.extend(Batch(tuple(run)) for run in _contiguous(assets[key].partitions, list(rows)))
    return batches


def _contiguous(order: tuple[str, ...], rows: list[PlanRow]) -> Iterator[list[PlanRow]]:
    # A Dagster run takes a range of partitions; a range over a gap would re-run what is up to date.
    position = {partition: index for index, partition in enumerate(order)}
    by_gap = itertools.groupby(enumerate(rows), key=lambda pair: position[pair[1].partition or ""] - pair[0])
    for _, run in by_gap:
        yield [row for _, row in run]


def bring_up_to_date(
    assets: Mapping[str, AssetPlan],
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    store: ArtifactStore,
    *,
    selection: Collection[str] | None = None,
    plan: Plan | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> list[PlanRow]:
    """Run frontier after frontier in this process; return what was run, in order.

    Args:
        assets: the recipe's assets by key.
        defs: the definitions made from the same recipe.
        instance: Dagster's records of the home.
        store: the home's artifacts.
        selection: run only these assets; None: all.
        plan: the plan as it is now, if it was made already.
        on_plan: told of every plan.

    Raises:
        UserError: raised by a step's input, or at the end if a failed blocking check kept something back.
        RuntimeError: an asset is stale again right after it ran.
    """
    done: list[PlanRow] = []
    while True:
        plan = (plan or make_plan(assets, defs, instance, store)).within(selection)
        on_plan(plan)
        batches = frontier(assets, plan)
        if not batches:
            _refuse_if_blocked(plan)
            return done
        repeated = {row.place for row in done}
        for row in (row for batch in batches for row in batch.rows):
            if row.place in repeated:
                raise RuntimeError(
                    f"{row.asset} {row.partition or ''} is stale right after it ran: {row.reason}"
                )
        for batch in batches:
            done.extend(run_batch(defs, instance, batch, store.home))
        plan = None


def _refuse_if_blocked(plan: Plan) -> None:
    blocked = [row.blocked for row in plan.rows if row.blocked]
    if not blocked:
        return
    causes = "; ".join(dict.fromkeys(blocked))
    raise UserError(
        f"{causes}: {len(blocked)} assets and partitions made from it were not run, the rest is up to date; see the "
        "check in the UI, change the recipe and run again"
    )


def run_batch(
    defs: dg.Definitions, instance: dg.DagsterInstance, batch: Batch, home: Path
) -> tuple[PlanRow, ...]:
    """Materialize one batch in this process; return the rows that were materialized.

    These are all of them, unless a blocking check fails: that ends the run.

    Raises:
        UserError: raised by a step's input.
    """
    job = defs.resolve_implicit_global_asset_job_def()
    run_id = str(uuid.uuid4())
    try:
        job.execute_in_process(
            instance=instance,
            asset_selection=[asset_key(key) for key in batch.assets],
            tags={**batch.tags, **process_tags(home)},
            run_config=QUIET,
            run_id=run_id,
        )
    except DagsterAssetCheckFailedError as error:
        logger.info("%s", error)
        return _materialized(instance, run_id, batch)
    except dg.DagsterExecutionStepExecutionError as error:
        if isinstance(error.user_exception, UserError):
            raise error.user_exception from error
        raise
    except DagsterExecutionInterruptedError as error:
        raise KeyboardInterrupt from error
    return batch.rows


def _materialized(instance: dg.DagsterInstance, run_id: str, batch: Batch) -> tuple[PlanRow, ...]:
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    places = {
        (event.asset_materialization.asset_key.to_user_string(), event.asset_materialization.partition)
        for event in events
        if event.asset_materialization
    }
    return tuple(row for row in batch.rows if row.place in places)
