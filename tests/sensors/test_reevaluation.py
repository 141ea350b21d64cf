"""What is shipped is evaluated again by date although nothing upstream changed, and held against the last result."""

import datetime

import dagster as dg
import pyarrow.parquet as pq
import pytest

from sensors.reevaluation import date_key

NAME = "reevaluation"
KEY = "automation/reevals/"
DAILY = "evals.cron='0 3 * * *'"


@pytest.fixture
def location(locate):
    return locate(DAILY)


def tick(location, day):
    """Fire the schedule at 3:00 of a day; return its requests."""
    clock = datetime.datetime(2026, 5, day, 3, tzinfo=datetime.UTC)
    context = dg.build_schedule_context(
        instance=location.instance, scheduled_execution_time=clock, repository_def=location.repository
    )
    return location.repository.get_schedule_def(NAME).evaluate_tick(context).run_requests


def rows(location, model="turbo"):
    from resources.lake import Lake

    found = Lake(location.home).read("reevals", "tiny").to_pylist()
    return sorted((row for row in found if row["model"] == model), key=lambda row: row["date"])


def verdict(result, model="turbo"):
    (found,) = [own for own in result.get_asset_check_evaluations() if own.asset_key.path[-1] == model]
    return found


def request_of(requests, model):
    (found,) = [own for own in requests if own.asset_selection[0].path[-1] == model]
    return found


def test_each_day_asks_for_every_shipped_model(location):
    first, second = tick(location, 1), tick(location, 2)
    assert {own.asset_selection[0].to_user_string() for own in first} == {
        KEY + name for name in ("safe", "turbo", "turbo-50")
    }
    assert {own.partition_key for own in first} == {"2026-05-01"}
    assert {own.partition_key for own in second} == {"2026-05-02"}
    assert not {own.run_key for own in first} & {own.run_key for own in second}
    # The same tick once more, after a crash of the daemon: Dagster drops run keys that it has seen.
    assert {own.run_key for own in tick(location, 2)} == {own.run_key for own in second}


def test_same_model_same_figures_no_drift(location):
    for day in (1, 2):
        result = location.carry_out(request_of(tick(location, day), "turbo"))
        assert verdict(result).passed
    found = rows(location)
    assert len(found) == 12  # 2 days, 2 tasks, 3 metrics
    assert {row["last_date"] for row in found[:6]} == {None}
    assert {row["last_date"] for row in found[6:]} == {"2026-05-01"}
    assert all(row["last_value"] == row["value"] for row in found)


def test_a_figure_outside_of_the_last_interval_fails_the_check_until_it_is_the_last(location):
    (path,) = location.home.glob("lake/evals/tiny/evals.turbo@recall.parquet")
    table = pq.read_table(path)
    shifted = [
        {**row, "value": row["value"] + 1, "low": row["low"] + 1, "high": row["high"] + 1}
        for row in table.to_pylist()
    ]
    pq.write_table(type(table).from_pylist(shifted, schema=table.schema), path)
    result = location.carry_out(request_of(tick(location, 1), "turbo"))
    found = verdict(result)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert found.metadata["num_drifted"].value == 3
    assert {row["task"] for row in rows(location) if row["drifted"]} == {"recall"}
    assert verdict(location.carry_out(request_of(tick(location, 2), "turbo"))).passed


def test_without_a_release_the_teacher_the_last_step_and_placements_are_shipped(locate):
    location = locate(DAILY, "release={}")
    asked = {own.asset_selection[0].path[-1] for own in tick(location, 1)}
    assert asked == {"teacher", "h3", "b50", "b90"}


def test_no_cron_no_schedule(locate):
    assert locate().repository.schedule_defs == []


@pytest.mark.parametrize(
    ("cron", "expected"),
    [("0 3 * * *", "2026-05-01"), ("30 3 * * 1", "2026-05-01"), ("0 */6 * * *", "2026-05-01T03:00")],
)
def test_several_ticks_a_day_have_keys_of_their_own(cron, expected):
    assert date_key(datetime.datetime(2026, 5, 1, 3, tzinfo=datetime.UTC), cron) == expected
