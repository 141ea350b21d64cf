"""Reinforcement learning of the released checkpoint, and the guard on every further training of it."""

from collections.abc import Sequence

from apriel_assets.assets.asset_plan import Job
from apriel_assets.assets.checkpoints import record_checkpoint
from apriel_assets.assets.loading import load_checkpoint, load_model_once, load_teacher_model
from apriel_assets.assets.release_builders import record_sharing
from apriel_assets.evaluation.comparison import OVERALL
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.placement import SAFE
from apriel_assets.posttraining.config import GrpoConfig
from resources.artifact_store import digest


def build_release_rl(
    job: Job, *, start: str, train: GrpoConfig, tasks: Sequence[TaskSpec], seed: int
) -> None:
    """The released checkpoint trained on its own answers to the tasks' problems, by the verifiers' verdicts (GRPO)."""
    from apriel_assets.evaluation.tasks.problems import make_problems
    from apriel_assets.posttraining.grpo import train_grpo

    _, tokenizer = load_teacher_model(job)
    model = load_checkpoint(job, start)
    asked = [
        (task, problem)
        for task in tasks
        for problem in make_problems(task, "train", train.num_problems, seed)
    ]
    curve = train_grpo(
        model,
        tokenizer,
        asked,
        train,
        model_name="release-rl",
        seed=seed + 2,
        resume_dir=job.work_dir,
        progress=job.progress,
    )
    record_checkpoint(
        job,
        model,
        curve,
        table="rl_training",
        name="release-rl",
        kind="release",
        parent=start,
        placements={rl_model(name): placement for name, placement in model.placements.items()},
    )
    record_sharing(job, model)
    rows = curve.to_pylist()
    job.draft.figures |= {
        "num_skipped_groups": sum(row["num_skipped_groups"] for row in rows),
        "num_groups": sum(row["num_groups"] for row in rows),
    }


def rl_model(name: str) -> str:
    """Return what a placement is called in tables after reinforcement learning: turbo-rl."""
    return f"{name}-rl"


def build_guard(
    job: Job,
    *,
    stage: str,
    before: str,
    after: str,
    guard: EvalConfig,
    heldout: Sequence[TaskSpec],
    seed: int,
) -> None:
    """What a further training changed: every placement on the same held-out problems, before and after."""
    from apriel_assets.posttraining.before_after import answer_by_placement, before_after_table

    _, tokenizer = load_teacher_model(job)
    answers = [  # one after the other: only one of the two models is kept
        answer_by_placement(
            load_model_once(job, asset), tokenizer, heldout, guard, seed=seed, progress=job.progress
        )
        for asset in (before, after)
    ]
    table = before_after_table(*answers, stage=stage, confidence=guard.confidence)
    job.draft.tables["before_after"] = table
    # What is made of the checkpoint after only asks for the verdict: other problems with the same one change nothing.
    versions = [job.input(asset).data_version for asset in (before, after)]
    changed = {row["placement"]: row["changed"] for row in table.to_pylist() if row["task"] == OVERALL}
    job.draft.data_version = digest([versions, changed[SAFE]])
    job.draft.figures |= {f"changed_{name}": own for name, own in changed.items()}
