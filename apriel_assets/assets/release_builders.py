"""The checkpoint with many placements: the supernet, its pruning to several speeds, further training as one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from apriel_assets.assets.asset_plan import Job
from apriel_assets.assets.checkpoints import record_checkpoint
from apriel_assets.assets.loading import (
    load_checkpoint,
    load_model_once,
    load_teacher_model,
    train_traces,
    validation_traces,
)
from apriel_assets.distillation.config import MatryoshkaTrainConfig, SupernetConfig
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.config import MixerConfig
from apriel_assets.recipe_sections import mixers_per_layer
from apriel_assets.serving.config import SpeculativeConfig

if TYPE_CHECKING:
    from apriel_assets.hybrid.conversion import Init
    from apriel_assets.hybrid.model import HybridForCausalLM

RELEASE_DIRECTORY = "release"
"""Where in its artifact an export lies."""


def build_supernet(
    job: Job,
    *,
    mixers: tuple[str, ...],
    layers: Mapping[int, tuple[str, ...]],
    options: Mapping[str, MixerConfig],
    init: "Init",
    train: SupernetConfig,
    seed: int,
) -> None:
    """Every layer with several mixers, trained together: each step distils one random placement."""
    from apriel_assets.distillation.supernet import build_supernet as convert
    from apriel_assets.distillation.supernet import train_supernet
    from apriel_assets.hybrid.equality import largest_difference

    teacher, tokenizer = load_teacher_model(job)
    held = mixers_per_layer(teacher.num_layers, mixers, layers)
    supernet = convert(teacher.backbone, held, options=options, init=init, seed=seed)
    training, curves = train_supernet(
        supernet,
        train_traces(job, tokenizer),
        train,
        # Its own all-FA path is the teacher, as long as only mixers train.
        teacher=None if train.trains == "mixers" else teacher,
        validation=validation_traces(job, tokenizer),
        seed=seed,
        resume_dir=job.work_dir,
        progress=job.progress,
    )
    record_checkpoint(job, supernet, training, name="supernet", kind="supernet", parent="teacher")
    job.draft.tables["supernet_curves"] = curves
    job.draft.figures["all_fa_max_difference"] = largest_difference(supernet, teacher)


def build_matryoshka(job: Job, *, names: Mapping[str, str]) -> None:
    """The supernet pruned to all-FA ("safe") and the chosen placements; what they share is stored once."""
    from apriel_assets.hybrid.equality import largest_difference
    from apriel_assets.hybrid.matryoshka import make_matryoshka

    chosen = {
        names[str(budget)]: tuple(artifact.table("placements").to_pylist()[0]["placement"])
        for budget, artifact in job.inputs["finalists"].items()
    }
    supernet = load_model_once(job, "supernet")
    model = make_matryoshka(supernet, chosen)
    record_checkpoint(job, model, None, name="matryoshka", kind="matryoshka", parent="supernet")
    job.draft.figures |= {
        f"max_difference_{name}": largest_difference(model, supernet, placement)
        for name, placement in model.placements.items()
    }
    record_sharing(job, model)


def build_release_sft(job: Job, *, train: MatryoshkaTrainConfig, seed: int) -> None:
    """The matryoshka trained further on the reference traces, one of its placements at each step."""
    from apriel_assets.distillation.supernet import train_matryoshka

    teacher, tokenizer = load_teacher_model(job)
    model = load_checkpoint(job, "matryoshka")
    curve = train_matryoshka(
        model,
        train_traces(job, tokenizer),
        train,
        teacher=None if train.loss == "cross_entropy" else teacher,
        model_name="release",
        seed=seed + 1,
        resume_dir=job.work_dir,
        progress=job.progress,
    )
    # One row per placement: each is a model to whoever serves it.
    record_checkpoint(
        job, model, curve, name="release", kind="release", parent="matryoshka", placements=model.placements
    )
    record_sharing(job, model)


def build_export(job: Job, *, asset: str, name: str) -> None:
    """What is served: the matryoshka with its own code, an engine per placement, all-FA as a stock checkpoint.

    Each is loaded again, and its logits compared with those of the checkpoint that it came from.
    """
    from apriel_assets.serving.export import export_release
    from apriel_assets.serving.export_check import export_differences
    from apriel_assets.serving.shards import bytes_on_disk

    model, (_, tokenizer) = load_model_once(job, asset), load_teacher_model(job)
    directory = job.draft.path / RELEASE_DIRECTORY
    directory.mkdir()
    export_release(model, tokenizer, directory, name=name)
    differences = export_differences(model, directory)
    job.draft.figures |= {f"max_difference_{own}": value for own, value in differences.items()}
    job.draft.figures["bytes_on_disk"] = bytes_on_disk(directory)


def build_speculative(
    job: Job, *, asset: str, speculative: SpeculativeConfig, heldout: tuple[TaskSpec, ...], seed: int
) -> None:
    """How much of what each placement drafts full attention accepts, and whether that pays, one text at a time."""
    from apriel_assets.evaluation.tasks.problems import make_problems
    from apriel_assets.serving.speculation_rows import speculation_table
    from resources.provenance import device_name

    model, (_, tokenizer) = load_model_once(job, asset), load_teacher_model(job)
    share = -(-speculative.num_problems // len(heldout))  # rounded up, so that no task is left without
    problems = [own for task in heldout for own in make_problems(task, "validation", share, seed)]
    prompts = [own.prompt for own in problems[: speculative.num_problems]]
    rows = speculation_table(
        model,
        tokenizer,
        prompts,
        speculative,
        model_name=job.input(asset).table("checkpoints").to_pylist()[0]["kind"],
        device_name=device_name(),
        seed=seed,
        progress=job.progress,
    )
    job.draft.tables["speculative"] = rows
    job.draft.figures |= {f"speedup_{row['draft']}": row["speedup"] for row in rows.to_pylist()}


def record_sharing(job: Job, model: "HybridForCausalLM") -> None:
    """Write what the named placements share."""
    from apriel_assets.hybrid.matryoshka import sharing_table

    job.draft.tables["sharing"] = sharing_table(model)
    rows = job.draft.tables["sharing"].to_pylist()
    job.draft.figures |= {f"added_bytes_{row['placement']}": row["added_bytes"] for row in rows}
    job.draft.figures["shared_share"] = rows[0]["shared_share"]
