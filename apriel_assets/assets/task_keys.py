"""Names for tasks that change exactly when their problems would: partition keys and file fingerprints."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.specs import TaskSpec
from resources.artifact_store import digest, file_digest


def file_digests(tasks: Sequence[TaskSpec]) -> dict[str, str]:
    """Return the hash of every file that the tasks read.

    Raises:
        UserError: a file that is not there.
    """
    paths = sorted({task.file for task in tasks if task.file})
    for path in paths:
        if not Path(path).expanduser().is_file():
            raise UserError(f"no file {path}; check the task's file: in the recipe")
    return {path: file_digest(Path(path).expanduser()) for path in paths}


def task_key(task: TaskSpec) -> str:
    """Return the task's partition key: its name, and a hash unless it is a procedural task as it comes.

    The key is all that tells two versions of a task apart, since a partition has no code version of its own.
    """
    if task.name and task == TaskSpec(name=task.name):
        return task.task
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", task.task)
    return f"{name}-{digest([dataclasses.asdict(task), file_digests([task])], 8)}"
