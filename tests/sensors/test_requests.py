"""A run is asked for once; after failures a few times more, later and later; after bad input or a cancel not again."""

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from apriel_assets.errors import UserError
from sensors.requests import PastRequests, Retries, Wanted, assets_in_flight, run_key, wanted_tags

SENSOR = "reconcile"
WANTED = Wanted(asset="h1/h2", goal="abc", state="17")


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def ask(instance, *, status, wanted=WANTED, sensor=SENSOR):
    """Record a run that was asked for, and how it is."""
    tags = {**wanted_tags([wanted]), "dagster/sensor_name": sensor}
    started = dg.DagsterRunStatus.STARTED
    run = create_run_for_test(
        instance,
        tags=tags,
        status=started,
        asset_selection=frozenset({dg.AssetKey(wanted.asset.split("/"))}),
    )
    if status == dg.DagsterRunStatus.FAILURE:
        instance.report_run_failed(run)
    elif status == dg.DagsterRunStatus.CANCELED:
        instance.report_run_canceled(run)
    elif status == dg.DagsterRunStatus.SUCCESS:
        instance.report_dagster_event(
            dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, run.job_name), run.run_id
        )
    return run


def next_attempt(instance, *, wanted=WANTED, later_s=0.0, limit=2, wait_s=60.0):
    ended = [record.end_time for record in instance.get_run_records() if record.end_time]
    now = max(ended, default=0.0) + later_s
    return PastRequests(instance, SENSOR, Retries(limit, wait_s), now).next_attempt(wanted)


def test_what_was_never_asked_for_is_asked_for_now(instance):
    assert next_attempt(instance) == 0


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.QUEUED])
def test_no_second_request_while_one_is_under_way(status, instance):
    ask(instance, status=status)
    assert "under way" in str(next_attempt(instance))
    assert set(assets_in_flight(instance)) == {"h1/h2"}


def test_failures_are_tried_again_later_and_later_and_not_for_ever(instance):
    waits = []
    for failures in (1, 2):
        ask(instance, status=dg.DagsterRunStatus.FAILURE)
        due = [later for later in (0, 59, 61, 119, 121) if next_attempt(instance, later_s=later) == failures]
        waits.append(due[0])
    assert waits == [61, 121]
    ask(instance, status=dg.DagsterRunStatus.FAILURE)
    assert "given up after 3 failed runs" in str(next_attempt(instance, later_s=1e6))


def test_another_goal_or_a_new_state_starts_from_nought(instance):
    for _ in range(3):
        ask(instance, status=dg.DagsterRunStatus.FAILURE)
    other = Wanted(asset="h1/h2", goal="other", state="17")
    rebuilt = Wanted(asset="h1/h2", goal="abc", state="18")
    assert next_attempt(instance, wanted=other) == 0
    assert next_attempt(instance, wanted=rebuilt) == 0
    assert len({run_key([WANTED], 0), run_key([other], 0), run_key([rebuilt], 0), run_key([WANTED], 1)}) == 4


def test_what_somebody_cancelled_is_not_started_again(instance):
    ask(instance, status=dg.DagsterRunStatus.CANCELED)
    assert "cancelled" in str(next_attempt(instance, later_s=1e6))


def test_a_result_that_is_stale_right_after_each_run_is_not_made_for_ever(instance):
    for state in range(3):
        assert next_attempt(instance, wanted=Wanted(asset="h1/h2", goal="abc", state=str(state))) == 0
        ask(
            instance,
            status=dg.DagsterRunStatus.SUCCESS,
            wanted=Wanted(asset="h1/h2", goal="abc", state=str(state)),
        )
    again = Wanted(asset="h1/h2", goal="abc", state="3")
    assert "stale again after 3 good runs" in str(next_attempt(instance, wanted=again))
    assert next_attempt(instance, wanted=again, later_s=3700) == 0


def test_edits_back_and_forth_are_no_such_thing(instance):
    for state in range(8):
        wanted = Wanted(asset="h1/h2", goal="ab"[state % 2], state=str(state))
        assert next_attempt(instance, wanted=wanted) == 0
        ask(instance, status=dg.DagsterRunStatus.SUCCESS, wanted=wanted)


def test_what_another_sensor_asked_for_does_not_count(instance):
    ask(instance, status=dg.DagsterRunStatus.FAILURE, sensor="checkpoints")
    assert next_attempt(instance) == 0


@pytest.mark.parametrize(
    ("error", "expected"), [(UserError("no file x; check it"), "no file x; check it"), (OSError("gone"), 1)]
)
def test_bad_input_is_not_tried_again_and_says_why(error, expected, instance):
    @dg.asset(key=["h1", "h2"])
    def broken():
        raise error

    tags = {**wanted_tags([WANTED]), "dagster/sensor_name": SENSOR}
    dg.materialize([broken], instance=instance, raise_on_error=False, tags=tags)
    found = next_attempt(instance, later_s=100)
    assert found == expected if isinstance(expected, int) else str(found).endswith(expected)
