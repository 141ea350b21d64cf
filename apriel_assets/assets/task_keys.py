"""Names for tasks that change exactly when their problems would: partition keys and file fingerprints."""

import dataclasses
import re
from collections.abc import Sequence

from apriel_assets.errors import UserError
from apriel_assets.evaluation.lm_eval_config import MT_BENCH, JudgeConfig, LmEvalTask
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.paths import expanded
from apriel_assets.seals import digest, file_digest
from apriel_assets.slices import hashed_values


def file_digests(tasks: Sequence[TaskSpec]) -> dict[str, str]:
    """Return the hash of every file that the tasks read.

    Raises:
        UserError: a file that is not there or cannot be read.
    """
    return {path: _digest(path) for path in sorted({task.file for task in tasks if task.file})}


def _digest(path: str) -> str:
    file = expanded(path)
    try:
        if file.is_file():
            return file_digest(file)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; check the task's file: in the recipe"
        ) from error
    raise UserError(f"no file {path}; check the task's file: in the recipe")


def task_key(task: TaskSpec) -> str:
    """Return the task's partition key: its name, and a hash unless it is a procedural task as it comes.

    The key is all that tells two versions of a task apart, since a partition has no code version of its own.
    """
    if task.name and task == TaskSpec(name=task.name):
        return task.task
    name = _file_name(task.task)
    return f"{name}-{digest([dataclasses.asdict(task), file_digests([task])], 8)}"


def lm_eval_key(asked: LmEvalTask, judge: JudgeConfig | None) -> str:
    """Return the partition key of a task of the harness: its name, its shots, and a hash of all that decides its rows.

    Files that its own task files name are not looked into; the directory of these is.
    """
    decided = hashed_values({"task": asked, "judge": judge if asked.task == MT_BENCH else None})
    files = [_digest(asked.questions)] if asked.questions else []
    if asked.include_path:
        folder = expanded(asked.include_path)
        files += [file_digest(file) for file in sorted(folder.rglob("*")) if file.is_file()]
    name = _file_name(asked.task)
    shots = "" if asked.num_fewshot is None else f"-{asked.num_fewshot}shot"
    return f"{name}{shots}-{digest([decided, files], 8)}"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:100]
