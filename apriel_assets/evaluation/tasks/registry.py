"""The procedural tasks by name."""

from typing import Any

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.arithmetic import Arithmetic
from apriel_assets.evaluation.tasks.lists import Copy, Kth
from apriel_assets.evaluation.tasks.procedural import ProceduralTask
from apriel_assets.evaluation.tasks.recall import Recall
from apriel_assets.evaluation.tasks.variables import Variables

_TASKS: dict[str, ProceduralTask[Any]] = {
    task.name: task for task in (Recall(), Copy(), Kth(), Arithmetic(), Variables())
}


def task_names() -> tuple[str, ...]:
    """Return the names of the procedural tasks."""
    return tuple(_TASKS)


def find_task(name: str) -> ProceduralTask[Any]:
    """Return the procedural task of that name, or refuse the name."""
    if name not in _TASKS:
        raise UserError(f"unknown task {name!r}; tasks are {', '.join(_TASKS)}, or give file: or hub:")
    return _TASKS[name]
