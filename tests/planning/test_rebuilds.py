"""Each edit rebuilds exactly what depends on it: in the plan, and in what a run then does."""

import shutil

import pytest

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
def test_edit_rebuilds_exactly_its_dependents(edit, home, tiny_recipe_file):
    overlays, expected = EDITS[edit]
    with open_workspace(str(tiny_recipe_file), home, overlays, write=True) as workspace:
        plan = workspace.plan()
        before = set(home.glob("artifacts/**/provenance.json"))
        assert {row.asset for row in plan.rows} | set(plan.downstream) == expected
        ran = {row.asset for row in workspace.run()}
        assert ran == expected
        assert workspace.plan().rows == ()
        assert workspace.run() == []
    written = {
        path.relative_to(home / "artifacts").parts for path in home.glob("artifacts/**/provenance.json")
    }
    old = {path.relative_to(home / "artifacts").parts for path in before}
    assert {"/".join(parts[:-2]) for parts in written - old} == ran


def test_adding_an_eval_task_runs_that_task_alone(home, tiny_recipe_file):
    overlays = ["evals.tasks=[recall,arithmetic,copy]"]
    with open_workspace(str(tiny_recipe_file), home, overlays, write=True) as workspace:
        ran = workspace.run()
    evals = [row for row in ran if row.asset.startswith("evals/")]
    assert {row.partition for row in evals} == {"copy"}
    assert {row.asset for row in evals} == {
        f"evals/{m}"
        for m in ("teacher", "h1", "h2", "h3", "sft", "merge", "b50", "b90", "safe", "turbo-50", "turbo")
    }
    assert {row.asset for row in ran} - {row.asset for row in evals} == RESULTS


def test_reformatting_the_recipe_rebuilds_nothing(home, tiny_recipe_file, tmp_path):
    copy = tmp_path / "tiny.yaml"
    copy.write_text("# a comment\n\n" + tiny_recipe_file.read_text().replace("\n- ", "\n-   "))
    with open_workspace(str(copy), home) as workspace:
        assert workspace.plan().rows == ()


def test_undoing_an_edit_builds_nothing_again(home, tiny_recipe_file):
    for overlays in (["h1.merge.weight=0.25"], []):
        with open_workspace(str(tiny_recipe_file), home, overlays, write=True) as workspace:
            workspace.run()
        if overlays:
            built = set(home.glob("artifacts/**/provenance.json"))
    assert set(home.glob("artifacts/**/provenance.json")) == built


def test_plan_names_the_changed_key_and_the_time_it_took(home, tiny_recipe_file):
    with open_workspace(str(tiny_recipe_file), home, ["h1.merge.weight=0.25"]) as workspace:
        (row,) = workspace.plan().rows
    assert row.asset == "h1/merge"
    assert "merge.weight 0.5 -> 0.25" in row.reason
    assert row.seconds is not None
    assert row.seconds > 0


@pytest.mark.parametrize("harm", ["delete", "truncate"])
def test_damaged_artifact_is_rebuilt(harm, home, tiny_recipe_file):
    (weights,) = (home / "artifacts" / "h1" / "merge").glob("*/checkpoint/model.safetensors")
    if harm == "delete":
        shutil.rmtree(weights.parent.parent)
    else:
        weights.write_bytes(weights.read_bytes()[:-5])
    with open_workspace(str(tiny_recipe_file), home, write=True) as workspace:
        (row,) = workspace.plan().rows
        assert (row.asset, "missing or damaged" in row.reason) == ("h1/merge", True)
        assert [row.asset for row in workspace.run()] == ["h1/merge"]
        assert workspace.plan().rows == ()
    assert weights.stat().st_size > 0
