"""How good and how fast every checkpoint is: one partition per eval task, so a new task runs alone."""

from collections.abc import Sequence

import pyarrow as pa

from apriel_assets.assets.artifact_asset import AssetPlan, Job
from apriel_assets.assets.loading import load_model_once, load_teacher_model
from apriel_assets.assets.sketches import sketch_evals
from apriel_assets.assets.task_keys import task_key
from apriel_assets.evaluation.config import EvalConfig, ThroughputConfig
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.recipe import Recipe


def build_evals(job: Job, *, asset: str, accuracy: EvalConfig, seed: int, task: TaskSpec) -> None:
    """Generated accuracy and KL to the teacher on one task's test problems, with bootstrap intervals."""
    from apriel_assets.evaluation.accuracy import evaluate_task

    teacher, tokenizer = load_teacher_model(job)
    rows = evaluate_task(
        load_model_once(job, asset),
        tokenizer,
        task,
        accuracy,
        teacher=teacher,
        model_name=asset.rpartition("/")[2],
        seed=seed,
        progress=job.progress,
    )
    job.draft.tables["evals"] = rows


def build_throughput(job: Job, *, asset: str, throughput: ThroughputConfig, seed: int) -> None:
    """Measured prefill and decode speed by context length, beside the speed-up that the byte model predicts."""
    from apriel_assets.evaluation.throughput import measure_throughput
    from resources.provenance import device_name

    rows: pa.Table = measure_throughput(
        load_model_once(job, asset),
        throughput,
        model_name=asset.rpartition("/")[2],
        device_name=device_name(),
        seed=seed,
        progress=job.progress,
    )
    job.draft.tables["throughput"] = rows


def eval_assets(recipe: Recipe, teacher: AssetPlan, models: Sequence[AssetPlan]) -> list[AssetPlan]:
    """Return the evals and the throughput of every model."""
    tasks = {task_key(task): task for task in recipe.evals.tasks}
    assets = []
    for model in models:
        name = model.key.rpartition("/")[2]
        inputs = (teacher,) if model is teacher else (teacher, model)
        evals = AssetPlan(
            key=f"evals/{name}",
            group="evals",
            build=build_evals,
            reads={"asset": model.key, "accuracy": recipe.evals.accuracy, "seed": recipe.seed},
            partitions=tuple(tasks),
            by_partition={label: {"task": task} for label, task in tasks.items()},
            inputs=inputs,
            kinds=("pytorch", "parquet"),
            recipe=recipe.name,
            sketch=sketch_evals,
        )
        speed = AssetPlan(
            key=f"throughput/{name}",
            group="evals",
            build=build_throughput,
            reads={"asset": model.key, "throughput": recipe.evals.throughput, "seed": recipe.seed},
            inputs=inputs,
            kinds=("pytorch", "parquet"),
            recipe=recipe.name,
        )
        assets += [evals, speed]
    return assets
