"""A schedule asks once: what failed on its last date is asked for again, a few times."""

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.reevals import DATES
from apriel_assets.definitions import code_location, plan_assets
from apriel_assets.loaded_recipe import LoadedRecipe
from apriel_assets.recipe import load_recipe
from resources.home import open_instance, prepare_home
from sensors.reevaluation import reevaluation_retries_sensor
from sensors.requests import Retries, Wanted, wanted_tags

SAFE, TURBO = (
    AssetPlan(key=f"automation/reevals/{name}", group="automation", build=print, reads={"model": name})
    for name in ("safe", "turbo")
)
SENSOR = reevaluation_retries_sensor([SAFE, TURBO], Retries(limit=1, wait_s=0), 30)
REPOSITORY = dg.Definitions(
    assets=[
        dg.asset(key=own.key.split("/"), partitions_def=dg.DynamicPartitionsDefinition(name=DATES))(
            lambda: None
        )
        for own in (SAFE, TURBO)
    ],
    sensors=[SENSOR],
).get_repository_def()
BY_SCHEDULE = {"dagster/schedule_name": "reevaluation"}
BY_SENSOR = {"dagster/sensor_name": "reevaluation_retries"}


@pytest.fixture
def instance(tmp_path):
    prepare_home(tmp_path)
    with open_instance(tmp_path) as opened:
        opened.add_dynamic_partitions(DATES, ["2026-05-01", "2026-05-02"])
        yield opened


def run(instance, asset, date, status, asked_by):
    wanted = Wanted(asset=asset.key, partition=date, goal=asset.code_version, state="any")
    tags = {**wanted_tags([wanted]), **asked_by}
    made = create_run_for_test(instance, tags=tags, status=dg.DagsterRunStatus.STARTED)
    if status == dg.DagsterRunStatus.FAILURE:
        instance.report_run_failed(made)
    else:
        event = dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, made.job_name)
        instance.report_dagster_event(event, made.run_id)


def look(instance):
    context = dg.SensorEvaluationContext(
        instance_ref=instance.get_ref(),
        instance=instance,
        repository_def=REPOSITORY,
        last_tick_completion_time=None,
        last_run_key=None,
        cursor=None,
        repository_name=None,
    )
    found = REPOSITORY.get_sensor_def(SENSOR.name).evaluate_tick(context)
    return found.run_requests, found.skip_message


def test_failures_of_the_last_date_are_asked_for_again_a_few_times(instance):
    failed, good = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS
    assert look(instance)[0] == []  # asking first is the schedule's part
    run(instance, SAFE, "2026-05-01", failed, BY_SCHEDULE)
    run(instance, TURBO, "2026-05-02", good, BY_SCHEDULE)
    assert look(instance)[0] == []
    run(instance, SAFE, "2026-05-02", failed, BY_SCHEDULE)
    (request,) = look(instance)[0]
    assert (request.asset_selection, request.partition_key) == (
        [dg.AssetKey(SAFE.key.split("/"))],
        "2026-05-02",
    )
    run(instance, SAFE, "2026-05-02", failed, BY_SENSOR)
    requests, said = look(instance)
    assert requests == []
    assert "given up after 2 failed runs" in said


def test_a_retry_that_ends_well_is_the_end(instance):
    run(instance, SAFE, "2026-05-02", dg.DagsterRunStatus.FAILURE, BY_SCHEDULE)
    run(instance, SAFE, "2026-05-02", dg.DagsterRunStatus.SUCCESS, BY_SENSOR)
    assert look(instance)[0] == []


@pytest.mark.parametrize("overlays", [(), ("evals.cron='0 3 * * *'",)])
def test_the_sensor_is_there_with_the_schedule(overlays, tiny_recipe_file, tmp_path):
    prepare_home(tmp_path)
    recipe = load_recipe(str(tiny_recipe_file), overlays)
    loaded = LoadedRecipe(recipe=recipe, assets=plan_assets(recipe), source="tiny")
    repository = code_location(loaded, tmp_path).get_repository_def()
    assert repository.has_sensor_def("reevaluation_retries") == bool(overlays)
