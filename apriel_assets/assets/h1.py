"""The assets of progressive conversion (H1): what is made from what, and which recipe keys each reads."""

from collections.abc import Sequence

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.checks import CHECKPOINT_CHECK, TRAINING_CHECKS
from apriel_assets.assets.h1_builders import (
    build_checkpoint,
    build_layer_scores,
    build_merge,
    build_probes,
    build_sft,
)
from apriel_assets.assets.sketches import sketch_merge, sketch_ranking, sketch_training
from apriel_assets.recipe import Recipe
from apriel_assets.recipe_sections import H1Section
from apriel_assets.scoring.config import LooConfig


def layer_scores_asset(recipe: Recipe, teacher: AssetPlan, traces: AssetPlan) -> AssetPlan:
    """Return the ranking of the teacher's layers, which H1 follows and searches start from."""
    return AssetPlan(
        key="layer_scores",
        group="teacher",
        build=build_layer_scores,
        reads={"loo": recipe.h1.loo if recipe.h1 else LooConfig(), "heldout": recipe.tasks.heldout},
        inputs=(teacher, traces),
        kinds=("pytorch", "parquet"),
        recipe=recipe.name,
        tables=("layer_scores",),
        sketch=sketch_ranking,
    )


def h1_assets(recipe: Recipe, teacher: AssetPlan, traces: AssetPlan, scores: AssetPlan) -> list[AssetPlan]:
    """Return the assets of this stage, upstream first; the checkpoints are those with keys `h1/<name>`."""
    h1 = recipe.h1
    if h1 is None:
        return []
    assets, previous = [], teacher
    for position, k in enumerate(h1.schedule):
        ranking = scores
        if position and h1.order == "mmr":
            ranking = _probes(h1, recipe, k, (teacher, traces), previous)
            assets.append(ranking)
        previous = _checkpoint(h1, recipe, k, (teacher, traces), previous, ranking)
        assets.append(previous)
    return assets + _tuned(h1, recipe, assets, teacher, traces)


def _probes(
    h1: H1Section, recipe: Recipe, k: int, common: tuple[AssetPlan, ...], previous: AssetPlan
) -> AssetPlan:
    return AssetPlan(
        key=f"h1/probes/h{k}",
        group="h1",
        build=build_probes,
        reads={
            "mixer": h1.mixer,
            "init": h1.init,
            "options": getattr(recipe.mixers, h1.mixer),
            "probe": h1.probe,
            "steps": h1.probe_steps_of(k),
            "step": f"h{k}",
            "previous": previous.key,
            "keep": h1.keep_attention,
            "seed": recipe.seed,
        },
        inputs=_unique(*common, previous),
        kinds=("pytorch", "parquet"),
        recipe=recipe.name,
        tables=("probes",),
        sketch=sketch_ranking,
    )


def _checkpoint(
    h1: H1Section,
    recipe: Recipe,
    k: int,
    common: tuple[AssetPlan, ...],
    previous: AssetPlan,
    ranking: AssetPlan,
) -> AssetPlan:
    given = isinstance(h1.order, tuple)
    return AssetPlan(
        key=f"h1/h{k}",
        group="h1",
        build=build_checkpoint,
        reads={
            "k": k,
            "mixer": h1.mixer,
            "init": h1.init,
            # Either takes the easiest of a ranking, which is read: where it is the same one, so is the checkpoint.
            "order": "mmr" if h1.order == "loo" else h1.order,
            "keep": h1.keep_attention,
            "options": getattr(recipe.mixers, h1.mixer),
            "distill": h1.distill_of(k),
            "previous": previous.key,
            "ranking": None if given else ranking.key,
            "seed": recipe.seed,
        },
        inputs=_unique(*common, previous, *(() if given else (ranking,))),
        kinds=("pytorch", "safetensors"),
        recipe=recipe.name,
        tables=("training", "checkpoints"),
        sketch=sketch_training,
        checks=TRAINING_CHECKS,
    )


def _tuned(
    h1: H1Section, recipe: Recipe, assets: Sequence[AssetPlan], teacher: AssetPlan, traces: AssetPlan
) -> list[AssetPlan]:
    if h1.sft is None:
        return []
    base = next(asset for asset in assets if asset.key == f"h1/h{h1.sft.step}")
    sft = AssetPlan(
        key="h1/sft",
        group="h1",
        build=build_sft,
        reads={"train": h1.sft.train, "parent": base.key, "seed": recipe.seed},
        inputs=(teacher, traces, base),
        kinds=("pytorch", "safetensors"),
        recipe=recipe.name,
        tables=("training", "checkpoints"),
        sketch=sketch_training,
        checks=TRAINING_CHECKS,
    )
    if h1.merge is None:
        return [sft]
    merge = AssetPlan(
        key="h1/merge",
        group="h1",
        build=build_merge,
        reads={"merge": h1.merge, "parent": base.key},
        inputs=(base, sft),
        kinds=("pytorch", "safetensors"),
        recipe=recipe.name,
        tables=("checkpoints",),
        sketch=sketch_merge,
        checks=(CHECKPOINT_CHECK,),
    )
    return [sft, merge]


def _unique(*assets: AssetPlan) -> tuple[AssetPlan, ...]:
    return tuple({asset.key: asset for asset in assets}.values())
