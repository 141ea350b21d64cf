"""Real generation for the best candidates of a budget whose scores cannot be trusted.

Not part of the recipe's plan: the sensor `generation` asks for a partition, which is a budget.
"""

from collections.abc import Mapping
from typing import Any

from apriel_assets.assets.asset_plan import AssetPlan, Check, Job, Verdict
from apriel_assets.assets.loading import load_model_once, load_teacher_model
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.recipe import Recipe
from resources.artifact_store import Artifact

GENERATIONS = "automation/generations"


def build_generations(
    job: Job,
    *,
    candidates: int,
    accuracy: EvalConfig,
    heldout: tuple[TaskSpec, ...],
    seed: int,
    budget: float,
) -> None:
    """The candidates with the best scores, judged by what they really generate, beside what the finalists chose."""
    from apriel_assets.scoring.audit import generated_accuracies
    from apriel_assets.tables.schemas import to_table

    _, tokenizer = load_teacher_model(job)
    chosen = job.input("finalists").table("placements").to_pylist()[0]["placement"]
    scored = job.input("placements").table("candidates").to_pylist()
    best = [(rank, row) for rank, row in enumerate(scored) if rank < candidates or row["placement"] == chosen]
    stored = job.input("completions").table("completions").column("problem_id").to_pylist()
    generated = generated_accuracies(
        load_model_once(job, "supernet"),
        tokenizer,
        heldout,
        [tuple(row["placement"]) for _, row in best],
        accuracy,
        seed=seed,
        exclude=set(stored),
        progress=job.progress,
    )
    found = sorted(zip(best, generated, strict=True), key=lambda pair: (-pair[1].accuracy, pair[0][0]))
    rows = [
        {key: row[key] for key in ("placement", "cost", "value", "ess_share")}
        | {"generated_accuracy": own.accuracy, "generated_low": own.low, "generated_high": own.high}
        | {"budget": budget, "score_rank": rank, "generated_rank": place, "num_problems": own.num_problems}
        | {"chosen": row["placement"] == chosen}
        for place, ((rank, row), own) in enumerate(found)
    ]
    job.draft.tables["generations"] = to_table("generations", rows)
    job.draft.figures |= {"num_generated": len(rows), "best_accuracy": rows[0]["generated_accuracy"]}


def _choice_stands(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    rows = artifact.table("generations").to_pylist()
    chosen = next(row for row in rows if row["chosen"])
    better = [row for row in rows if row["generated_low"] > chosen["generated_high"]]
    return not better, {
        "chosen_accuracy": chosen["generated_accuracy"],
        "best_accuracy": rows[0]["generated_accuracy"],
        "num_better_than_chosen": len(better),
    }


CHOICE_CHECK = Check(
    name="no_candidate_is_better_than_the_chosen",
    description="No candidate's generated accuracy lies above the chosen one's, 95% intervals apart.",
    passes=_choice_stands,
)


def generations_asset(recipe: Recipe, assets: Mapping[str, AssetPlan]) -> AssetPlan | None:
    """Return the asset that generates from candidates, or None if the recipe does not ask for it.

    Args:
        recipe: says how many candidates, and how they are judged.
        assets: the recipe's assets by key.
    """
    if recipe.automation.generation is None or recipe.search is None:
        return None
    budgets: dict[str | None, dict[str, Any]] = {
        key: {"budget": budget}
        for key, budget in zip(recipe.search.budget_keys, recipe.search.budgets, strict=True)
    }
    return AssetPlan(
        key=GENERATIONS,
        group="automation",
        build=build_generations,
        reads={
            "candidates": recipe.automation.generation.candidates,
            "accuracy": recipe.search.accuracy,
            "heldout": recipe.tasks.heldout,
            "seed": recipe.seed,
        },
        by_partition=budgets,
        partitions=recipe.search.budget_keys,
        inputs=tuple(
            assets[key] for key in ("supernet", "teacher", "completions", "placements", "finalists")
        ),
        kinds=("pytorch", "parquet"),
        recipe=recipe.name,
        tables=("generations",),
        checks=(CHOICE_CHECK,),
    )
