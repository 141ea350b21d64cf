"""Edits of the supernet procedure rebuild exactly what depends on them; a further budget scores nothing twice."""

import json
import shutil

import pytest
from written import artifacts_written, files_of, last_event, materialized, rows_written

from apriel_assets.workspace import open_workspace

RESULTS = {"leaderboard", "report"}


def measured(*names):
    return {f"{kind}/{name}" for kind in ("evals", "throughput") for name in names}


RELEASED = {"matryoshka", "release/sft", *measured("safe", "turbo-50", "turbo")}
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
    "release": (["release.sft.steps=3"], {"release/sft", *measured("safe", "turbo", "turbo-50")}, RESULTS),
    "a name": (
        ["release.names={90: fast}"],
        {"matryoshka", "release/sft", *measured("fast")},
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


@pytest.mark.parametrize("edit", ["beam width", "a mixer more"])
def test_edit_of_h2_runs_what_it_announced(edit, home, tiny_recipe_file):
    overlays, certain, possible = H2_EDITS[edit]
    announced = certain | possible
    with open_workspace(str(tiny_recipe_file), home, overlays, write=True) as workspace:
        before, since = files_of(home), last_event(workspace.instance)
        rows = workspace.run()
        ran = {row.asset for row in rows}
        assert certain <= ran <= announced
        # What turned out as before was recorded again, and not built: finalists may be the same after another search.
        assert certain <= artifacts_written(home, before) <= ran
        assert rows_written(home, before, workspace.assets.values()) <= ran
        assert sorted(materialized(workspace.instance, since)) == sorted(row.place for row in rows)
        assert workspace.plan().rows == ()


def test_a_further_budget_runs_its_own_partitions_and_what_joins_budgets(home, tiny_recipe_file):
    scores = set((home / "scores").glob("*/*.json"))
    overlays = ["search.budgets=[50.0,90.0,70.0]"]
    with open_workspace(str(tiny_recipe_file), home, overlays, write=True) as workspace:
        ran = workspace.run()
        assert workspace.plan().rows == ()
        candidates = workspace.lake.read("candidates", "tiny").to_pylist()
    own = {"allocations", "placements", "finalists"}
    assert {(row.asset, row.partition) for row in ran if row.asset in own} == {(a, "70") for a in own}
    assert {row.asset for row in ran} - own == {
        *measured("b70", "turbo-70", "safe", "turbo-50", "turbo"),
        "matryoshka",
        "release/sft",
        *RESULTS,
    }
    # What an earlier budget scored is not scored again: files of scores only hold new placements.
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
    assert ran == {"matryoshka", "release/sft", *measured("safe", "turbo"), *RESULTS}
    assert {row["budget"] for row in rows} == {90.0}
