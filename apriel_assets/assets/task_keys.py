"""Names for tasks that change exactly when their problems would: partition keys and file fingerprints."""

import dataclasses
import re
from collections.abc import Sequence

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.paths import expanded
from resources.artifact_store import digest, file_digest


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
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", task.task)
    return f"{name}-{digest([dataclasses.asdict(task), file_digests([task])], 8)}"
