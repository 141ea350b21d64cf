"""What everything starts from: the teacher, its traces, and the store of its own sampled completions."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq

from apriel_assets.assets.asset_plan import AssetPlan, Job
from apriel_assets.assets.loading import (
    CHECKPOINT,
    TEACHER,
    TRAIN_TRACES,
    VALIDATION_TRACES,
    load_teacher_model,
)
from apriel_assets.assets.task_keys import file_digests
from apriel_assets.evaluation.tasks.specs import Split, TaskSpec
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.recipe import Recipe
from apriel_assets.scoring.config import StoreConfig
from resources.artifact_store import digest


def build_teacher(job: Job, *, spec: TeacherSpec) -> None:
    """The full-attention model that every student is distilled from: where it is, its shape, its fingerprint.

    A GGUF file is dequantised once, here; other models stay where they are and are identified by the hash of their
    files.
    """
    from apriel_assets.hybrid.teacher import load_teacher, teacher_facts

    facts = teacher_facts(spec)
    load_from = spec
    if spec.gguf_file or spec.model.endswith(".gguf"):
        model, tokenizer = load_teacher(spec)
        model.save_pretrained(job.draft.path / CHECKPOINT)
        tokenizer.save_pretrained(job.draft.path / CHECKPOINT)
        final = job.home / "artifacts" / "teacher" / job.address / CHECKPOINT
        load_from = TeacherSpec(model=str(final), dtype=spec.dtype)
    record = {"facts": facts, "load_from": dataclasses.asdict(load_from)}
    (job.draft.path / TEACHER).write_text(json.dumps(record, indent=1))
    job.draft.data_version = digest([facts["digest"], spec.dtype])
    job.draft.figures |= {key: facts[key] for key in ("num_layers", "num_parameters", "architecture")}
    job.draft.tables["checkpoints"] = _teacher_row(facts)


def _teacher_row(facts: dict) -> pa.Table:
    from apriel_assets.tables.schemas import to_table

    row = {
        "model": "teacher",
        "kind": "teacher",
        "placement": ["fa"] * facts["num_layers"],
        "num_replaced": 0,
        "steps": 0,
        "tokens": 0,
        "total_tokens": 0,
        "seconds": 0.0,
        "num_parameters": facts["num_parameters"],
    }
    return to_table("checkpoints", [row])


def build_traces(
    job: Job,
    *,
    train: tuple[TaskSpec, ...],
    heldout: tuple[TaskSpec, ...],
    num_traces: int,
    num_validation_traces: int,
    seed: int,
    files: dict[str, str],  # only hashed: an edited trace file must make its traces old
) -> None:
    """Reasoning traces to distil on, and held-out ones to score layers on; the two cannot share a problem."""
    from apriel_assets.evaluation.tasks.problems import make_problems

    wanted: list[tuple[str, Split, tuple[TaskSpec, ...], int]] = [
        (TRAIN_TRACES, "train", train, num_traces),
        (VALIDATION_TRACES, "validation", heldout, num_validation_traces),
    ]
    for name, split, specs, total in wanted:
        share = -(-total // len(specs))  # rounded up, so that no task is left without
        problems = [problem for spec in specs for problem in make_problems(spec, split, share, seed)]
        pq.write_table(pa.Table.from_pylist([dataclasses.asdict(p) for p in problems]), job.draft.path / name)
        job.draft.figures[f"num_{split}_traces"] = len(problems)


def build_completions(
    job: Job, *, store: StoreConfig, heldout: tuple[TaskSpec, ...], seed: int, files: dict[str, str]
) -> None:
    """The teacher's own sampled completions of held-out problems, with per-token log-probs and verdicts."""
    from apriel_assets.scoring.store import sample_store

    teacher, tokenizer = load_teacher_model(job)
    rows = sample_store(teacher, tokenizer, heldout, store, seed=seed, progress=job.progress)
    job.draft.tables["completions"] = rows
    correct = rows.column("correct").to_pylist()
    job.draft.figures |= {"num_completions": len(correct), "share_correct": sum(correct) / len(correct)}


def teacher_assets(recipe: Recipe) -> list[AssetPlan]:
    """Return the assets of this stage, upstream first."""
    teacher = AssetPlan(
        key="teacher",
        group="teacher",
        build=build_teacher,
        reads={"spec": recipe.teacher},
        kinds=("huggingface", "safetensors"),
        recipe=recipe.name,
        tables=("checkpoints",),
    )
    traces = AssetPlan(
        key="traces",
        group="teacher",
        build=build_traces,
        reads={
            "train": recipe.tasks.train,
            "heldout": recipe.tasks.heldout,
            "num_traces": recipe.tasks.num_traces,
            "num_validation_traces": recipe.tasks.num_validation_traces,
            "seed": recipe.seed,
            "files": file_digests((*recipe.tasks.train, *recipe.tasks.heldout)),
        },
        kinds=("python", "parquet"),
        recipe=recipe.name,
    )
    completions = AssetPlan(
        key="completions",
        group="teacher",
        build=build_completions,
        reads={
            "store": recipe.store,
            "heldout": recipe.tasks.heldout,
            "seed": recipe.seed,
            "files": file_digests(recipe.tasks.heldout),
        },
        inputs=(teacher,),
        kinds=("pytorch", "parquet"),
        recipe=recipe.name,
        tables=("completions",),
    )
    return [teacher, traces, completions]
