"""The assets of the supernet procedure (H2): what is made from what, and which recipe keys each reads."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.checks import (
    ALL_FA_CHECK,
    CHECKPOINT_CHECK,
    COST_CHECK,
    ESS_CHECK,
    LOSS_FINITE_CHECK,
    PROBES_FALL_CHECK,
    audit_check,
)
from apriel_assets.assets.h2_builders import (
    build_allocations,
    build_audit,
    build_cost_check,
    build_cost_model,
    build_finalists,
    build_mixer_costs,
    build_placements,
)
from apriel_assets.assets.release import release_assets
from apriel_assets.assets.release_builders import build_supernet
from apriel_assets.assets.sketches import (
    sketch_audit,
    sketch_cost_model,
    sketch_finalists,
    sketch_placements,
    sketch_supernet,
)
from apriel_assets.recipe import Recipe
from apriel_assets.recipe_sections import AuditConfig, SearchSection, SupernetSection, budget_key
from apriel_assets.search.config import MEASURED, CostsConfig


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """What H2 is made from."""

    teacher: AssetPlan
    traces: AssetPlan
    completions: AssetPlan
    layer_scores: AssetPlan


def h2_assets(recipe: Recipe, upstream: Upstream) -> list[AssetPlan]:
    """Return the assets of this stage, upstream first; none if the recipe has no supernet."""
    if recipe.supernet is None:
        return []
    supernet = _supernet(recipe, recipe.supernet, upstream)
    if recipe.search is None:
        return [supernet]
    costs, cost_model = _costs(recipe, recipe.supernet, upstream.teacher)
    check = []
    if recipe.costs.table == MEASURED and recipe.costs.check_placements:
        check = [_cost_check(recipe, supernet, costs)]
    found = _search(recipe, recipe.supernet, recipe.search, upstream, supernet, cost_model)
    return [
        supernet,
        *costs,
        cost_model,
        *check,
        *found,
        *release_assets(recipe, upstream.teacher, upstream.traces, supernet, found[2]),
    ]


def _supernet(recipe: Recipe, section: SupernetSection, upstream: Upstream) -> AssetPlan:
    return AssetPlan(
        key="supernet",
        group="supernet",
        build=build_supernet,
        reads={
            **_held(section),
            "options": {
                mixer: getattr(recipe.mixers, mixer) for mixer in section.all_mixers if mixer != "fa"
            },
            "init": section.init,
            "train": section.train,
            "seed": recipe.seed,
        },
        inputs=(upstream.teacher, upstream.traces),
        kinds=("pytorch", "safetensors"),
        recipe=recipe.name,
        tables=("supernet_curves", "training", "checkpoints"),
        sketch=sketch_supernet,
        checks=(
            # What trains the attention too is no longer the teacher, and does not claim to be.
            *((ALL_FA_CHECK,) if section.train.trains == "mixers" else ()),
            LOSS_FINITE_CHECK,
            PROBES_FALL_CHECK,
            CHECKPOINT_CHECK,
        ),
    )


def _held(section: SupernetSection) -> dict:
    return {"mixers": section.mixers, "layers": section.layers}


def _costs(recipe: Recipe, section: SupernetSection, teacher: AssetPlan) -> tuple[list[AssetPlan], AssetPlan]:
    measured = []
    if recipe.costs.table == MEASURED:
        measured = [
            AssetPlan(
                key=f"costs/{mixer}",
                group="search",
                revision="2",
                build=build_mixer_costs,
                reads={
                    "mixer": mixer,
                    "options": getattr(recipe.mixers, mixer),
                    "costs": _measurement(recipe.costs),
                    "seed": recipe.seed,
                },
                inputs=(teacher,),
                kinds=("pytorch", "parquet"),
                recipe=recipe.name,
                tables=("mixer_costs",),
            )
            for mixer in section.all_mixers
            if mixer != "fa"
        ]
    model = AssetPlan(
        key="cost_model",
        group="search",
        build=build_cost_model,
        reads={
            "costs": CostsConfig(
                table=recipe.costs.table, given=recipe.costs.given, overheads=recipe.costs.overheads
            ),
            "mixers": section.all_mixers,
        },
        inputs=tuple(measured),
        kinds=("json",),
        recipe=recipe.name,
        sketch=sketch_cost_model,
    )
    return measured, model


def _measurement(costs: CostsConfig) -> CostsConfig:
    """Return what timings depend on, without what is made of them."""
    plain = CostsConfig()
    return replace(costs, table=MEASURED, given={}, overheads={}, check_placements=plain.check_placements)


def _cost_check(recipe: Recipe, supernet: AssetPlan, costs: list[AssetPlan]) -> AssetPlan:
    return AssetPlan(
        key="cost_check",
        group="search",
        revision="2",
        build=build_cost_check,
        reads={
            "costs": _measurement(recipe.costs),
            "num_placements": recipe.costs.check_placements,
            "seed": recipe.seed,
        },
        inputs=(supernet, *costs),
        kinds=("pytorch", "parquet"),
        recipe=recipe.name,
        tables=("cost_check",),
        checks=(COST_CHECK,),
    )


def _search(
    recipe: Recipe,
    section: SupernetSection,
    search: SearchSection,
    upstream: Upstream,
    supernet: AssetPlan,
    cost_model: AssetPlan,
) -> list[AssetPlan]:
    """Return allocations, placements, finalists (a partition per budget) and the audit."""
    budgets: dict[str | None, dict[str, Any]] = {
        budget_key(budget): {"budget": budget} for budget in search.budgets
    }
    scored = (supernet, upstream.teacher, upstream.completions, upstream.layer_scores)
    allocations = AssetPlan(
        key="allocations",
        build=build_allocations,
        reads={**_held(section), "allocations": search.allocations},
        by_partition=budgets,
        inputs=(upstream.teacher, cost_model),
        kinds=("parquet",),
        partitions=search.budget_keys,
        group="search",
        recipe=recipe.name,
        tables=("allocations",),
    )
    placements = AssetPlan(
        key="placements",
        build=build_placements,
        reads={
            "search": search.strategy_config,
            "allocations": search.allocations,
            "estimator": search.estimator,
            "seed": recipe.seed,
        },
        by_partition=budgets,
        inputs=(*scored, cost_model, allocations),
        kinds=("pytorch", "parquet"),
        partitions=search.budget_keys,
        group="search",
        recipe=recipe.name,
        tables=("candidates", "search_curve"),
        sketch=sketch_placements,
        checks=(ESS_CHECK,),
    )
    finalists = _finalists(
        recipe, search, (supernet, upstream.teacher, upstream.completions, placements), budgets
    )
    return [allocations, placements, finalists, _audit(recipe, search, scored)]


def _finalists(
    recipe: Recipe,
    search: SearchSection,
    inputs: tuple[AssetPlan, ...],
    budgets: Mapping[str | None, Mapping[str, Any]],
) -> AssetPlan:
    return AssetPlan(
        key="finalists",
        build=build_finalists,
        reads={
            "num": search.finalists,
            "accuracy": search.accuracy,
            "heldout": recipe.tasks.heldout,
            "strategy": search.strategy,
            "seed": recipe.seed,
        },
        by_partition={key: {**own, "name": placement_model(str(key))} for key, own in budgets.items()},
        inputs=inputs,
        kinds=("pytorch", "parquet"),
        partitions=search.budget_keys,
        group="search",
        recipe=recipe.name,
        tables=("placements", "checkpoints"),
        sketch=sketch_finalists,
    )


def _audit(recipe: Recipe, search: SearchSection, inputs: tuple[AssetPlan, ...]) -> AssetPlan:
    return AssetPlan(
        key="audit",
        build=build_audit,
        reads={
            "audit": replace(search.audit, least_spearman=AuditConfig().least_spearman),
            "estimator": search.estimator,
            "heldout": recipe.tasks.heldout,
            "seed": recipe.seed,
        },
        inputs=inputs,
        kinds=("pytorch", "parquet"),
        checks=(audit_check(search.audit.least_spearman),),
        group="search",
        recipe=recipe.name,
        tables=("audit", "audit_points", "candidates"),
        sketch=sketch_audit,
    )


def placement_model(budget: str) -> str:
    """Return what a budget's chosen placement is called in tables before release: b0.6."""
    return f"b{budget}"
