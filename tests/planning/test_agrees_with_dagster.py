"""The plan and Dagster's own GraphQL agree on what is stale, for every asset and partition, after each edit."""

import pytest
from number_graph import number
from stale_statuses import stale_by_graphql
from test_h2_rebuilds import H2_EDITS
from test_rebuilds import EDITS

from apriel_assets.workspace import open_workspace

ALL_EDITS = {name: overlays for name, (overlays, *_) in {**EDITS, **H2_EDITS}.items()} | {
    "a further budget": ["search.budgets=[50.0,90.0,70.0]"],
    "a budget less": ["search.budgets=[90.0]"],
    "a further task": ["evals.tasks=[recall,arithmetic,copy]"],
    "a task instead of another": ["evals.tasks=[recall,copy]"],
}

# GraphQL takes seconds for one home, so edits of different sections are looked at together. Each is in one group.
GROUPS = (
    ("nothing",),
    ("last step's distillation", "merge weight", "a further task", "beam width", "release", "guard"),
    ("append a step", "fine-tuning", "a further budget", "costs", "supernet training"),
    (
        "middle step's distillation",
        "a task instead of another",
        "a budget less",
        "estimator",
        "audit",
        "reinforcement learning",
    ),
    ("first step's distillation", "store", "finalists", "search limits", "a mixer more", "a name"),
    ("options of one mixer",),
)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0])
def test_plan_agrees_after_edits(group, world, tiny_recipe_file):
    overlays = [overlay for edit in group for overlay in ALL_EDITS[edit]]
    with open_workspace(str(tiny_recipe_file), world, overlays) as workspace:
        planned = {row.place for row in workspace.plan().rows}
        assert planned == stale_by_graphql(workspace.defs, workspace.instance)


def test_every_edit_is_looked_at():
    assert sorted(edit for group in GROUPS for edit in group) == sorted(ALL_EDITS)


def test_plan_agrees_while_a_chain_of_edits_runs(bench):
    def graph(value, task="easy"):
        first = number("first", value=value)
        evals = number("evals", first, partitions=["easy", "hard", task], value=1)
        return first, evals, number("leaderboard", evals), number("report", number("leaderboard", evals))

    for value, task in [(1, "new"), (2, "newer"), (1, "new")]:
        assets = graph(value, task)
        plans = []

        def check(plan, assets=assets, plans=plans):
            stale = stale_by_graphql(bench.defs(assets), bench.instance)
            assert {row.place for row in plan.rows} == stale
            plans.append(plan)

        bench.run(*assets, on_plan=check)
        assert plans[-1].rows == ()


@pytest.mark.parametrize("left", ["evals", "leaderboard"])
def test_plan_agrees_where_a_run_stopped_half_way(bench, left):
    """Partitions recorded again with another version, or the same, after what reads them was built."""

    def graph(value):
        evals = number("evals", partitions=["easy", "hard"], value=value)
        return evals, number("leaderboard", evals), number("report", number("leaderboard", evals))

    bench.run(*graph(1))
    for value in (2, 1, 2):
        bench.run(*graph(value), selection={"evals", left})
        planned = {row.place for row in bench.plan(*graph(value)).rows}
        assert planned == stale_by_graphql(bench.defs(graph(value)), bench.instance)
