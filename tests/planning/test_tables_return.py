"""What a recipe drops leaves the tables, and comes back with it, though nothing runs then."""

import shutil

import pyarrow.parquet as pq
import pytest
from number_graph import number

from apriel_assets.assets.publishing import publish, tidy_lake
from apriel_assets.workspace import open_workspace
from resources.lake import Lake


def shown(home, recipe):
    """Return the bytes of every table file of a recipe, by its path below `lake/`, the recipe's name left out."""
    return {
        (path.parent.parent.name, path.name): path.read_bytes()
        for path in home.glob(f"lake/*/{recipe}/*.parquet")
    }


@pytest.fixture
def run(world, tiny_recipe_file, tmp_path):
    home = shutil.copytree(world, tmp_path / "home")

    def call(*overlays):
        with open_workspace(str(tiny_recipe_file), home, overlays, write=True) as workspace:
            ran = {row.asset for row in workspace.run()}
            assert workspace.plan().rows == ()
        return ran

    call.home = home
    return call


def test_eval_task_and_h1_step_come_back(run):
    before = shown(run.home, "tiny")
    run("evals.tasks=[recall]", "h1.schedule=[1,2]")
    left = shown(run.home, "tiny")
    assert ("evals", "evals.merge@arithmetic.parquet") in before.keys() - left.keys()
    assert ("throughput", "throughput.h3.parquet") in before.keys() - left.keys()
    assert run() == {"leaderboard", "report"}
    assert shown(run.home, "tiny") == before


def test_budget_comes_back(run):
    before = shown(run.home, "tiny")
    run("search.budgets=[90.0]")
    assert ("placements", "finalists@50.parquet") in before.keys() - shown(run.home, "tiny").keys()
    run()
    assert shown(run.home, "tiny") == before


def test_another_recipe_in_the_home_shows_what_is_built_already(run):
    before = shown(run.home, "tiny")
    assert run("name=other") == {"report", "release/export"}  # both say the name
    assert shown(run.home, "other").keys() == before.keys()
    found = Lake(run.home).query("select recipe, count(*) from evals group by recipe order by recipe")[1]
    assert [name for name, _ in found] == ["other", "tiny"]
    assert found[0][1] == found[1][1]
    run()
    assert shown(run.home, "tiny").keys() == before.keys()


def tidied(bench, *assets):
    by_key = {own.key: own for own in assets}
    return tidy_lake(Lake(bench.home), "quickstart", by_key, bench.plan(*assets).settled)


def test_what_another_recipe_made_of_other_inputs_is_not_shown_as_this_ones(bench):
    """A run of an edited recipe under a new name, cut before it got there, showed the former's rows as its own."""
    first, other = number("first", value=1), number("first", value=2)
    bench.run(first, number("second", first), number("third"))
    file = bench.home / "lake" / "builds" / "quickstart"
    shutil.rmtree(file)  # as under a new name
    assert tidied(bench, other, number("second", other), number("third")) == [("third", None)]
    assert [path.stem for path in file.iterdir()] == ["third"]
    bench.run(other, number("second", other), number("third"))
    assert tidied(bench, other, number("second", other), number("third")) == []
    assert sorted(path.stem for path in file.iterdir()) == ["first", "second", "third"]


def test_what_is_missing_torn_or_anothers_is_published_and_nothing_else(bench, monkeypatch):
    graph = number("first", value=1), number("second", value=1), number("third", value=1)
    bench.run(*graph)
    assert tidied(bench, *graph) == []
    file = bench.home / "lake" / "builds" / "quickstart" / "second.parquet"
    good = file.read_bytes()
    file.unlink()
    assert tidied(bench, *graph) == [("second", None)]
    file.write_bytes(good[:-9])
    assert tidied(bench, *graph) == [("second", None)]
    assert file.read_bytes() == good
    assert tidied(bench, *graph) == []  # what was just published is looked at once
    monkeypatch.setattr(pq, "read_metadata", lambda path: pytest.fail(f"{path} is read again"))
    assert tidied(bench, *graph) == []


def test_rows_of_another_artifact_with_the_same_data_version_are_replaced(bench):
    def build_same(job, *, value):
        job.draft.data_version = "same"

    old, new = (number("ranking", build=build_same, value=value) for value in (1, 2))
    bench.run(old)
    artifact = bench.plan(old).fresh["ranking", None]
    bench.run(new)
    publish(Lake(bench.home), old, None, artifact)
    assert tidied(bench, new) == [("ranking", None)]
    address = bench.plan(new).fresh["ranking", None].address
    assert Lake(bench.home).query("select address from builds")[1] == [(address,)]
