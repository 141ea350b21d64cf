"""Whether a recipe's tasks have as many problems as its steps will ask for, found out before the first one runs."""

from collections.abc import Collection, Iterator

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.problems import make_problems
from apriel_assets.evaluation.tasks.specs import Split, TaskSpec
from apriel_assets.recipe import Recipe


def check_problem_numbers(recipe: Recipe, planned: Collection[str]) -> None:
    """Draw the held-out problems that planned assets will draw, some of them hours later.

    Training problems are left to `traces`, which is built first. Only procedural tasks are looked at: files and the
    hub's data may be where the steps run, and not here.

    Args:
        recipe: whose tasks.
        planned: keys of the assets that will run.

    Raises:
        UserError: a task with too few problems; says which keys of the recipe ask for how many.
    """
    for spec, split, number, keys in _asked(recipe, planned):
        if spec.name is None:
            continue
        try:
            make_problems(spec, split, number, recipe.seed)
        except UserError as error:
            raise UserError(f"{keys}: {error}") from error


def _asked(recipe: Recipe, planned: Collection[str]) -> Iterator[tuple[TaskSpec, Split, int, str]]:
    """Yield for each step how many different problems of a split it needs, and by which keys."""
    kinds = {key.partition("/")[0] for key in planned}
    if "evals" in kinds:
        for task in recipe.evals.tasks:
            yield task, "test", recipe.evals.accuracy.num_problems, "evals.accuracy.num_problems"
    if recipe.search is None or kinds.isdisjoint(("finalists", "audit")):
        return
    from apriel_assets.scoring.store import even_shares  # torch comes with it

    heldout = recipe.tasks.heldout
    stored = even_shares(recipe.store.problems, len(heldout))
    for kind, key, accuracy in (
        ("finalists", "search.accuracy", recipe.search.accuracy),
        ("audit", "search.audit.accuracy", recipe.search.audit.accuracy),
    ):
        if kind in kinds:
            # None that the search was made by: the store's are drawn from the same split, and left out.
            for task, share in zip(heldout, stored, strict=True):
                number = share + accuracy.num_problems
                yield task, "validation", number, f"store.problems and {key}.num_problems"
