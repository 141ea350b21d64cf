"""A run of several partitions that ends badly is no partition's fault yet: each is tried alone before that is said."""

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from apriel_assets.errors import UserError
from sensors.requests import PastRequests, Retries, Wanted, wanted_tags

SENSOR = "reconcile"
GOOD, BAD = (Wanted(asset="evals/h1", partition=name, goal="abc", state="none") for name in ("good", "bad"))
OTHER = Wanted(asset="h1/h2", goal="abc", state="none")


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def tags(*wanted):
    return {**wanted_tags(wanted), "dagster/sensor_name": SENSOR}


def refuse(instance, *wanted):
    """Run an asset on what was asked for; a bad partition is the user's fault."""

    @dg.asset(key=["evals", "h1"])
    def evaluated():
        if BAD in wanted:
            raise UserError("no file x; check it")
        raise OSError("gone")

    dg.materialize([evaluated], instance=instance, raise_on_error=False, tags=tags(*wanted))


def cancel(instance, *wanted):
    run = create_run_for_test(instance, tags=tags(*wanted), status=dg.DagsterRunStatus.STARTED)
    instance.report_run_canceled(run)


def next_attempt(instance, wanted, limit=2):
    now = max((record.end_time or 0.0 for record in instance.get_run_records()), default=0.0)
    return PastRequests(instance, SENSOR, Retries(limit, 60.0), now).next_attempt(wanted)


@pytest.mark.parametrize("limit", [0, 2])
@pytest.mark.parametrize(("end", "said"), [(refuse, "no file x; check it"), (cancel, "was cancelled")])
def test_each_is_tried_alone_at_once_and_only_that_is_final(end, said, limit, instance):
    end(instance, GOOD, BAD)
    assert [next_attempt(instance, wanted, limit) for wanted in (GOOD, BAD)] == [1, 1]
    end(instance, BAD)
    assert said in str(next_attempt(instance, BAD, limit))
    assert next_attempt(instance, GOOD, limit) == 1


def test_what_fails_otherwise_alone_is_retried_as_ever(instance):
    refuse(instance, GOOD, BAD)
    refuse(instance, GOOD)
    assert "tried again in" in str(next_attempt(instance, GOOD))
    refuse(instance, GOOD)
    assert "given up after 3 failed runs" in str(next_attempt(instance, GOOD))


def test_bad_input_of_an_asset_beside_others_is_its_own(instance):
    refuse(instance, BAD, OTHER)
    assert "no file x; check it" in str(next_attempt(instance, BAD))
