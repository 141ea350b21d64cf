"""Edits of the supernet procedure rebuild exactly what depends on them; a further budget scores nothing twice."""

import json
import shutil

import pytest
from stale_statuses import stale_by_graphql

from apriel_assets.workspace import open_workspace

RESULTS = {"leaderboard", "report"}


def measured(*names):
    return {f"{kind}/{name}" for kind in ("evals", "throughput") for name in names}


RELEASED = {
    "matryoshka",
    "release/sft",
    "release/guard/sft",
    "release/export",
    *measured("safe", "turbo-50", "turbo"),
}
FOUND = {"finalists", *measured("b50", "b90"), *RELEASED, *RESULTS}
SEARCHED = {"placements", *FOUND}
COSTED = {"cost_model", "allocations", *SEARCHED}

# Edits after which something downstream may turn out as it was: what must run, and what may follow.
H2_EDITS = {
    "store": (["store.samples=3"], {"completions", "placements", "audit"}, FOUND),
    "beam width": (["search.beam=3"], {"placements"}, FOUND),
    "estimator": (["search.estimator=log_q"], {"placements", "audit"}, FOUND),
    "finalists": (["search.finalists=1"], {"placements", "finalists"}, FOUND),
    "audit": (["search.audit.placements=3"], {"audit", "report"}, set()),
    "search limits": (["search.allocations={maximum: {fa: 1}}"], {"allocations", "placements"}, FOUND),
    "costs": (
        ["costs.repeats=2"],
        {"costs/swa", "costs/gdn", "costs/kda", "cost_model", "cost_check"},
        COSTED,
    ),
    "a mixer more": (
        ["supernet.mixers=[fa,swa,gdn,kda,mamba]"],
        {"supernet", "costs/mamba", "cost_model", "cost_check", "placements", "audit"},
        COSTED,
    ),
    "options of one mixer": (
        ["mixers.gdn.conv_size=3"],
        {"supernet", "costs/gdn", "cost_check", "placements", "audit"},
        COSTED,
    ),
    "supernet training": (
        ["supernet.train.steps=3"],
        {"supernet", "placements", "audit"},
        {*SEARCHED, "cost_check"},
    ),
    "release": (
        ["release.sft.steps=3"],
        {"release/sft", "release/guard/sft", "release/export", *measured("safe", "turbo", "turbo-50")},
        RESULTS,
    ),
    "guard": (["release.guard.num_problems=3"], {"release/guard/sft", "report"}, {"release/export"}),
    "reinforcement learning": (
        ["release.rl={steps: 2}"],
        {"release/rl", "release/guard/rl", "release/export", *measured("safe-rl", "turbo-rl", "turbo-50-rl")},
        RESULTS,
    ),
    "a name": (
        ["release.names={90: fast}"],
        {"matryoshka", "release/sft", "release/guard/sft", "release/export", *measured("fast")},
        {*measured("safe", "turbo-50"), *RESULTS},
    ),
}


@pytest.fixture
def home(world, tmp_path):
    return shutil.copytree(world, tmp_path / "home")


@pytest.mark.parametrize("edit", H2_EDITS)
def test_edit_of_h2_announces_what_depends_on_it_and_nothing_else(edit, world, tiny_recipe_file):
    overlays, certain, possible = H2_EDITS[edit]
    with open_workspace(str(tiny_recipe_file), world, overlays) as workspace:
        plan = workspace.plan()
    assert {row.asset for row in plan.rows} | set(plan.downstream) == certain | possible


def test_a_further_budget_scores_nothing_again_and_the_plan_agrees_at_each_frontier(home, tiny_recipe_file):
    """What is half done counts too: a budget's partition is there before what joins budgets was built again."""
    scores = set((home / "scores").glob("*/*.json"))
    overlays = ["search.budgets=[50.0,90.0,70.0]"]
    sizes = []
    with open_workspace(str(tiny_recipe_file), home, overlays, write=True) as workspace:

        def compare(plan):
            assert {row.place for row in plan.rows} == stale_by_graphql(workspace.defs, workspace.instance)
            sizes.append(len(plan.rows))

        workspace.run(on_plan=compare)
        candidates = workspace.lake.read("candidates", "tiny").to_pylist()
    assert len(sizes) > 3
    assert sizes[-1] == 0
    assert {row["budget"] for row in candidates} == {50.0, 70.0, 90.0, None}
    seen: set[str] = set()
    for path in sorted((home / "scores").glob("*/*.json")):
        placements = {json.dumps(entry["placement"]) for entry in json.loads(path.read_text())["scores"]}
        assert not placements & seen
        seen |= placements
    assert set((home / "scores").glob("*/*.json")) >= scores


def test_dropping_a_budget_leaves_the_others(home, tiny_recipe_file):
    with open_workspace(str(tiny_recipe_file), home, ["search.budgets=[90.0]"], write=True) as workspace:
        ran = {row.asset for row in workspace.run()}
        rows = workspace.lake.read("placements", "tiny").to_pylist()
    released = {"matryoshka", "release/sft", "release/guard/sft", "release/export"}
    assert ran == {*released, *measured("safe", "turbo"), *RESULTS}
    assert {row["budget"] for row in rows} == {90.0}
