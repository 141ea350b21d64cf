"""The only place where everything is joined: a recipe becomes assets, resources and jobs.

Dagster loads `defs` from here (workspace.yaml, dagster_cloud.yaml). The recipe is APRIEL_RECIPE, else the one that
was last run in the home, else `quickstart`; the home is APRIEL_HOME, else ./.apriel.
"""

import os
from pathlib import Path

import dagster as dg

from apriel_assets.assets.artifact_asset import AssetPlan, to_dagster
from apriel_assets.assets.evals import eval_assets
from apriel_assets.assets.h1 import h1_assets
from apriel_assets.assets.results import result_assets
from apriel_assets.assets.teacher import teacher_assets
from apriel_assets.recipe import Recipe, load_recipe
from resources.home import Home, find_home, prepare_home


def plan_assets(recipe: Recipe) -> dict[str, AssetPlan]:
    """Return every asset of a recipe by key, upstream first."""
    teacher, traces, completions = teacher_assets(recipe)
    h1 = h1_assets(recipe, teacher, traces)
    checkpoints = [asset for asset in h1 if asset.key.startswith("h1/") and "/probes/" not in asset.key]
    models = [teacher, *checkpoints]
    evals = eval_assets(recipe, teacher, models)
    others = [asset for asset in (completions, *h1) if asset not in models]
    results = result_assets(recipe, models, evals, others)
    return {asset.key: asset for asset in [teacher, traces, completions, *h1, *evals, *results]}


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
