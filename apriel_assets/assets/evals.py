"""How good and how fast every model is: one partition per eval task, so a new task runs alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from apriel_assets.assets.asset_plan import AssetPlan, Job, OnePartition
from apriel_assets.assets.checks import evals_check
from apriel_assets.assets.loading import load_model_once, load_teacher_model
from apriel_assets.assets.regression_checks import EVALS_REGRESSION_CHECK
from apriel_assets.assets.sketches import sketch_evals, sketch_throughput
from apriel_assets.assets.task_keys import task_key
from apriel_assets.evaluation.config import EvalConfig, ThroughputConfig
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.recipe import Recipe

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A row of the leaderboard: a checkpoint, under its own placement or another one."""

    name: str
    checkpoint: AssetPlan
    placement: str | None = None  # one of the checkpoint's named placements
    chosen_by: OnePartition | None = None  # or what a budget's finalists chose


def build_evals(
    job: Job,
    *,
    asset: str,
    model: str,
    placement: str | None,
    accuracy: EvalConfig,
    seed: int,
    task: TaskSpec,
) -> None:
    """Generated accuracy and KL to the teacher on one task's test problems, with bootstrap intervals."""
    from apriel_assets.evaluation.accuracy import evaluate_samples
    from apriel_assets.evaluation.eval_rows import eval_rows

    teacher, tokenizer = load_teacher_model(job)
    student = load_evaluated(job, asset, placement)
    samples = evaluate_samples(
        student,
        tokenizer,
        task,
        accuracy,
        teacher=teacher,
        model_name=model,
        seed=seed,
        progress=job.progress,
    )
    job.draft.tables |= {"evals": eval_rows(samples, accuracy), "eval_samples": samples}


def build_throughput(
    job: Job, *, asset: str, model: str, placement: str | None, throughput: ThroughputConfig, seed: int
) -> None:
    """Measured speed and latency of prefill and decode by context and batch, beside what the byte model allows.

    The teacher decodes in turn with the model: what slows the machine for a while slows both.
    """
    from apriel_assets.evaluation.throughput import measure_throughput
    from resources.provenance import device_name

    timed = load_evaluated(job, asset, placement)
    teacher = load_teacher_model(job)[0] if throughput.in_turn else None
    rows: pa.Table = measure_throughput(
        timed,
        throughput,
        model_name=model,
        device_name=device_name(),
        seed=seed,
        progress=job.progress,
        teacher=teacher,
    )
    job.draft.tables["throughput"] = rows


def load_evaluated(job: Job, asset: str, placement: str | None) -> "HybridForCausalLM":
    """Return a model under the placement that it is evaluated with; shared within the process."""
    # Checkpoints of several placements are shared in the process: whoever runs one sets its own placement.
    model = load_model_once(job, asset)
    if "finalists" in job.inputs:
        chosen = job.input("finalists").table("placements").to_pylist()[0]
        model.set_placement(tuple(chosen["placement"]))
    elif placement is not None:
        model.set_placement(placement)
    return model


def eval_assets(recipe: Recipe, teacher: AssetPlan, models: Sequence[EvaluatedModel]) -> list[AssetPlan]:
    """Return the evals and the throughput of every model."""
    tasks = {task_key(task): task for task in recipe.evals.tasks}
    assets = []
    for model in models:
        inputs: list[AssetPlan | OnePartition] = [teacher]
        if model.checkpoint is not teacher:
            inputs.append(model.checkpoint)
        if model.chosen_by is not None:
            inputs.append(model.chosen_by)
        which = {"asset": model.checkpoint.key, "model": model.name, "placement": model.placement}
        evals = AssetPlan(
            key=f"evals/{model.name}",
            group="evals",
            build=build_evals,
            reads={**which, "accuracy": recipe.evals.accuracy, "seed": recipe.seed},
            partitions=tuple(tasks),
            by_partition={label: {"task": task} for label, task in tasks.items()},
            inputs=tuple(inputs),
            kinds=("pytorch", "parquet"),
            recipe=recipe.name,
            tables=("evals", "eval_samples"),
            revision="2",
            sketch=sketch_evals,
            checks=(evals_check(recipe.evals.accuracy.num_problems), EVALS_REGRESSION_CHECK),
        )
        speed = AssetPlan(
            key=f"throughput/{model.name}",
            group="evals",
            build=build_throughput,
            reads={**which, "throughput": recipe.evals.throughput, "seed": recipe.seed},
            inputs=tuple(inputs),
            kinds=("pytorch", "parquet"),
            recipe=recipe.name,
            tables=("throughput",),
            revision="3",
            sketch=sketch_throughput,
        )
        assets += [evals, speed]
    return assets
