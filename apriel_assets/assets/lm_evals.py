"""Tasks of the lm-evaluation-harness, and MT-Bench, on every model: one partition per entry of the recipe's list."""

from collections.abc import Sequence
from typing import Any

from apriel_assets.assets.asset_plan import AssetPlan, Check, Job, OnePartition, Verdict
from apriel_assets.assets.evals import EvaluatedModel, load_evaluated
from apriel_assets.assets.loading import load_teacher_model
from apriel_assets.assets.task_keys import lm_eval_key
from apriel_assets.evaluation.lm_eval_config import MT_BENCH, JudgeConfig, LmEvalTask
from apriel_assets.recipe import Recipe
from resources.artifact_store import Artifact

_SHOWN = 12  # figures in the UI, of a group with many tasks


def build_lm_evals(
    job: Job,
    *,
    asset: str,
    model: str,
    placement: str | None,
    seed: int,
    asked: LmEvalTask,
    judge: JudgeConfig | None,
) -> None:
    """Every metric of one task or group of lm-eval with its standard error, and every sample."""
    from apriel_assets.evaluation.kept_answers import KeptAnswers

    _, tokenizer = load_teacher_model(job)
    own = load_evaluated(job, asset, placement)
    # The address names the model's version and everything else that decides an answer.
    common: dict[str, Any] = {"model_name": model, "seed": seed, "progress": job.progress}
    common["kept"] = KeptAnswers(job.work_dir, job.address)
    if asked.task == MT_BENCH:
        from apriel_assets.evaluation.mt_bench import evaluate_mt_bench

        assert judge is not None  # the recipe was refused
        job.draft.tables |= evaluate_mt_bench(own, tokenizer, asked, judge, **common)
    else:
        from apriel_assets.evaluation.lm_eval_adapter import evaluate_lm_eval

        job.draft.tables |= evaluate_lm_eval(own, tokenizer, asked, **common)


def _rows_there(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    rows = artifact.table("lm_evals").to_pylist()
    bad = [
        f"{row['task']} {row['metric']}"
        for row in rows
        if row["value"] is None or row["value"] != row["value"]
    ]
    shown = {"num_rows": len(rows), "num_samples": artifact.table("lm_eval_samples").num_rows}
    return bool(rows) and not bad, shown | ({"not_finite": ", ".join(bad)} if bad else {})


_ROWS_CHECK = Check(
    name="rows_there", description="The task has metrics, and every one is a number.", passes=_rows_there
)


def _sketch(artifact: Artifact) -> dict[str, Any]:
    """The task's or group's own figures, then those of its parts."""
    rows = artifact.table("lm_evals").to_pylist()
    rows.sort(key=lambda row: row["task"] != row["asked"])
    return {f"{row['task']} {row['metric']} ({row['filter']})": row["value"] for row in rows[:_SHOWN]}


def lm_eval_assets(recipe: Recipe, teacher: AssetPlan, models: Sequence[EvaluatedModel]) -> list[AssetPlan]:
    """Return `lm_evals/<model>` of every model; none if the recipe asks for no task."""
    asked = {lm_eval_key(task, recipe.evals.judge): task for task in recipe.evals.lm_eval}
    if not asked:
        return []
    assets = []
    for model in models:
        inputs: list[AssetPlan | OnePartition] = [teacher]
        inputs += [model.checkpoint] if model.checkpoint is not teacher else []
        inputs += [model.chosen_by] if model.chosen_by is not None else []
        which = {"asset": model.checkpoint.key, "model": model.name, "placement": model.placement}
        judged = {key: recipe.evals.judge if task.task == MT_BENCH else None for key, task in asked.items()}
        plan = AssetPlan(
            key=f"lm_evals/{model.name}",
            group="evals",
            build=build_lm_evals,
            reads={**which, "seed": recipe.seed},
            partitions=tuple(asked),
            by_partition={key: {"asked": task, "judge": judged[key]} for key, task in asked.items()},
            inputs=tuple(inputs),
            kinds=("pytorch", "parquet"),
            recipe=recipe.name,
            tables=("lm_evals", "lm_eval_samples"),
            sketch=_sketch,
            checks=(_ROWS_CHECK,),
        )
        assets.append(plan)
    return assets
