"""The reconcile sensor asks for what the plan's frontier holds, once, and is quiet when it should be."""

import fcntl
import json

import dagster as dg
import pytest

from apriel_assets.recipe import load_recipe

SENSOR = "reconcile"
EDIT = "h1.merge.weight=0.25"


@pytest.fixture
def steady(monkeypatch):
    """A code location whose overlays count as its recipe file."""
    from apriel_assets.loaded_recipe import LoadedRecipe
    from apriel_assets.reporting import report

    monkeypatch.setattr(LoadedRecipe, "problem_now", lambda self, *given: None)
    # Drawing takes seconds at every edit and has tests of its own.
    monkeypatch.setattr(report, "render_report", lambda tables, recipe, provenance: f"<p>{recipe}</p>")


def assets_of(request):
    return {key.to_user_string() for key in request.asset_selection}


def bring_up(location):
    """Look and carry out until nothing is asked for; return what was asked for, frontier by frontier."""
    asked = []
    while requests := location.look(SENSOR).run_requests:
        asked.append(requests)
        for request in requests:
            assert location.carry_out(request, SENSOR).success
        assert len(asked) < 20
    return asked


def test_nothing_stale_nothing_asked(locate, steady):
    found = locate().look(SENSOR)
    assert (found.run_requests, found.skip_message) == ([], "everything is up to date")


def test_while_nothing_happens_no_plan_is_made_until_files_may_be_damaged(locate, steady, monkeypatch, home):
    import shutil

    from apriel_assets import definitions
    from sensors import reconcile

    location, plans, make_plan = locate(), [], definitions.make_plan
    monkeypatch.setattr(definitions, "make_plan", lambda *given: plans.append(given) or make_plan(*given))
    for _ in range(3):
        assert location.look(SENSOR).skip_message == "everything is up to date"
    assert len(plans) == 1
    shutil.rmtree(home / "artifacts" / "h1" / "merge")
    monkeypatch.setattr(reconcile, "_IDLE_S", 0.0)
    (request,) = location.look(SENSOR).run_requests
    assert assets_of(request) == {"h1/merge"}
    location.carry_out(request, SENSOR)
    monkeypatch.setattr(reconcile, "_IDLE_S", 300.0)
    assert location.look(SENSOR).skip_message == "everything is up to date"
    assert len(plans) == 3  # something was recorded: looked at again at once


def test_an_edit_is_rebuilt_frontier_by_frontier(locate, steady):
    asked = bring_up(locate(EDIT))
    steps = [set().union(*map(assets_of, requests)) for requests in asked]
    assert steps == [{"h1/merge"}, {"evals/merge", "throughput/merge"}, {"leaderboard"}, {"report"}]
    keys = [request.run_key for requests in asked for request in requests]
    assert len(set(keys)) == len(keys)


def test_back_and_forth_is_asked_for_again_each_time(locate, steady):
    for overlays in ((EDIT,), (), (EDIT,)):
        assert len(bring_up(locate(*overlays))) == 4


def test_partitions_are_asked_for_as_ranges_without_those_that_are_up_to_date(locate, steady):
    requests = locate("evals.tasks=[recall,arithmetic,copy,kth]").look(SENSOR).run_requests
    ranges = {
        tuple(request.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end"))
        for request in requests
    }
    assert ranges == {("copy", "kth")}
    assert all(len(request.asset_selection) == 1 for request in requests)


def test_no_request_while_a_run_of_it_or_of_what_it_needs_is_under_way(locate, steady):
    from dagster._core.test_utils import create_run_for_test

    location = locate(EDIT)
    for asset in ("h1/merge", "teacher"):
        run = create_run_for_test(
            location.instance,
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset({dg.AssetKey(asset.split("/"))}),
        )
        assert location.look(SENSOR).skip_message == f"h1/merge: waits for run {run.run_id[:8]}"
        location.instance.delete_run(run.run_id)
    assert len(location.look(SENSOR).run_requests) == 1


def test_a_run_that_ends_while_the_plan_is_made_is_not_asked_for_again(locate, steady, monkeypatch):
    from dagster._core.test_utils import create_run_for_test

    from apriel_assets import definitions

    location = locate(EDIT)
    run = create_run_for_test(
        location.instance,
        status=dg.DagsterRunStatus.STARTED,
        asset_selection=frozenset({dg.AssetKey(["h1", "merge"])}),
    )
    make_plan = definitions.make_plan

    def slow_plan(*given):
        plan = make_plan(*given)
        location.instance.report_run_canceled(run)
        return plan

    monkeypatch.setattr(definitions, "make_plan", slow_plan)
    assert location.look(SENSOR).skip_message == f"h1/merge: waits for run {run.run_id[:8]}"


def test_bad_input_is_reported_not_repeated(locate, steady, monkeypatch):
    from apriel_assets.assets import h1, h1_builders
    from apriel_assets.errors import UserError

    def refuse(job, **reads):
        raise UserError("layer 7 is not there; name another")

    monkeypatch.setattr(h1, "build_merge", refuse)
    assert h1_builders.build_merge is not refuse
    location = locate(EDIT, "automation.retry_wait_s=0")
    (request,) = location.look(SENSOR).run_requests
    assert not location.carry_out(request, SENSOR).success
    assert location.look(SENSOR).skip_message == "h1/merge: layer 7 is not there; name another"


def test_a_row_that_failed_is_tried_alone_and_not_for_ever(locate, steady, monkeypatch):
    from apriel_assets.assets import h1

    def crash(job, **reads):
        raise RuntimeError("cosmic ray")

    monkeypatch.setattr(h1, "build_merge", crash)
    location = locate(EDIT, "evals.throughput.repeats=2", "automation={retries: 1, retry_wait_s: 0}")
    (first,) = location.look(SENSOR).run_requests
    assert {"h1/merge", "throughput/teacher"} <= assets_of(first)
    location.carry_out(first, SENSOR)
    alone = [assets_of(request) for request in location.look(SENSOR).run_requests]
    assert {"h1/merge"} in alone
    for request in location.look(SENSOR).run_requests:
        location.carry_out(request, SENSOR)
    last = location.look(SENSOR)
    assert not any("h1/merge" in assets_of(request) for request in last.run_requests)


def test_an_apriel_run_on_the_home_is_left_to_its_work(locate, steady, home):
    with (home / "run.lock").open("w+") as lock:
        lock.write("pid 7, since noon")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "pid 7, since noon" in locate(EDIT).look(SENSOR).skip_message


def test_rows_of_what_the_recipe_no_longer_has_leave_the_tables(locate, steady, home):
    location = locate("search.budgets=[90.0]")
    location.look(SENSOR)
    files = {path.name for path in home.glob("lake/placements/tiny/*.parquet")}
    assert files == {"finalists@90.parquet"}


def test_rows_of_what_the_recipe_has_again_come_back(locate, steady, home):
    before = {path.name: path.read_bytes() for path in home.glob("lake/evals/tiny/*.parquet")}
    locate("evals.tasks=[recall]").look(SENSOR)
    assert before.keys() > {path.name for path in home.glob("lake/evals/tiny/*.parquet")}
    assert locate().look(SENSOR).skip_message == "everything is up to date"
    assert {path.name: path.read_bytes() for path in home.glob("lake/evals/tiny/*.parquet")} == before


def test_off_unless_the_recipe_says_so(locate):
    statuses = {
        wanted: locate(f"automation.reconcile={wanted}").repository.get_sensor_def(SENSOR).default_status
        for wanted in ("false", "true")
    }
    assert [own.name for own in statuses.values()] == ["STOPPED", "RUNNING"]


def test_automation_is_in_no_assets_slice(tiny_recipe_file):
    from apriel_assets.definitions import plan_assets

    settings = "automation={reconcile: true, watch: {directory: /x}, generation: {candidates: 2}, retries: 9}"
    plain, automated = (
        {key: own.code_version for key, own in plan_assets(load_recipe(str(tiny_recipe_file), more)).items()}
        for more in ([], [settings, "evals.cron='@daily'"])
    )
    assert json.dumps(plain) == json.dumps(automated)
