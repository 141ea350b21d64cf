"""What is shipped, evaluated again on a schedule although nothing of it changed: software and devices do.

Not part of the recipe's plan: the schedule asks for a partition, which is a date.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from apriel_assets.assets.asset_plan import AssetPlan, Check, Job, OnePartition, Verdict, input_name
from apriel_assets.assets.evals import EvaluatedModel, load_evaluated
from apriel_assets.assets.loading import load_teacher_model
from apriel_assets.assets.task_keys import file_digests, task_key
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.recipe import Recipe
from apriel_assets.slices import hashed_values
from resources.artifact_store import Artifact, ArtifactStore, digest
from resources.lake import Lake

REEVALS = "automation/reevals/"
DATES = "reeval_dates"
RELEASES = ("release/rl", "release/sft")  # the one trained the furthest first


def build_reeval(
    job: Job,
    *,
    asset: str,
    model: str,
    placement: str | None,
    accuracy: EvalConfig,
    seed: int,
    tasks: tuple[TaskSpec, ...],
    recipe: str,
    files: Mapping[str, str],  # only hashed: edited problems make other results
) -> None:
    """A shipped model on the eval tasks once more, held against the last result."""
    from apriel_assets.evaluation.accuracy import evaluate_samples
    from apriel_assets.evaluation.drift import reeval_rows
    from apriel_assets.evaluation.eval_rows import eval_rows

    assert job.partition is not None
    teacher, tokenizer = load_teacher_model(job)
    found: list[dict[str, Any]] = []
    for task in tasks:
        # Loaded for each task: two models in turn may share one checkpoint, which is loaded once.
        student = load_evaluated(job, asset, placement)
        settings = {"accuracy": accuracy, "seed": seed, "placement": placement}
        alike = compared_by(hashed_values(settings), _input_versions(job), asset, task_key(task))
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
        found += [{**row, **alike} for row in eval_rows(samples, accuracy).to_pylist()]
    rows = reeval_rows(job.partition, found, last_results(job.home, recipe, asset, model, job.partition))
    job.draft.tables["reevals"] = rows
    job.draft.figures["num_drifted"] = sum(rows.column("drifted").to_pylist())


def _input_versions(job: Job) -> dict[str, str]:
    return {
        input_name(key, partition): artifact.data_version
        for key, partitions in job.inputs.items()
        for partition, artifact in partitions.items()
    }


def compared_by(
    settings: Mapping[str, Any], inputs: Mapping[str, str], checkpoint: str, task: str
) -> dict[str, str]:
    """Return the columns by which two results can be compared: equal weights, asked alike.

    Args:
        settings: accuracy, seed and placement, as hashed for a code version.
        inputs: data version of each input of the evaluation.
        checkpoint: which input is what is evaluated.
        task: partition key of the task in `evals`.
    """
    others = {name: version for name, version in inputs.items() if name != checkpoint}
    asked = [settings["accuracy"], settings["seed"], settings["placement"], others, task]
    return {"checkpoint_version": inputs[checkpoint], "settings": digest(asked)}


def last_results(home: Path, recipe: str, asset: str, model: str, date: str) -> list[dict[str, Any]]:
    """Return all results of a model before a date, those of `evals` included, with what they are compared by.

    Rows of `evals` of which the artifact is gone are left out: nobody knows what they were made from.
    """
    lake = Lake(home)
    made = {own["data_version"]: own for own in ArtifactStore(home).provenances(f"evals/{model}")}
    first = []
    for row in _of(lake.read("evals", recipe), model):
        if (own := made.get(row["version"])) and asset in own["inputs"]:
            first.append({**row, **compared_by(own["recipe_slice"], own["inputs"], asset, own["partition"])})
    earlier = _of(lake.read("reevals", recipe), model)
    # Rows from before there were these columns are comparable with nothing.
    known = [row for row in earlier if row["date"] < date and row.get("settings")]
    return [*first, *known]


def _of(rows: pa.Table, model: str) -> list[dict[str, Any]]:
    return [row for row in rows.to_pylist() if row["model"] == model]


def _no_drift(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    rows = artifact.table("reevals").to_pylist()
    if all(row["last_value"] is None for row in rows):
        return None, {"note": "nothing to compare with"}
    drifted = [row for row in rows if row["drifted"]]
    shown = {
        f"{row['task']}_{row['metric']}": f"{row['value']:.4g}, last {row['last_value']:.4g} "
        f"[{row['last_low']:.4g}, {row['last_high']:.4g}] of {row['last_date'] or 'evals'}"
        for row in drifted
    }
    return not drifted, {"num_compared": len(rows), "num_drifted": len(drifted), **shown}


DRIFT_CHECK = Check(
    name="no_drift",
    description="Every figure lies within the 95% interval of the last result, on the same problems.",
    passes=_no_drift,
)


def shipped_models(models: Sequence[EvaluatedModel]) -> list[EvaluatedModel]:
    """Return what is released; if nothing is, the teacher, the last H-k and every budget's placement."""
    for checkpoint in RELEASES:
        if released := [model for model in models if model.checkpoint.key == checkpoint]:
            return released
    steps = [model for model in models if model.checkpoint.key == f"h1/h{model.name.removeprefix('h')}"]
    placed = [model for model in models if model.chosen_by is not None]
    return [models[0], *steps[-1:], *placed]


def reeval_assets(recipe: Recipe, models: Sequence[EvaluatedModel]) -> list[AssetPlan]:
    """Return an asset for each shipped model; none if the recipe has no `evals.cron`."""
    if recipe.evals.cron is None:
        return []
    teacher = models[0].checkpoint
    found = []
    for model in shipped_models(models):
        inputs: list[AssetPlan | OnePartition] = [teacher]
        if model.checkpoint is not teacher:
            inputs.append(model.checkpoint)
        if model.chosen_by is not None:
            inputs.append(model.chosen_by)
        asset = AssetPlan(
            key=f"{REEVALS}{model.name}",
            group="automation",
            build=build_reeval,
            reads={
                "asset": model.checkpoint.key,
                "model": model.name,
                "placement": model.placement,
                "accuracy": recipe.evals.accuracy,
                "seed": recipe.seed,
                "tasks": recipe.evals.tasks,
                "recipe": recipe.name,
                "files": file_digests(recipe.evals.tasks),
            },
            inputs=tuple(inputs),
            dynamic_partitions=DATES,
            kinds=("pytorch", "parquet"),
            recipe=recipe.name,
            tables=("reevals",),
            revision="2",
            checks=(DRIFT_CHECK,),
            fresh_by=recipe.evals.cron,
        )
        found.append(asset)
    return found
