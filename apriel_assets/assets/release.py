"""The assets of a release: the pruned checkpoint, its further training and what guards it, what is exported of it."""

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.checks import (
    CHECKPOINT_CHECK,
    EXPORT_CHECK,
    PLACEMENTS_CHECK,
    SHARING_CHECK,
    TRAINING_CHECKS,
)
from apriel_assets.assets.posttraining_builders import build_guard, build_release_rl
from apriel_assets.assets.posttraining_checks import REWARD_RISES_CHECK, RL_FINITE_CHECK, SAFE_CHECK
from apriel_assets.assets.release_builders import (
    build_export,
    build_matryoshka,
    build_release_sft,
    build_speculative,
)
from apriel_assets.assets.sketches import sketch_guard, sketch_release, sketch_rl
from apriel_assets.recipe import Recipe
from apriel_assets.recipe_sections import budget_key

RL = "release/rl"
GUARD = "release/guard/"


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
    found, newest = (
        [matryoshka],
        (matryoshka,),
    )  # the checkpoint trained the furthest, and the guard that must hold
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
        newest = (sft, _guard(recipe, teacher, before=matryoshka, after=sft))
        found += newest
    if recipe.release.rl is not None:
        rl = _rl(recipe, teacher, newest)
        newest = (rl, _guard(recipe, teacher, before=newest[0], after=rl))
        found += newest
    return [*found, *_shipped(recipe, teacher, newest)]


def _rl(recipe: Recipe, teacher: AssetPlan, newest: tuple[AssetPlan, ...]) -> AssetPlan:
    """Return reinforcement learning from a checkpoint, with the guard that must hold before."""
    return AssetPlan(
        key=RL,
        group="release",
        build=build_release_rl,
        reads={
            "start": newest[0].key,
            "train": recipe.release.rl,
            "tasks": recipe.tasks.train,
            "seed": recipe.seed,
        },
        inputs=(teacher, *newest),
        kinds=("pytorch", "safetensors"),
        recipe=recipe.name,
        tables=("rl_training", "sharing", "checkpoints"),
        sketch=sketch_rl,
        checks=(RL_FINITE_CHECK, REWARD_RISES_CHECK, CHECKPOINT_CHECK),
    )


def _guard(recipe: Recipe, teacher: AssetPlan, *, before: AssetPlan, after: AssetPlan) -> AssetPlan:
    stage = after.key.removeprefix("release/")
    return AssetPlan(
        key=f"{GUARD}{stage}",
        group="release",
        build=build_guard,
        reads={
            "stage": stage,
            "before": before.key,
            "after": after.key,
            "guard": recipe.release.guard,
            "heldout": recipe.tasks.heldout,
            "seed": recipe.seed,
        },
        inputs=(teacher, before, after),
        kinds=("pytorch", "parquet"),
        recipe=recipe.name,
        tables=("before_after",),
        sketch=sketch_guard,
        checks=(SAFE_CHECK,),
    )


def _shipped(recipe: Recipe, teacher: AssetPlan, newest: tuple[AssetPlan, ...]) -> list[AssetPlan]:
    """Return what is made of the checkpoint that ships, for whoever serves it."""
    checkpoint = newest[0]
    found = []
    if recipe.release.export:
        found.append(
            AssetPlan(
                key="release/export",
                group="release",
                build=build_export,
                reads={"asset": checkpoint.key, "name": recipe.name},
                inputs=(teacher, *newest),  # a guard is not read: what it holds back must not ship
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
