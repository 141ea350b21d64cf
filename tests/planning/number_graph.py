"""A small graph whose steps only write a number: the planner's rules without any model."""

from pathlib import Path

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan, Check, Job
from apriel_assets.assets.materialize import to_dagster
from apriel_assets.planning.execute import bring_up_to_date
from apriel_assets.planning.plan import Plan, PlanRow, make_plan
from resources.artifact_store import ArtifactStore
from resources.home import Home
from resources.launchers.config import ExecutionConfig
from resources.launchers.execution import Execution


def build_number(job: Job, *, value: int = 0, seconds: float | None = None) -> None:
    """Write a number; `seconds` stands for what it took."""
    (job.draft.path / "number.txt").write_text(str(value))
    if seconds is not None:
        job.draft.figures |= {"seconds": seconds, "gpu_seconds": 2 * seconds}


def build_sum(job: Job, **reads: int) -> None:
    """Another kind of step, which nothing else resembles."""
    build_number(job, **reads)


def number(key: str, *inputs, build=build_number, partitions=(), checks=(), **reads) -> AssetPlan:
    """Return the plan of an asset; keyword arguments beside the plan's own are recipe values."""
    return AssetPlan(
        key=key,
        group="numbers",
        build=build,
        reads=reads,
        inputs=inputs,
        partitions=tuple(partitions),
        checks=tuple(checks),
    )


class Bench:
    """A home and Dagster's records, on which asset plans are planned and run."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.home, self.instance, self.store = home, instance, ArtifactStore(home)

    def plan(self, *assets: AssetPlan) -> Plan:
        return make_plan({own.key: own for own in assets}, self.defs(assets), self.instance, self.store)

    def run(self, *assets: AssetPlan, **options) -> list[PlanRow]:
        plans = {own.key: own for own in assets}
        return bring_up_to_date(plans, self.defs(assets), self.instance, self.store, **options)

    def defs(self, assets) -> dg.Definitions:
        return dg.Definitions(
            assets=[to_dagster(own) for own in assets],
            resources={"home": Home(path=str(self.home)), "execution": Execution(ExecutionConfig(), {})},
            executor=dg.in_process_executor,
        )


def small_check(limit: int) -> Check:
    """A blocking check: the number is at most `limit`."""

    def passes(artifact, before):
        value = int((artifact.path / "number.txt").read_text())
        return value <= limit, {"value": value}

    return Check(name="is_small", description="The number is small.", passes=passes, blocking=True)
