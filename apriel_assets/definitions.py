"""The only place where everything is joined: a recipe becomes assets, resources and jobs.

Dagster loads `defs` from here (workspace.yaml, dagster_cloud.yaml). The recipe is APRIEL_RECIPE, else the one that
was last run in the home, else `quickstart`; the home is APRIEL_HOME, else ./.apriel.
"""

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import dagster as dg

from apriel_assets.assets.ablation import ablation_asset
from apriel_assets.assets.asset_plan import AssetPlan, OnePartition
from apriel_assets.assets.dropped_checkpoints import DROPPED_CHECKPOINTS, dropped_checkpoints_asset
from apriel_assets.assets.evals import EvaluatedModel, eval_assets
from apriel_assets.assets.generations import GENERATIONS, generations_asset
from apriel_assets.assets.h1 import h1_assets, layer_scores_asset
from apriel_assets.assets.h2 import Upstream, h2_assets, placement_model
from apriel_assets.assets.lm_evals import lm_eval_assets
from apriel_assets.assets.materialize import to_dagster
from apriel_assets.assets.posttraining_builders import rl_model
from apriel_assets.assets.publishing import tidy_lake
from apriel_assets.assets.reevals import REEVALS, reeval_assets
from apriel_assets.assets.release import RL
from apriel_assets.assets.results import result_assets
from apriel_assets.assets.roofline import roofline_asset
from apriel_assets.assets.teacher import teacher_assets
from apriel_assets.assets.variants import twins
from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import SAFE
from apriel_assets.loaded_recipe import LoadedRecipe, load_for_code_location
from apriel_assets.planning.plan import make_plan
from apriel_assets.recipe import Recipe
from apriel_assets.recipe_checks import check_layers_named
from apriel_assets.recipe_lm_eval import check_lm_eval
from resources.artifact_store import ArtifactStore
from resources.dead_runs import close_dead_runs
from resources.home import Home, find_home, prepare_home, run_lock_holder
from resources.lake import Lake
from resources.launchers.execution import Execution
from sensors.checkpoints import checkpoints_sensor
from sensors.generation import generation_sensor
from sensors.recipe_watch import RecipeState, recipe_definitions
from sensors.reconcile import Reconciling, reconcile_sensor
from sensors.reevaluation import reevaluation_retries_sensor, reevaluation_schedule
from sensors.requests import Retries

logger = logging.getLogger(__name__)


def plan_assets(recipe: Recipe) -> dict[str, AssetPlan]:
    """Return every asset of a recipe by key, upstream first.

    Raises:
        UserError: layers that the teacher does not have, a missing task file, an unknown lm-eval task, or a released
            placement that is called like another model.
    """
    check_layers_named(recipe)
    check_lm_eval(recipe)
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
    roofline = roofline_asset(recipe, teacher)
    lm_evals = lm_eval_assets(recipe, teacher, models)
    results = result_assets(recipe, models, evals, [*others, roofline, *lm_evals])
    stages = (teacher, traces, completions, scores, *h1, *h2, roofline, *evals, *lm_evals, *results)
    return {asset.key: asset for asset in stages}


def variant_assets(recipe: Recipe, base: Mapping[str, AssetPlan]) -> dict[str, AssetPlan]:
    """Return what the recipe's variants do not share with it, by key, upstream first.

    Args:
        recipe: with variants, or none.
        base: its own assets.

    Raises:
        UserError: a variant that changes nothing that is built, or whose name is that of assets; as `plan_assets`.
    """
    found: dict[str, AssetPlan] = {}
    for name in recipe.variants:
        found |= _variant(recipe, name, base)
    return found


def _variant(recipe: Recipe, name: str, base: Mapping[str, AssetPlan]) -> dict[str, AssetPlan]:
    if name in {part for key, own in base.items() for part in (key.split("/")[0], own.group)}:
        raise UserError(f"variants.{name}: assets of the recipe are called so; choose another name")
    other = recipe.of_variant(name)
    try:
        assets = plan_assets(other)
    except UserError as error:
        raise UserError(f"variants.{name}: {error}") from error
    found = twins(name, assets, base)
    if not found:
        raise UserError(f"variants.{name} changes nothing that is built; leave it out")
    h1 = [own for own in assets.values() if own.group == "h1"]
    models = _models(other, assets["teacher"], h1, list(assets.values()))
    ablation = ablation_asset(name, models, found, base)
    return found | ({} if ablation is None else {ablation.key: ablation})


def without_unfit_variants(recipe: Recipe, base: Mapping[str, AssetPlan]) -> Recipe:
    """Return a recipe that was changed on the command line without the variants that do not go with the change."""
    unfit = []
    for name in recipe.variants:
        try:
            _variant(recipe, name, base)
        except UserError as error:
            logger.warning("apriel: left out: %s", error)
            unfit.append(name)
    kept = {name: overlay for name, overlay in recipe.variants.items() if name not in unfit}
    return recipe.model_copy(update={"variants": kept})


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
    names = (SAFE, *(recipe.release.name_of(budget) for budget in recipe.search.budgets))
    if "release/sft" in by_key:
        released = by_key["release/sft"]
        models += [EvaluatedModel(name=name, checkpoint=released, placement=name) for name in names]
    if RL in by_key:
        models += [
            EvaluatedModel(name=rl_model(name), checkpoint=by_key[RL], placement=name) for name in names
        ]
    return models


def build_defs(recipe: Recipe, home: Path, plans: Mapping[str, AssetPlan] | None = None) -> dg.Definitions:
    """Return the Dagster definitions of a recipe in a home: what `apriel run` keeps up to date.

    Args:
        recipe: makes the assets.
        home: where they are kept.
        plans: the recipe's assets by key, if they were made already.
    """
    plans = _with_variants(recipe, plan_assets(recipe)) if plans is None else plans
    own = {key: plan for key, plan in plans.items() if plan.variant is None}
    named = (*plans.values(), *automation_assets(recipe, own).values())
    recipe.execution.check_patterns({plan.name: plan.group for plan in named})
    assets = [_to_dagster(recipe, plan) for plan in plans.values()]
    # In one process: each step would pay seconds to import torch again.
    return dg.Definitions(
        assets=assets,
        resources={
            "home": Home(path=str(home)),
            "execution": Execution(recipe.execution, recipe.model_dump(mode="json")),
        },
        executor=dg.in_process_executor,
    )


def _to_dagster(recipe: Recipe, plan: AssetPlan) -> dg.AssetsDefinition:
    return to_dagster(plan, recipe.owners, recipe.execution.pool_of(plan.name, plan.group))


def _with_variants(recipe: Recipe, assets: Mapping[str, AssetPlan]) -> dict[str, AssetPlan]:
    return {**assets, **variant_assets(recipe, assets)}


def automation_assets(recipe: Recipe, assets: Mapping[str, AssetPlan]) -> dict[str, AssetPlan]:
    """Return what sensors and schedules ask for beside the recipe's own assets, by key; no plan contains it."""
    h1 = [own for own in assets.values() if own.group == "h1"]
    models = _models(recipe, assets["teacher"], h1, list(assets.values()))
    found = [
        dropped_checkpoints_asset(recipe, assets),
        *reeval_assets(recipe, models),
        generations_asset(recipe, assets),
    ]
    return {own.key: own for own in found if own is not None}


def all_assets(recipe: Recipe) -> dict[str, AssetPlan]:
    """Return the recipe's assets, its variants', and those of automation, by key."""
    assets = plan_assets(recipe)
    return {**_with_variants(recipe, assets), **automation_assets(recipe, assets)}


def code_location(loaded: LoadedRecipe, home: Path) -> dg.Definitions:
    """Return what the UI and the daemon see: the recipe's assets, what automation adds, sensors and schedules.

    Raises:
        UserError: what the recipe asks for cannot be had.
    """
    recipe, assets = loaded.recipe, loaded.assets
    added = automation_assets(recipe, assets)
    shown = _with_variants(recipe, assets)
    planned = build_defs(recipe, home, shown)

    def problem() -> str | None:
        return loaded.problem_now(plan_assets, lambda now: code_location(now, home))

    def not_now(instance: dg.DagsterInstance) -> str | None:
        holder = run_lock_holder(home)
        return problem() or (f"`apriel run` ({holder}) works on {home}" if holder else None)

    reconcile = Reconciling(
        assets=assets,
        plan=lambda instance: make_plan(assets, planned, instance, ArtifactStore(home)),
        not_now=not_now,
        tidy=lambda plan: tidy_lake(Lake(home), recipe.name, shown, plan.settled),
    )
    joined = dg.Definitions(
        assets=[_to_dagster(recipe, plan) for plan in added.values()],
        sensors=[reconcile_sensor(reconcile, recipe.automation), *_sensors(recipe, assets, added, home)],
        schedules=_schedules(recipe, added),
    )
    # Dagster is pinned, so its note that this may still change says nothing to a user.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        merged = dg.Definitions.merge(planned, joined, _watch(loaded, home, problem))
        found = merged.with_reconstruction_metadata(loaded.pinned())
    found.get_repository_def()  # else what Dagster refuses would come out only after this was taken for good
    return found


def _watch(loaded: LoadedRecipe, home: Path, problem: Callable[[], str | None]) -> dg.Definitions:
    return recipe_definitions(
        lambda: RecipeState(source=loaded.source, problem=problem()),
        RecipeState(source=loaded.source, problem=loaded.problem),
        loaded.content,
        lambda instance, server: close_dead_runs(instance, home, time.time(), server),
    )


def _sensors(
    recipe: Recipe, assets: Mapping[str, AssetPlan], added: Mapping[str, AssetPlan], home: Path
) -> list[dg.SensorDefinition]:
    settings = recipe.automation
    retries = Retries(settings.retries, settings.retry_wait_s)
    found = []
    if settings.watch is not None:
        taken = [key.removeprefix("evals/") for key in assets if key.startswith("evals/")]
        found.append(checkpoints_sensor(added[DROPPED_CHECKPOINTS], settings.watch, retries, taken))
    if settings.generation is not None:
        store = ArtifactStore(home)
        found.append(generation_sensor(added[GENERATIONS], assets, store, settings.generation, retries))
    if again := _reevaluated(added):
        found.append(reevaluation_retries_sensor(again, retries, settings.interval_s))
    return found


def _schedules(recipe: Recipe, added: Mapping[str, AssetPlan]) -> list[dg.ScheduleDefinition]:
    again = _reevaluated(added)
    return [] if recipe.evals.cron is None else [reevaluation_schedule(again, recipe.evals.cron)]


def _reevaluated(added: Mapping[str, AssetPlan]) -> list[AssetPlan]:
    return [own for key, own in added.items() if key.startswith(REEVALS)]


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of the recipe and home that the environment names."""
    home = find_home(None)
    prepare_home(home)
    return load_for_code_location(home, plan_assets, lambda loaded: code_location(loaded, home))
