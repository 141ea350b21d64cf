"""The assets of a release: the pruned checkpoint, its further training, what is exported and measured of it."""

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.checks import (
    CHECKPOINT_CHECK,
    EXPORT_CHECK,
    PLACEMENTS_CHECK,
    SHARING_CHECK,
    TRAINING_CHECKS,
)
from apriel_assets.assets.release_builders import (
    build_export,
    build_matryoshka,
    build_release_sft,
    build_speculative,
)
from apriel_assets.assets.sketches import sketch_release
from apriel_assets.recipe import Recipe
from apriel_assets.recipe_sections import budget_key


def release_assets(
    recipe: Recipe, teacher: AssetPlan, traces: AssetPlan, supernet: AssetPlan, finalists: AssetPlan
) -> list[AssetPlan]:
    """Return what is made of the chosen placements, upstream first."""
    assert recipe.search is not None
    names = {budget_key(budget): recipe.release.name_of(budget) for budget in recipe.search.budgets}
    matryoshka = AssetPlan(
        key="matryoshka",
        group="release",
        build=build_matryoshka,
        reads={"names": names},
        inputs=(supernet, finalists),
        kinds=("pytorch", "safetensors"),
        recipe=recipe.name,
        tables=("sharing", "checkpoints"),
        sketch=sketch_release,
        checks=(PLACEMENTS_CHECK, CHECKPOINT_CHECK, SHARING_CHECK),
    )
    found = [matryoshka]
    if recipe.release.sft is not None:
        sft = AssetPlan(
            key="release/sft",
            group="release",
            build=build_release_sft,
            reads={"train": recipe.release.sft, "seed": recipe.seed},
            inputs=(teacher, traces, matryoshka),
            kinds=("pytorch", "safetensors"),
            recipe=recipe.name,
            tables=("sharing", "training", "checkpoints"),
            sketch=sketch_release,
            checks=TRAINING_CHECKS,
        )
        found.append(sft)
    return [*found, *_shipped(recipe, teacher, found[-1])]


def _shipped(recipe: Recipe, teacher: AssetPlan, checkpoint: AssetPlan) -> list[AssetPlan]:
    """Return what is made of the checkpoint that ships, for whoever serves it."""
    found = []
    if recipe.release.export:
        found.append(
            AssetPlan(
                key="release/export",
                group="release",
                build=build_export,
                reads={"asset": checkpoint.key, "name": recipe.name},
                inputs=(teacher, checkpoint),
                kinds=("huggingface", "safetensors"),
                recipe=recipe.name,
                checks=(EXPORT_CHECK,),
            )
        )
    if recipe.release.speculative is not None:
        found.append(
            AssetPlan(
                key="release/speculative",
                group="release",
                build=build_speculative,
                reads={
                    "asset": checkpoint.key,
                    "speculative": recipe.release.speculative,
                    "heldout": recipe.tasks.heldout,
                    "seed": recipe.seed,
                },
                inputs=(teacher, checkpoint),
                kinds=("pytorch", "parquet"),
                recipe=recipe.name,
                tables=("speculative",),
            )
        )
    return found
