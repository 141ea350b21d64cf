"""A real daemon, code server and webserver, reconcile on: each edit rebuilds exactly its dependents, once, unasked.

One start for all: edits follow each other, each on top of the last, then all are taken back at once. Only the daemon's
pauses are shortened, and runs are carried out in its own process.
"""

import datetime
import json
import logging
import shutil

import dagster as dg
import pytest
import yaml
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._scheduler.scheduler import launch_scheduled_runs

from apriel_assets.workspace import open_workspace
from resources.lake import Lake
from tests.sensors.services import Services
from tests.sensors.watched_home import World

RESULTS = {"leaderboard", "report"}


def measured(*names):
    return {f"{kind}/{name}" for kind in ("evals", "throughput") for name in names}


# The tiny recipe with few models, since each is evaluated in runs of its own: teacher, h1, b90.
FEW = {"h1": {"schedule": [1], "sft": None, "merge": None}, "search": {"budgets": [90.0]}}
FOUND = {"finalists", "matryoshka", "release/export", *measured("b90"), *RESULTS}

# In this order, each on top of the last: the edit, what must run, what may run if what is above it turns out otherwise.
EDITS = {
    "a comment": (lambda recipe: None, set(), set()),
    "append a step": (
        lambda recipe: recipe["h1"].update(schedule=[1, 4]),
        {"h1/probes/h4", "h1/h4", *measured("h4"), *RESULTS},
        set(),
    ),
    "an eval task": (
        lambda recipe: recipe["evals"]["tasks"].append("copy"),
        {*(f"evals/{name}" for name in ("teacher", "h1", "h4", "b90")), *RESULTS},
        set(),
    ),
    "beam width": (lambda recipe: recipe["search"].update(beam=3), {"placements"}, FOUND),
    "a budget": (
        lambda recipe: recipe["search"]["budgets"].append(70.0),
        {
            "allocations",
            "placements",
            "finalists",
            "matryoshka",
            "release/export",
            *measured("b70"),
            *RESULTS,
        },
        set(),
    ),
    "a mixer more": (
        lambda recipe: recipe["supernet"]["mixers"].append("mamba"),
        {"supernet", "costs/mamba", "cost_model", "cost_check", "placements", "audit"},
        {"allocations", *FOUND, *measured("b70")},
    ),
}


@pytest.fixture
def daemon_world(world, tiny_recipe_file, tmp_path):
    home, recipe, drop = shutil.copytree(world, tmp_path / "home"), tmp_path / "tiny.yaml", tmp_path / "drop"
    drop.mkdir()
    content = yaml.safe_load(tiny_recipe_file.read_text())
    content["automation"] = {
        "reconcile": True,
        "interval_s": 1,
        "retry_wait_s": 1,
        "watch": {"directory": str(drop), "interval_s": 1, "settle_s": 0},
    }
    content["evals"]["cron"] = "0 3 1 1 *"
    content["release"] = {}
    for section, changes in FEW.items():
        content[section].update(changes)
    recipe.write_text(yaml.safe_dump(content))
    with open_workspace(str(recipe), home, write=True) as workspace:
        workspace.run()
    services = Services(home, recipe)
    try:
        services.wait_until_up()
        yield World(home, recipe, services), content, drop
    finally:
        services.stop()


# Each edit takes a daemon half a minute; what the others rebuild is tested without one.
FEWER = ("a comment", "append a step", "a mixer more")


@pytest.mark.services
@pytest.mark.parametrize(
    "names", [FEWER, pytest.param(tuple(EDITS), marks=pytest.mark.soak)], ids=["few", "all"]
)
def test_edits_under_a_real_daemon(names, daemon_world, tiny_teacher):
    world, content, drop = daemon_world
    world.until_quiet()
    assert world.new_materializations() == []
    original = json.loads(json.dumps(content))
    for name in names:
        change, certain, possible = EDITS[name]
        change(content)
        world.edit(content, comment=f"# {name}\n")
        world.until_quiet()
        ran = world.new_materializations()
        assets = {asset for asset, _ in ran}
        assert certain <= assets <= certain | possible, name
        assert len(ran) == len(set(ran)), name  # nothing twice
        if name == "an eval task":
            assert {part for asset, part in ran if asset.startswith("evals/")} == {"copy"}
        if name == "a budget":
            own = [place for place in ran if place[0] in ("allocations", "placements", "finalists")]
            assert {part for _, part in own} == {"70"}
    built = world.built()
    check_all_taken_back(world, original, built)
    check_broken_recipe(world, original)
    check_schedule(world)
    check_dropped_checkpoint(world, drop, tiny_teacher)


def check_all_taken_back(world, original, built):
    """All edits taken back at once: recorded again, nothing built."""
    world.edit(original)
    world.until_quiet()
    ran = world.new_materializations()
    assert {"supernet", "placements", *RESULTS} <= {asset for asset, _ in ran}
    assert len(ran) == len(set(ran))
    assert world.built() == built
    assert world.stale_in_ui() == set()
    with open_workspace(str(world.recipe), world.home) as workspace:
        assert workspace.plan().rows == ()


def check_broken_recipe(world, original):
    """The UI says what is wrong, keeps all assets, and nothing runs."""
    query = """{assetNodes {assetKey {path} description}
        checks: assetNodeOrError(assetKey: {path: ["recipe"]}) {... on AssetNode {assetChecksOrError {
        ... on AssetChecks {checks {executionForLatestMaterialization {evaluation {success description}}}}}}}}"""

    def evaluation():
        found = world.services.query(query)["checks"]["assetChecksOrError"]["checks"][0]
        return (found["executionForLatestMaterialization"] or {}).get("evaluation") or {}

    nodes = {"/".join(n["assetKey"]["path"]) for n in world.services.query(query)["assetNodes"]}
    world.edit({**original, "h1": {**original["h1"], "shedule": [1]}})
    world.wait(lambda: evaluation().get("success") is False)
    assert "did you mean schedule" in evaluation()["description"]
    assert {"/".join(n["assetKey"]["path"]) for n in world.services.query(query)["assetNodes"]} == nodes
    world.wait(lambda: "did you mean schedule" in (world.ticks("reconcile")[0]["skipReason"] or ""))
    world.edit(original)
    world.wait(lambda: evaluation().get("success") is True)
    world.until_quiet()
    assert world.new_materializations() == []


def check_schedule(world):
    """Dagster's own scheduler under another clock: every shipped model once, although nothing changed."""
    target = WorkspaceFileTarget([str(world.home / "workspace.yaml")])
    clock = datetime.datetime(2099, 1, 1, 3, 0, 5, tzinfo=datetime.UTC)
    with create_test_daemon_workspace_context(target, world.instance) as context:
        for _ in range(2):
            list(launch_scheduled_runs(context, logging.getLogger("test"), clock, {}))
    world.until_quiet()
    models = {f"automation/reevals/{name}" for name in ("teacher", "h1", "b90")}
    assert sorted(world.new_materializations()) == [(name, "2099-01-01") for name in sorted(models)]
    assert {row["date"] for row in Lake(world.home).read("reevals", "tiny").to_pylist()} == {"2099-01-01"}


def check_dropped_checkpoint(world, drop, tiny_teacher):
    """A checkpoint is put into place while the daemon watches: evaluated once."""
    key = dg.AssetKey(["automation", "dropped_checkpoints"])
    shutil.copytree(tiny_teacher, drop / "plain")
    world.wait(lambda: world.instance.get_materialized_partitions(key) == {"plain"})
    world.wait(lambda: "nothing new" in (world.ticks("checkpoints")[0]["skipReason"] or ""))
    world.until_quiet()
    assert world.new_materializations() == [("automation/dropped_checkpoints", "plain")]
