"""What each step of progressive conversion (H1) does: layer scores, probes, checkpoints, fine-tuning, merge."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from apriel_assets.assets.asset_plan import Job
from apriel_assets.assets.checkpoints import record_checkpoint
from apriel_assets.assets.loading import (
    VALIDATION_TRACES,
    load_checkpoint,
    load_teacher_model,
    problems_of,
    train_traces,
)
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.config import MixerConfig
from apriel_assets.recipe_sections import MergeSection
from apriel_assets.scoring.config import LooConfig, ProbeConfig
from resources.artifact_store import digest

if TYPE_CHECKING:
    import pyarrow as pa

    from apriel_assets.hybrid.conversion import Init


def build_layer_scores(job: Job, *, loo: LooConfig, heldout: tuple[TaskSpec, ...]) -> None:
    """Leave-one-out importance: what the teacher loses when one layer's attention is taken out."""
    from apriel_assets.evaluation.kept_answers import KeptAnswers
    from apriel_assets.scoring.leave_one_out import score_layers

    teacher, tokenizer = load_teacher_model(job)
    problems = problems_of(pq.read_table(job.input("traces").path / VALIDATION_TRACES))
    with KeptAnswers(job.work_dir, job.address) as kept:
        rows = score_layers(
            teacher, tokenizer, problems, loo, tasks=heldout, progress=job.progress, kept=kept
        )
    job.draft.tables["layer_scores"] = rows
    # The ranking is what others read: if it comes out the same, nothing below is rebuilt.
    job.draft.data_version = digest(ranked_layers(rows))


def ranked_layers(rows: "pa.Table") -> list[int]:
    """Return layers by rank, easiest to replace first, from layer scores or probes."""
    return [row["layer"] for row in sorted(rows.to_pylist(), key=lambda row: row["rank"])]


def next_layers(ranking: Sequence[int], replaced: Sequence[int], keep: Sequence[int], k: int) -> list[int]:
    """Return which layers to replace so that `k` are, easiest first.

    Raises:
        UserError: fewer than `k` layers may be replaced.
    """
    free = [layer for layer in ranking if layer not in keep and layer not in replaced]
    wanted = k - len(replaced)
    if wanted > len(free):
        raise UserError(
            f"h1.schedule asks for {k} replaced layers; only {len(replaced) + len(free)} may be replaced "
            f"({len(keep)} kept by h1.keep_attention)"
        )
    return free[:wanted]


def build_probes(
    job: Job,
    *,
    mixer: str,
    init: "Init",
    options: MixerConfig,
    probe: ProbeConfig,
    steps: int,
    step: str,
    previous: str,
    keep: tuple[int, ...],
    seed: int,
) -> None:
    """Dynamic importance (MMR): swap one more layer, distil a few steps, record the loss; low means easy."""
    from apriel_assets.scoring.probes import probe_layers

    teacher, tokenizer = load_teacher_model(job)
    student = load_checkpoint(job, previous)
    candidates = [layer for layer, name in enumerate(student.placement) if name == "fa" and layer not in keep]
    rows = probe_layers(
        student,
        teacher,
        candidates,
        mixer,
        train_traces(job, tokenizer),
        probe,
        steps=steps,
        step=step,
        options={mixer: options},
        init=init,
        seed=seed,
        progress=job.progress,
    )
    job.draft.tables["probes"] = rows
    job.draft.data_version = digest(ranked_layers(rows))


def build_checkpoint(
    job: Job,
    *,
    k: int,
    mixer: str,
    init: "Init",
    order: str | tuple[int, ...],
    keep: tuple[int, ...],
    options: MixerConfig,
    distill: DistillConfig,
    previous: str,
    ranking: str | None,
    seed: int,
) -> None:
    """The teacher with k attention layers replaced, distilled from the original teacher with reverse KL."""
    from apriel_assets.distillation.trainer import train

    teacher, tokenizer = load_teacher_model(job)
    student = load_checkpoint(job, previous)
    replaced = [layer for layer, name in enumerate(student.placement) if name != "fa"]
    if isinstance(order, tuple):
        ranked = list(order)
    else:
        assert ranking is not None
        ranked = ranked_layers(job.input(ranking).table("probes" if "probes" in ranking else "layer_scores"))
        if order == "reverse_loo":
            ranked.reverse()
    _check_layers("order", ranked, student.num_layers)
    _check_layers("keep_attention", keep, student.num_layers)
    layers = next_layers(ranked, replaced, keep, k)
    student.convert(layers, mixer, init=init, seed=seed, options={mixer: options})
    curve = train(
        student,
        train_traces(job, tokenizer),
        distill,
        teacher=teacher,
        model_name=f"h{k}",
        seed=seed,
        resume_dir=job.work_dir,
        progress=job.progress,
    )
    record_checkpoint(job, student, curve, name=f"h{k}", kind="progressive", parent=previous)


def build_sft(job: Job, *, train: DistillConfig, parent: str, seed: int) -> None:
    """End-to-end fine-tuning of one H-k on the reference traces."""
    from apriel_assets.distillation.trainer import train as run_training

    _, tokenizer = load_teacher_model(job)
    student = load_checkpoint(job, parent)
    curve = run_training(
        student,
        train_traces(job, tokenizer),
        train,
        teacher=None,
        model_name="sft",
        seed=seed + 1,
        resume_dir=job.work_dir,
        progress=job.progress,
    )
    record_checkpoint(job, student, curve, name="sft", kind="sft", parent=parent)


def build_merge(job: Job, *, merge: MergeSection, parent: str) -> None:
    """Weight merge of the fine-tuned checkpoint with the one it started from."""
    from apriel_assets.distillation.merge import merge_checkpoints

    tuned, base = load_checkpoint(job, "h1/sft"), load_checkpoint(job, parent)
    merged = merge_checkpoints(base, tuned, method=merge.method, weight=merge.weight)
    record_checkpoint(job, merged, None, name="merge", kind="merge", parent="h1/sft")


def _check_layers(key: str, layers: Sequence[int], num_layers: int) -> None:
    if unknown := sorted(set(layers) - set(range(num_layers))):
        raise UserError(f"h1.{key} names layers {unknown}; the teacher has layers 0 to {num_layers - 1}")
