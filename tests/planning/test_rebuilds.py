"""Each edit of H1 rebuilds exactly what depends on it; going back builds nothing; what is damaged is built again."""

import shutil

import pytest
from written import artifacts_written, files_of, last_event, materialized, rows_written

from apriel_assets.workspace import open_workspace

RESULTS = {"leaderboard", "report"}


def measured(*names):
    return {f"{kind}/{name}" for kind in ("evals", "throughput") for name in names}


H3 = {"h1/h3", *measured("h3"), *RESULTS}
H2 = {"h1/h2", "h1/sft", "h1/merge", "h1/probes/h3", *measured("h2", "sft", "merge"), *H3}
H1 = {"h1/h1", "h1/probes/h2", *measured("h1"), *H2}

EDITS = {
    "nothing": ([], set()),
    "last step's distillation": (["h1.steps.h3.distill.steps=3"], H3),
    "middle step's distillation": (["h1.steps.h2.distill.steps=3"], H2),
    "first step's distillation": (["h1.steps.h1.distill.steps=3"], H1),
    "fine-tuning": (["h1.sft.train.steps=3"], {"h1/sft", "h1/merge", *measured("sft", "merge"), *RESULTS}),
    "merge weight": (["h1.merge.weight=0.25"], {"h1/merge", *measured("merge"), *RESULTS}),
    "append a step": (["h1.schedule=[1,2,3,4]"], {"h1/probes/h4", "h1/h4", *measured("h4"), *RESULTS}),
}


@pytest.fixture
def home(world, tmp_path):
    return shutil.copytree(world, tmp_path / "home")


@pytest.mark.parametrize("edit", EDITS)
def test_edit_announces_exactly_its_dependents(edit, world, tiny_recipe_file):
    overlays, expected = EDITS[edit]
    with open_workspace(str(tiny_recipe_file), world, overlays) as workspace:
        plan = workspace.plan()
    assert {row.asset for row in plan.rows} | set(plan.downstream) == expected


@pytest.mark.parametrize("edit", ["nothing", "last step's distillation"])
def test_edit_rebuilds_exactly_its_dependents(edit, home, tiny_recipe_file):
    overlays, expected = EDITS[edit]
    with open_workspace(str(tiny_recipe_file), home, overlays, write=True) as workspace:
        before, since = files_of(home), last_event(workspace.instance)
        ran = workspace.run()
        assert {row.asset for row in ran} == expected
        assert artifacts_written(home, before) == expected
        # What has no table of its own has at least its row in `builds`.
        assert rows_written(home, before, workspace.assets.values()) == expected
        assert sorted(materialized(workspace.instance, since)) == sorted(row.place for row in ran)
        before, since = files_of(home), last_event(workspace.instance)
        assert workspace.run() == []
        assert (files_of(home), materialized(workspace.instance, since)) == (before, [])


def test_chained_edits_and_their_reversal(home, tiny_recipe_file):
    """Each edit rebuilds what depends on it; going back builds nothing, and the rows are the old ones."""
    expected = {"h1/merge", *measured("merge"), *RESULTS}
    with open_workspace(str(tiny_recipe_file), home) as workspace:
        rows = {name: workspace.lake.read(name, "tiny") for name in ("evals", "leaderboard")}
    for weight in (0.25, 0.75):
        before = files_of(home)
        with open_workspace(
            str(tiny_recipe_file), home, [f"h1.merge.weight={weight}"], write=True
        ) as workspace:
            assert {row.asset for row in workspace.run()} == expected
            assert artifacts_written(home, before) == expected
    before = files_of(home)
    with open_workspace(str(tiny_recipe_file), home, write=True) as workspace:
        plan = workspace.plan()
        assert {row.asset: row.expected_from for row in plan.rows} == {"h1/merge": "stored"}
        assert plan.as_json()["downstream_totals"] == {"seconds": 0, "gpu_seconds": 0, "unknown": 0}
        assert {row.asset for row in workspace.run()} == expected
        assert artifacts_written(home, before) == set()
        assert workspace.plan().rows == ()
        for name, old in rows.items():
            assert workspace.lake.read(name, "tiny").sort_by("version").equals(old.sort_by("version"))


def test_plan_names_the_changed_key_and_the_time_it_took(home, tiny_recipe_file):
    with open_workspace(str(tiny_recipe_file), home, ["h1.merge.weight=0.25"]) as workspace:
        (row,) = workspace.plan().rows
    assert row.asset == "h1/merge"
    assert "merge.weight 0.5 -> 0.25" in row.reason
    assert row.seconds is not None
    assert row.seconds > 0


@pytest.mark.parametrize("harm", ["delete", "truncate", "flip", "flip a table"])
def test_damaged_artifact_is_rebuilt(harm, home, tiny_recipe_file):
    (weights,) = (home / "artifacts" / "h1" / "merge").glob("*/checkpoint/model.safetensors")
    (table,) = (home / "artifacts" / "h1" / "merge").glob("*/tables/checkpoints.parquet")
    if harm == "delete":
        shutil.rmtree(weights.parent.parent)
    elif harm == "truncate":
        weights.write_bytes(weights.read_bytes()[:-5])
    else:
        path = weights if harm == "flip" else table
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    before = files_of(home)
    with open_workspace(str(tiny_recipe_file), home, write=True) as workspace:
        (row,) = workspace.plan().rows
        assert (row.asset, "missing or damaged" in row.reason) == ("h1/merge", True)
        assert [row.asset for row in workspace.run()] == ["h1/merge"]
        assert artifacts_written(home, before) == {"h1/merge"}
        assert workspace.plan().rows == ()
