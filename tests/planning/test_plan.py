"""The planner's rules on a graph of numbers: why, how long, what is still stored, what a failed check keeps back."""

import shutil
from dataclasses import replace

import pytest
from dagster._core.definitions import data_version
from number_graph import build_sum, number, small_check

from apriel_assets.assets.asset_plan import MAX_PARTITIONS, OnePartition
from apriel_assets.errors import UserError
from apriel_assets.planning.selection import select, until


def reasons(plan):
    return {row.place: row.reason for row in plan.rows}


def test_edit_and_reversal_finds_the_old_artifacts(bench):
    def graph(value):
        first = number("first", value=value)
        return first, number("second", first), number("third", number("second", first), value=1)

    bench.run(*graph(1))
    bench.run(*graph(2))
    built = set(bench.home.glob("artifacts/**/provenance.json"))
    plan = bench.plan(*graph(1))
    assert reasons(plan) == {
        ("first", None): "recipe changed: value 2 -> 1 | found in the store, nothing is built"
    }
    assert [(row.seconds, row.gpu_seconds, row.expected_from) for row in plan.rows] == [(0, 0, "stored")]
    # What follows is known to be stored, too: its inputs' data versions are.
    assert plan.downstream == ("second", "third")
    assert plan.as_json()["downstream_totals"] == {"seconds": 0, "gpu_seconds": 0, "unknown": 0}
    assert [row.asset for row in bench.run(*graph(1))] == ["first", "second", "third"]
    assert set(bench.home.glob("artifacts/**/provenance.json")) == built
    assert bench.plan(*graph(1)).rows == ()


def test_edit_that_was_never_built_is_not_announced_as_stored(bench):
    bench.run(number("first", value=1))
    (row,) = bench.plan(number("first", value=2)).rows
    assert row.reason == "recipe changed: value 1 -> 2"
    assert row.expected_from == "nearest values"


def test_stored_result_that_comes_out_the_same_stops_what_may_follow(bench):
    def build_same(job, *, value):
        job.draft.data_version = "same"

    def graph(value):
        first = number("first", build=build_same, value=value)
        return first, number("second", first)

    bench.run(*graph(1))
    bench.run(*graph(2))
    plan = bench.plan(*graph(1))
    assert (len(plan.rows), plan.downstream) == (1, ())
    assert [row.asset for row in bench.run(*graph(1))] == ["first"]


def test_expected_time_is_the_nearest_runs(bench):
    bench.run(number("step", value=1, seconds=10.0))
    bench.run(number("step", value=2, seconds=20.0))

    def expected(*assets):
        row = bench.plan(*assets).rows[-1]
        return row.seconds, row.gpu_seconds, row.expected_from

    # Two values differ from the first run, one from the second.
    assert expected(number("step", value=3, seconds=20.0)) == (20.0, 40.0, "nearest values")
    # Never built: another asset of the same builder tells, one of another builder does not.
    assert expected(number("step", value=2, seconds=20.0), number("other", value=9)) == (20.0, 40.0, "step")
    assert expected(number("other", build=build_sum, value=1)) == (None, None, None)
    # Built before, and damaged since: the very same values.
    shutil.rmtree(bench.home / "artifacts" / "step")
    bench.run(number("step", value=2, seconds=20.0))
    next(bench.home.glob("artifacts/step/*/number.txt")).write_text("3")
    assert expected(number("step", value=2, seconds=20.0)) == (20.0, 40.0, "same values")


def test_totals_count_what_is_known_and_what_is_not(bench):
    bench.run(number("step", value=1, seconds=10.0))
    plan = bench.plan(
        number("step", value=2, seconds=10.0),
        number("new", build=build_sum, value=1),
        number("more", value=1),
    )
    assert plan.as_json()["totals"] == {"seconds": 20.0, "gpu_seconds": 40.0, "unknown": 1}
    assert [row["blocked"] for row in plan.as_json()["rows"]] == [None] * 3


def test_gpu_time_that_was_not_known_is_not_none(bench):
    def build_unleased(job, **reads):
        job.draft.figures |= {"seconds": 5.0, "gpu_seconds": None}

    bench.run(number("step", build=build_unleased, value=1))
    plan = bench.plan(number("step", build=build_unleased, value=2))
    assert [(row.seconds, row.gpu_seconds) for row in plan.rows] == [(5.0, None)]
    assert plan.as_json()["totals"] == {"seconds": 5.0, "gpu_seconds": 0, "unknown": 1}


def test_expected_time_prefers_the_same_partition(bench):
    def build_by_task(job, **reads):
        job.draft.figures["seconds"] = {"easy": 1.0, "hard": 100.0}[job.partition]

    bench.run(number("evals", build=build_by_task, partitions=["easy", "hard"], value=1))
    plan = bench.plan(number("evals", build=build_by_task, partitions=["easy", "hard", "new"], value=2))
    assert {row.partition: row.seconds for row in plan.rows} == {"easy": 1.0, "hard": 100.0, "new": 100.0}


def test_failed_blocking_check_keeps_back_what_is_made_from_it(bench):
    def graph(value):
        first = number("first", value=value, checks=[small_check(5)])
        return first, number("second", first), number("third", number("second", first)), number("apart")

    with pytest.raises(UserError, match=r"is_small of first failed: 2 assets"):
        bench.run(*graph(9))
    plan = bench.plan(*graph(9))
    assert reasons(plan) == {
        ("second", None): "blocked: is_small of first failed | never built",
        ("third", None): "blocked: is_small of first failed | never built",
    }
    assert plan.as_json()["totals"] == {"seconds": 0, "gpu_seconds": 0, "unknown": 0}
    assert [row["blocked"] for row in plan.as_json()["rows"]] == ["is_small of first failed"] * 2
    assert [row.asset for row in bench.run(*graph(3))] == ["first", "second", "third"]
    assert bench.plan(*graph(3)).rows == ()
    # The old artifact is found in the store, and it is as bad as before.
    with pytest.raises(UserError, match="is_small of first failed"):
        bench.run(*graph(9))
    assert {row.asset for row in bench.plan(*graph(9)).rows} == {"second"}


def test_failed_partition_keeps_back_its_own_readers(bench):
    def build_by_budget(job, **reads):
        (job.draft.path / "number.txt").write_text({"small": "1", "big": "9"}[job.partition])

    found = number("found", build=build_by_budget, partitions=["small", "big"], checks=[small_check(5)])
    readers = number("of_small", OnePartition(found, "small")), number("of_big", OnePartition(found, "big"))
    with pytest.raises(UserError, match="is_small of found failed"):
        bench.run(found, *readers)
    assert {row.asset for row in bench.plan(found, *readers).rows} == {"of_big"}


def test_check_that_does_not_block_keeps_nothing_back(bench):
    first = number("first", value=9, checks=[replace(small_check(5), blocking=False)])
    assert [row.asset for row in bench.run(first, number("second", first))] == ["first", "second"]


def test_until_stops_before_what_is_made_from_it():
    first = number("first")
    second = number("second", first)
    assets = {own.key: own for own in (first, second, number("third", second), number("apart"))}
    assert until(assets, ["second"]) == {"first", "second", "apart"}
    assert select(assets, ["second"]) == {"first", "second"}
    with pytest.raises(UserError, match="--until fourth"):
        until(assets, ["fourth"])


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete a file", "delete it all", "provenance"])
def test_damage_is_planned_and_mended(bench, harm):
    first = number("first", value=123)
    assets = first, number("second", first)
    bench.run(*assets)
    (path,) = bench.home.glob("artifacts/first/*/number.txt")
    if harm == "flip":
        path.write_text("124")
    elif harm == "truncate":
        path.write_text("12")
    elif harm == "delete a file":
        path.unlink()
    elif harm == "delete it all":
        shutil.rmtree(path.parent)
    else:
        record = path.parent / "provenance.json"
        record.write_text(record.read_text().replace('"value": 123', '"value": 133'))
    (row,) = bench.plan(*assets).rows
    assert (row.asset, row.reason.startswith("files missing or damaged")) == ("first", True)
    assert [row.asset for row in bench.run(*assets)] == ["first"]
    assert path.read_text() == "123"
    assert bench.plan(*assets).rows == ()


def test_more_partitions_than_dagster_follows_are_refused():
    number("evals", partitions=[f"task{index}" for index in range(MAX_PARTITIONS)])
    with pytest.raises(UserError, match=r"at most 99.*evals.tasks"):
        number("evals", partitions=[f"task{index}" for index in range(MAX_PARTITIONS + 1)])


@pytest.mark.parametrize(("num_tasks", "is_followed"), [(3, True), (4, False)])
def test_dagster_stops_following_where_we_say(bench, monkeypatch, num_tasks, is_followed):
    """Guards Dagster's threshold, moved from 100 to 4: when this fails, look whether MAX_PARTITIONS may go."""
    threshold = "SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD"
    assert getattr(data_version, threshold) == MAX_PARTITIONS + 1
    monkeypatch.setattr(data_version, threshold, 4)

    def graph(value):
        evals = number("evals", partitions=[f"task{index}" for index in range(num_tasks)], value=value)
        return evals, number("leaderboard", evals)

    bench.run(*graph(1))
    assert ("leaderboard" in {row.asset for row in bench.run(*graph(2))}) == is_followed
