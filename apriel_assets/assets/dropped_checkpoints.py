"""Checkpoints that others put into the watched directory: evaluated like the recipe's own models, one partition each.

Not part of the recipe's plan: the sensor `checkpoints` asks for a partition when a checkpoint is complete, and its rows
stay when the recipe changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from apriel_assets.assets.asset_plan import AssetPlan, Job
from apriel_assets.assets.loading import load_teacher_model
from apriel_assets.errors import UserError
from apriel_assets.evaluation.config import EvalConfig, ThroughputConfig
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.paths import expanded
from apriel_assets.recipe import Recipe
from apriel_assets.slices import UNHASHED
from resources.checkpoint_files import fingerprint, missing_of

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

DROPPED_CHECKPOINTS = "automation/dropped_checkpoints"
PARTITIONS = "dropped_checkpoints"


@dataclass(frozen=True)
class Place:
    """Where checkpoints are dropped; what is in them decides the result, not where they lie."""

    directory: str = field(metadata=UNHASHED)

    def path(self, name: str) -> Path:
        """Return the directory of one checkpoint."""
        return expanded(self.directory) / name


def build_dropped_checkpoint(
    job: Job,
    *,
    watched: Place,
    tasks: tuple[TaskSpec, ...],
    accuracy: EvalConfig,
    throughput: ThroughputConfig,
    seed: int,
) -> None:
    """A checkpoint that was put into the watched directory: accuracy, KL to the teacher, and speed."""
    from apriel_assets.evaluation.accuracy import evaluate_samples
    from apriel_assets.evaluation.eval_rows import eval_rows
    from apriel_assets.evaluation.own_tokenizer import check_directory_tokenizer
    from apriel_assets.evaluation.throughput import measure_throughput
    from apriel_assets.hybrid.any_checkpoint import load_any
    from apriel_assets.reporting.summary import leaderboard_table
    from resources.provenance import device_name

    assert job.partition is not None
    name, path = job.partition, watched.path(job.partition)
    if lacking := missing_of(path):
        raise UserError(f"checkpoint {path}: {lacking}")
    model, (teacher, tokenizer) = load_any(path), load_teacher_model(job)
    model.to(teacher.device)  # type: ignore[arg-type]  transformers' own annotation
    _check_vocabulary(path, model, teacher)
    check_directory_tokenizer(path, tokenizer, "the recipe's teacher")
    common = {"model_name": name, "seed": seed, "progress": job.progress}
    samples = [
        evaluate_samples(model, tokenizer, task, accuracy, teacher=teacher, **common)  # type: ignore[arg-type]
        for task in tasks
    ]
    timed = {"device_name": device_name(), "teacher": teacher, **common}
    speeds = measure_throughput(model, throughput, **timed)  # type: ignore[arg-type]
    job.draft.tables["eval_samples"] = pa.concat_tables(samples)
    job.draft.tables["evals"] = pa.concat_tables([eval_rows(own, accuracy) for own in samples])
    job.draft.tables["throughput"] = speeds
    job.draft.tables["checkpoints"] = _checkpoint_row(name, path, model)
    both = pa.concat_tables([speeds, job.input("throughput/teacher").table("throughput")])
    board = leaderboard_table({**job.draft.tables, "throughput": both})
    job.draft.tables["leaderboard"] = board
    shown = board.to_pylist()[0]
    job.draft.figures |= {
        key: shown[key] for key in ("accuracy", "reverse_kl_nats", "decode_speedup") if shown[key] is not None
    }


def _check_vocabulary(path: Path, model: "HybridForCausalLM", teacher: "HybridForCausalLM") -> None:
    sizes = [int(one.get_input_embeddings().weight.shape[0]) for one in (model, teacher)]  # type: ignore[union-attr]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"checkpoint {path} has {sizes[0]} tokens, the recipe's teacher {sizes[1]}; "
            "watch only checkpoints with the teacher's vocabulary"
        )


def _checkpoint_row(name: str, path: Path, model: "HybridForCausalLM") -> pa.Table:
    from apriel_assets.tables.schemas import to_table

    row = {
        "model": name,
        "kind": "dropped",
        "placement": list(model.placement),
        "num_replaced": sum(mixer != "fa" for mixer in model.placement),
        "num_parameters": model.num_parameters(),
        "file_bytes": sum(file.stat().st_size for file in path.glob("*.safetensors")),
        "path": str(path),
    }
    return to_table("checkpoints", [row])


def dropped_checkpoints_asset(recipe: Recipe, assets: Mapping[str, AssetPlan]) -> AssetPlan | None:
    """Return the asset that evaluates dropped checkpoints, or None if the recipe watches no directory.

    Args:
        recipe: says which directory, and how models are evaluated.
        assets: the recipe's assets by key.
    """
    if recipe.automation.watch is None:
        return None
    place = Place(recipe.automation.watch.directory)

    def files_of(partition: str | None) -> dict[str, str]:
        return {"files": fingerprint(place.path(partition or ""))}

    reads: dict[str, Any] = {
        "watched": place,
        "tasks": recipe.evals.tasks,
        "accuracy": recipe.evals.accuracy,
        "throughput": recipe.evals.throughput,
        "seed": recipe.seed,
    }
    return AssetPlan(
        key=DROPPED_CHECKPOINTS,
        group="automation",
        build=build_dropped_checkpoint,
        reads=reads,
        inputs=(assets["teacher"], assets["throughput/teacher"]),
        dynamic_partitions=PARTITIONS,
        outside=files_of,
        kinds=("pytorch", "parquet"),
        recipe=recipe.name,
        tables=("evals", "eval_samples", "throughput", "checkpoints", "leaderboard"),
        revision="4",
    )
