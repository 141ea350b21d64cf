"""The six edits of docs/staleness.md, made in the recipe's file: the plan, what a run writes, what Dagster says.

By modification times, by materialization events, and against GraphQL's staleStatus before and after each run.
"""

import json
import shutil

import pytest
import yaml
from stale_statuses import stale_by_graphql
from written import artifacts_written, files_of, last_event, materialized, rows_written

from apriel_assets.workspace import open_workspace

RESULTS = {"leaderboard", "report"}


def measured(*names):
    return {f"{kind}/{name}" for kind in ("evals", "throughput") for name in names}


MODELS = ("teacher", "h1", "h2", "h3", "sft", "merge", "b50", "b90", "safe", "turbo-50", "turbo")
RELEASED = {
    "matryoshka",
    "release/sft",
    "release/guard/sft",
    "release/export",
    *measured("safe", "turbo-50", "turbo"),
}
FOUND = {"finalists", *measured("b50", "b90"), *RELEASED, *RESULTS}

# The edit, what must run, what may run if what is above it turns out otherwise.
ROWS = {
    "a budget": (
        lambda recipe: recipe["search"]["budgets"].append(70.0),
        {"allocations", "placements", "finalists", *measured("b70", "turbo-70"), *RELEASED, *RESULTS},
        set(),
    ),
    "beam width": (lambda recipe: recipe["search"].update(beam=3), {"placements"}, FOUND),
    "append a step": (
        lambda recipe: recipe["h1"]["schedule"].append(4),
        {"h1/probes/h4", "h1/h4", *measured("h4"), *RESULTS},
        set(),
    ),
    "a mixer more": (
        lambda recipe: recipe["supernet"]["mixers"].append("mamba"),
        {"supernet", "costs/mamba", "cost_model", "cost_check", "placements", "audit"},
        {"allocations", *FOUND},
    ),
    "an eval task": (
        lambda recipe: recipe["evals"]["tasks"].append("copy"),
        {*(f"evals/{name}" for name in MODELS), *RESULTS},
        set(),
    ),
    "a comment and other white space": (lambda recipe: None, set(), set()),
}
# Of these partitioned assets only the new partition.
OWN_PARTITION = {
    "a budget": ("70", {"allocations", "placements", "finalists"}),
    "an eval task": ("copy", {f"evals/{name}" for name in MODELS}),
}


@pytest.fixture
def home(world, tmp_path):
    return shutil.copytree(world, tmp_path / "home")


@pytest.fixture
def recipe(tiny_recipe_file, tmp_path):
    return shutil.copy(tiny_recipe_file, tmp_path / "tiny.yaml")


def write_edited(recipe, change):
    content = yaml.safe_load(recipe.read_text())
    change(content)
    recipe.write_text("# edited\n\n" + yaml.safe_dump(content, indent=6, sort_keys=True))


@pytest.mark.parametrize("row", ROWS)
def test_row(row, recipe, home, apriel):
    change, certain, possible = ROWS[row]
    write_edited(recipe, change)
    with open_workspace(str(recipe), home) as workspace:
        plan = workspace.plan()
        planned = {own.place for own in plan.rows}
        assert planned == stale_by_graphql(workspace.defs, workspace.instance)
        assert {own.asset for own in plan.rows} | set(plan.downstream) == certain | possible
        since = last_event(workspace.instance)
    before = files_of(home)
    code, out, _ = apriel("run", "--recipe", recipe, "--home", home, "--json")
    ran = [tuple(place) for place in json.loads(out)["ran"]]
    assets = {asset for asset, _ in ran}
    assert code == 0
    assert len(ran) == len(set(ran))
    assert planned <= set(ran)
    assert certain <= assets <= certain | possible
    if row in OWN_PARTITION:
        own, partitioned = OWN_PARTITION[row]
        assert {part for asset, part in ran if asset in partitioned} == {own}
    # What turned out as before was recorded again, and not built.
    assert certain <= artifacts_written(home, before) <= assets
    with open_workspace(str(recipe), home) as workspace:
        assert rows_written(home, before, workspace.assets.values()) <= assets
        assert sorted(materialized(workspace.instance, since)) == sorted(ran)
        assert workspace.plan().rows == ()
        assert stale_by_graphql(workspace.defs, workspace.instance) == set()
