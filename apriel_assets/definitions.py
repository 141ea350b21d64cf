"""The only place where everything is joined: a recipe becomes assets, resources and jobs.

Dagster loads `defs` from here (workspace.yaml, dagster_cloud.yaml). The recipe is APRIEL_RECIPE, else the one that
was last run in the home, else `quickstart`; the home is APRIEL_HOME, else ./.apriel.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan, OnePartition
from apriel_assets.assets.evals import EvaluatedModel, eval_assets
from apriel_assets.assets.h1 import h1_assets, layer_scores_asset
from apriel_assets.assets.h2 import Upstream, h2_assets, placement_model
from apriel_assets.assets.materialize import to_dagster
from apriel_assets.assets.results import result_assets
from apriel_assets.assets.teacher import teacher_assets
from apriel_assets.errors import UserError
from apriel_assets.recipe import Recipe, load_recipe
from apriel_assets.recipe_checks import check_layers_named
from resources.home import Home, find_home, prepare_home


def plan_assets(recipe: Recipe) -> dict[str, AssetPlan]:
    """Return every asset of a recipe by key, upstream first.

    Raises:
        UserError: layers that the teacher does not have, a missing task file, or a released placement that is called
            like another model.
    """
    check_layers_named(recipe)
    teacher, traces, completions = teacher_assets(recipe)
    scores = layer_scores_asset(recipe, teacher, traces)
    h1 = h1_assets(recipe, teacher, traces, scores)
    upstream = Upstream(teacher=teacher, traces=traces, completions=completions, layer_scores=scores)
    h2 = h2_assets(recipe, upstream)
    models = _models(recipe, teacher, h1, h2)
    names = [model.name for model in models]
    if taken := [name for name in names if names.count(name) > 1]:
        raise UserError(f"release.names: {taken[0]!r} is the name of another model; choose another")
    evals = eval_assets(recipe, teacher, models)
    described = {model.chosen_by.asset.key if model.chosen_by else model.checkpoint.key for model in models}
    others = [asset for asset in (traces, completions, scores, *h1, *h2) if asset.key not in described]
    results = result_assets(recipe, models, evals, others)
    stages = (teacher, traces, completions, scores, *h1, *h2, *evals, *results)
    return {asset.key: asset for asset in stages}


def _models(
    recipe: Recipe, teacher: AssetPlan, h1: Sequence[AssetPlan], h2: Sequence[AssetPlan]
) -> list[EvaluatedModel]:
    """Return what is evaluated: teacher, every checkpoint of H1, every budget's placement, what is released."""
    models = [EvaluatedModel(name="teacher", checkpoint=teacher)]
    models += [
        EvaluatedModel(name=asset.key.removeprefix("h1/"), checkpoint=asset)
        for asset in h1
        if "/probes/" not in asset.key
    ]
    by_key = {asset.key: asset for asset in h2}
    if recipe.search is None:
        return models
    for budget in recipe.search.budget_keys:
        chosen = OnePartition(by_key["finalists"], budget)
        name = placement_model(budget)
        models.append(EvaluatedModel(name=name, checkpoint=by_key["supernet"], chosen_by=chosen))
    if "release/sft" in by_key:
        names = ("safe", *(recipe.release.name_of(budget) for budget in recipe.search.budgets))
        released = by_key["release/sft"]
        models += [EvaluatedModel(name=name, checkpoint=released, placement=name) for name in names]
    return models


def build_defs(recipe: Recipe, home: Path) -> dg.Definitions:
    """Return the Dagster definitions of a recipe in a home."""
    assets = [to_dagster(plan) for plan in plan_assets(recipe).values()]
    # In one process: each step would pay seconds to import torch again.
    return dg.Definitions(
        assets=assets, resources={"home": Home(path=str(home))}, executor=dg.in_process_executor
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of the recipe and home that the environment names."""
    home = find_home(None)
    prepare_home(home)
    last = home / "recipe.yaml"
    chosen = os.environ.get("APRIEL_RECIPE") or (str(last) if last.is_file() else "quickstart")
    return build_defs(load_recipe(chosen), home)
