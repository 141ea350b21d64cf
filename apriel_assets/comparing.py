"""`apriel compare`: from the names that a user gives to the problems that both sides answered.

Here: which rows are meant. Not here: the statistics (`evaluation.comparison`, `evaluation.ranking`).
"""

import difflib
from dataclasses import dataclass

import pyarrow as pa

from apriel_assets.errors import UserError
from apriel_assets.evaluation.comparison import ComparisonRow, compare, num_unpaired
from apriel_assets.evaluation.ranking import Place, accuracy_places
from resources.lake import Lake


@dataclass(frozen=True)
class Run:
    """One model of one recipe."""

    recipe: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides, their rows, and how many answers have no partner."""

    a: str
    b: str
    rows: list[ComparisonRow]
    num_unpaired: int


def compare_models(lake: Lake, a: str, b: str) -> Comparison:
    """Compare two models on the problems that both answered.

    Args:
        lake: of the home.
        a: `model`, or `recipe:model` where several recipes have it; several runs (other seeds) with commas between.
        b: likewise, as many runs as `a`, or one for all of them.

    Raises:
        UserError: an unknown model, one that several recipes have, another number of runs, no common problem.
    """
    first, second = _runs(lake, a), _runs(lake, b)
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise UserError(f"{a} is {len(first)} runs and {b} is {len(second)}; give as many, or one for all")
    count = max(len(first), len(second))
    pairs = [
        (samples_of(lake, own.recipe, own.model), samples_of(lake, other.recipe, other.model))
        for own, other in zip(first * (count // len(first)), second * (count // len(second)), strict=True)
    ]
    return Comparison(a=a, b=b, rows=compare(pairs), num_unpaired=num_unpaired(pairs))


def ranked_places(lake: Lake, recipe: str | None) -> dict[str, Place]:
    """Return the places of all models of a recipe as it is, best first.

    Args:
        lake: of the home.
        recipe: its name; None: the only one that there is.

    Raises:
        UserError: an unknown recipe, several to choose from, or fewer than two models answered the same problems.
    """
    known = sorted({run.recipe for run in _known(lake)})
    if recipe is None and len(known) > 1:
        raise UserError(f"the home has evals of {', '.join(known)}; say which to rank: --recipe {known[0]}")
    recipe = recipe or known[0]
    if recipe not in known:
        raise UserError(f"no evals of recipe {recipe!r}; the home has {', '.join(known)}")
    rows = lake.arrow(
        "SELECT model, task, problem_id, correct FROM eval_samples WHERE recipe = $recipe AND variant IS NULL",
        {"recipe": recipe},
    )
    if not (places := accuracy_places(rows)):
        raise UserError(
            f"fewer than two models of recipe {recipe!r} answered the same problems; run its evals"
        )
    return dict(sorted(places.items(), key=lambda item: (item[1].best, item[1].worst)))


def _runs(lake: Lake, given: str) -> list[Run]:
    known = _known(lake)
    return [_run(known, name.strip()) for name in given.split(",")]


def _run(known: list[Run], name: str) -> Run:
    recipe, _, model = name.rpartition(":")
    found = [run for run in known if run.model == model and recipe in ("", run.recipe)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{len(found)} recipes have {model}; say which: {', '.join(f'{r.recipe}:{r.model}' for r in found)}"
        )
    names = sorted({run.model for run in known} | {f"{run.recipe}:{run.model}" for run in known if recipe})
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:12]
    raise UserError(f"no evals of model {name!r}; nearest: {', '.join(near)}")


def _known(lake: Lake) -> list[Run]:
    _, rows = lake.query("SELECT DISTINCT recipe, model FROM eval_samples ORDER BY ALL")
    if not rows:
        raise UserError(
            f"no per-problem eval results in {lake.home}; run `apriel run --home {lake.home}`, which evaluates again "
            "what was evaluated before they were kept"
        )
    return [Run(*row) for row in rows]


def samples_of(lake: Lake, recipe: str, model: str) -> pa.Table:
    """Return a model's answers, without their texts; no rows if it has none."""
    return lake.arrow(
        "SELECT * EXCLUDE (completion) FROM eval_samples WHERE recipe = $recipe AND model = $model",
        {"recipe": recipe, "model": model},
    )
