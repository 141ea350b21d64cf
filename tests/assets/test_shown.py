"""What Dagster records of an asset that is built by the real materialization: tables, figures, verdicts."""

import json
import math

import dagster as dg
import pyarrow as pa
import pytest

from apriel_assets.assets import step_progress
from apriel_assets.assets.asset_plan import AssetPlan, Check
from apriel_assets.assets.materialize import to_dagster
from apriel_assets.assets.shown import first_rows
from apriel_assets.planning.plan import make_plan
from apriel_assets.tables.schemas import to_table
from resources.home import Home
from resources.launchers.config import ExecutionConfig
from resources.launchers.execution import Execution


def build(job, *, value, partition_value=None):
    """A number, as an asset."""
    job.draft.figures |= {"value": partition_value or value, "nothing": math.nan}
    job.progress(1, 2, loss_nats=3.0)
    rows = [{"mixer": f"m{n}", "seconds": float(n), "device": "x" * 200} for n in range(9)]
    job.draft.tables["mixer_costs"] = to_table("mixer_costs", rows)


def is_small(artifact, before):
    value = artifact.provenance["figures"]["value"]
    change = value - before.provenance["figures"]["value"] if before else 0
    return (value < 10 if value >= 0 else None), {"value": value, "change": change}


SMALL = Check(name="is_small", description="Less than ten.", passes=is_small, blocking=True)


def thing(value, partitions=None, **more):
    return AssetPlan(
        key="thing/one",
        group="search",
        build=build,
        reads={"value": value},
        partitions=tuple(partitions or ()),
        by_partition={part: {"partition_value": own} for part, own in (partitions or {}).items()},
        tables=("mixer_costs",),
        checks=(SMALL,),
        **more,
    )


class World:
    def __init__(self, path):
        self.resources = {"home": Home(path=str(path)), "execution": Execution(ExecutionConfig(), {})}
        self.instance = dg.DagsterInstance.ephemeral(tempdir=str(path))

    def run(self, plan, partition=None):
        asset = to_dagster(plan, ["team:modelling"])
        found = dg.materialize(
            [asset],
            partition_key=partition,
            resources=self.resources,
            instance=self.instance,
            raise_on_error=False,
        )
        (check,) = found.get_asset_check_evaluations()
        return found, check


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def shown(check):
    return {name: value.value for name, value in check.metadata.items()}


def test_materialization_shows_figures_tables_and_files(world):
    found, check = world.run(thing(3))
    (event,) = found.asset_materializations_for_node("thing__one")
    metadata = event.metadata
    assert (metadata["value"].value, metadata["nothing"].value) == (3, "nan")
    assert metadata["rows_mixer_costs"].value == metadata["dagster/row_count"].value == 9
    records = metadata["first_rows_mixer_costs"].records
    assert [record.data["mixer"] for record in records] == ["m0", "m1", "m2", "m3", "m4"]
    assert len(records[0].data["device"]) == 60
    json.dumps([record.data for record in records], allow_nan=False)
    assert found.success
    assert check.passed


def test_a_failed_blocking_check_is_an_error_and_fails_the_run(world):
    found, check = world.run(thing(11))
    assert not found.success
    assert (check.passed, check.severity, check.blocking) == (False, dg.AssetCheckSeverity.ERROR, True)
    # Recorded all the same: one can look at it, and it is not built again.
    assert world.instance.get_latest_materialization_event(dg.AssetKey(["thing", "one"])) is not None


def test_what_cannot_be_told_warns_and_stops_nothing(world):
    found, check = world.run(thing(-1))
    assert found.success
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)


def test_a_check_sees_the_artifact_before_also_past_one_that_was_recorded_again(world):
    _, first = world.run(thing(3))
    _, second = world.run(thing(5))
    _, again = world.run(thing(5))
    _, undone = world.run(thing(3))
    assert [shown(check)["change"] for check in (first, second, again, undone)] == [0, 2, 2, -2]


def test_a_good_partition_does_not_hide_a_bad_one(world):
    plan = thing(0, partitions={"a": 11, "b": 3, "c": 4})
    found, check = world.run(plan, "a")
    assert not found.success
    found, check = world.run(plan, "b")
    assert not check.passed
    assert shown(check)["partitions"] == "a"
    assert shown(check)["value"] == 11
    mended, check = world.run(thing(0, partitions={"a": 2, "b": 3, "c": 4}, revision="2"), "a")
    assert mended.success
    assert check.passed


def test_observations_of_a_running_step_make_nothing_stale(world, monkeypatch):
    monkeypatch.setattr(step_progress, "_EVERY_S", 0.0)
    monkeypatch.setattr(step_progress, "_EVERY_SHARE", 0.0)
    world.run(thing(3))
    (observation,) = world.instance.fetch_observations(dg.AssetKey(["thing", "one"]), limit=9).records
    shown_now = observation.asset_observation.metadata
    assert {shown_now[name].value for name in ("done", "total", "loss_nats")} == {1, 2, 3.0}
    defs = dg.Definitions(assets=[to_dagster(thing(3))], resources=world.resources)
    store = world.resources["home"].store
    assert make_plan({"thing/one": thing(3)}, defs, world.instance, store).rows == ()


def test_first_rows_hold_whatever_a_table_holds():
    table = pa.table({"placement": [["fa", "gdn"]], "cost": [math.inf], "chosen": [True], "name": [None]})
    (record,) = first_rows("placements", table).records
    assert record.data == {"placement": "fa gdn", "cost": "inf", "chosen": True, "name": None}
