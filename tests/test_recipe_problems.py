"""Tasks with too few problems are refused before the first step, and only if a planned step asks for them."""

import pytest

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.problems import make_problems
from apriel_assets.recipe import load_recipe, shipped_recipes
from apriel_assets.recipe_problems import check_problem_numbers
from apriel_assets.workspace import open_workspace

# 1,800 additions: about 90 of them for validation, as many for tests.
FEW = ["tasks.heldout=[addition]", "evals.tasks=[addition]", "store.problems=40"]
EVERYTHING = {"traces", "evals/h6", "finalists", "audit"}


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_have_the_problems_they_ask_for(name):
    recipe = load_recipe(name)
    check_problem_numbers(recipe, EVERYTHING)
    share = -(-recipe.tasks.num_traces // len(recipe.tasks.train))
    for task in (own for own in recipe.tasks.train if own.name is not None):
        assert len(make_problems(task, "train", share, recipe.seed)) == share


@pytest.mark.parametrize(
    ("overlay", "planned", "words"),
    [
        ("evals.accuracy.num_problems=1500", "evals/h6", "evals.accuracy.num_problems: task addition has"),
        ("search.accuracy.num_problems=300", "finalists", "store.problems and search.accuracy.num_problems"),
        ("search.audit.accuracy.num_problems=300", "audit", "search.audit.accuracy.num_problems: task"),
    ],
)
def test_what_a_step_cannot_get_is_refused_by_its_keys(overlay, planned, words):
    recipe = load_recipe("quickstart", [*FEW, overlay])
    with pytest.raises(UserError, match=words) as error:
        check_problem_numbers(recipe, {planned})
    assert "\n" not in str(error.value)
    check_problem_numbers(recipe, EVERYTHING - {planned})


def test_the_stores_problems_count():
    """They are left out of what finalists and the audit answer, so both are needed at once."""
    few = load_recipe("quickstart", [*FEW, "search.accuracy.num_problems=100"])
    check_problem_numbers(few, {"finalists"})
    many = load_recipe("quickstart", [*FEW, "search.accuracy.num_problems=100", "store.problems=160"])
    with pytest.raises(UserError, match=r"store\.problems"):
        check_problem_numbers(many, {"finalists"})


def test_a_run_stops_before_its_first_step(tmp_path):
    overlays = ["tasks.heldout=[addition]", "store.problems=40", "search.accuracy.num_problems=300"]
    opened = open_workspace("quickstart", tmp_path, overlays, write=True)
    with opened as workspace, pytest.raises(UserError, match=r"search\.accuracy\.num_problems"):
        workspace.run()
    assert not list((tmp_path / "artifacts").rglob("provenance.json"))
