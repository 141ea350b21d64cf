"""Bring a home up to date: plan, run the frontier, plan again, until nothing is stale.

Re-planning after each frontier is what gives early cut-off: if a rebuilt ranking comes out the same, nothing below
it runs.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.errors import UserError
from apriel_assets.planning.plan import Plan, PlanRow, make_plan
from resources.artifact_store import ArtifactStore

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


def ancestors(assets: Mapping[str, AssetPlan], key: str) -> set[str]:
    """Return the keys of everything that an asset is made from, itself excluded."""
    found: set[str] = set()
    waiting = list(assets[key].upstream)
    while waiting:
        upstream = waiting.pop()
        if upstream.key not in found:
            found.add(upstream.key)
            waiting.extend(upstream.upstream)
    return found


def select(assets: Mapping[str, AssetPlan], patterns: Collection[str]) -> set[str]:
    """Return the assets that match any pattern (`h1/h6`, `evals/*`, a group name), with all that they need.

    Raises:
        UserError: a pattern matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        # An asset's own name wins over a group of the same name.
        hits = [pattern] if pattern in assets else []
        hits = hits or [
            key for key, own in assets.items() if fnmatchcase(key, pattern) or own.group == pattern
        ]
        if not hits:
            raise UserError(
                f"--select {pattern}: no asset or group of that name; assets: {', '.join(assets)}"
            )
        chosen.update(hits)
    return chosen.union(*(ancestors(assets, key) for key in chosen))


def frontier(assets: Mapping[str, AssetPlan], plan: Plan) -> list[Batch]:
    """Return what can run now: the rows none of whose ancestors is stale, grouped into runs."""
    stale = {row.asset for row in plan.rows}
    ready = [row for row in plan.rows if not ancestors(assets, row.asset) & stale]
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
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> list[PlanRow]:
    """Run frontier after frontier in this process; return what was run, in order.

    Raises:
        UserError: raised by a step's input.
        RuntimeError: an asset is stale again right after it ran.
    """
    done: list[PlanRow] = []
    while True:
        plan = make_plan(assets, defs, instance, store)
        if selection is not None:
            plan = Plan(
                rows=tuple(row for row in plan.rows if row.asset in selection), downstream=plan.downstream
            )
        on_plan(plan)
        if not plan.rows:
            return done
        batches = frontier(assets, plan)
        repeated = {(row.asset, row.partition) for row in done}
        for row in (row for batch in batches for row in batch.rows):
            if (row.asset, row.partition) in repeated:
                raise RuntimeError(
                    f"{row.asset} {row.partition or ''} is stale right after it ran: {row.reason}"
                )
        for batch in batches:
            run_batch(defs, instance, batch)
            done.extend(batch.rows)


def run_batch(defs: dg.Definitions, instance: dg.DagsterInstance, batch: Batch) -> None:
    """Materialize one batch in this process; a user error in a step is raised as such."""
    job = defs.resolve_implicit_global_asset_job_def()
    try:
        job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey(key.split("/")) for key in batch.assets],
            tags=batch.tags,
            run_config=QUIET,
        )
    except dg.DagsterExecutionStepExecutionError as error:
        if isinstance(error.user_exception, UserError):
            raise error.user_exception from error
        raise
    except DagsterExecutionInterruptedError as error:
        raise KeyboardInterrupt from error
