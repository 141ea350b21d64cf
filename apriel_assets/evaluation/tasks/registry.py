"""The procedural tasks by name."""

from typing import Any

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.arithmetic import Arithmetic
from apriel_assets.evaluation.tasks.lists import Copy, Kth
from apriel_assets.evaluation.tasks.plain import Addition, Lookup, Reading, Repeat
from apriel_assets.evaluation.tasks.procedural import ProceduralTask
from apriel_assets.evaluation.tasks.recall import Recall
from apriel_assets.evaluation.tasks.retrieval import MultiKey, NeedleInNoise
from apriel_assets.evaluation.tasks.text import Text
from apriel_assets.evaluation.tasks.variables import Variables

# What the bundled teacher learnt, what is for models that read further, and what is for pretrained models.
_SHORT: tuple[ProceduralTask[Any], ...] = (Recall(), Copy(), Kth(), Arithmetic(), Variables())
_LONG: tuple[ProceduralTask[Any], ...] = (NeedleInNoise(), MultiKey())
_PLAIN: tuple[ProceduralTask[Any], ...] = (Addition(), Repeat(), Lookup(), Reading())
_UNASKED: tuple[ProceduralTask[Any], ...] = (Text(),)  # to train on, not to be judged by
_TASKS = {task.name: task for task in (*_SHORT, *_LONG, *_PLAIN, *_UNASKED)}


def task_names() -> tuple[str, ...]:
    """Return the names of the short procedural tasks, which the bundled teacher learnt."""
    return tuple(task.name for task in _SHORT)


def retrieval_names() -> tuple[str, ...]:
    """Return the names of the procedural tasks whose prompts are as long as one likes."""
    return tuple(task.name for task in _LONG)


def plain_names() -> tuple[str, ...]:
    """Return the names of the procedural tasks in plain language, for pretrained models."""
    return tuple(task.name for task in _PLAIN)


def find_task(name: str) -> ProceduralTask[Any]:
    """Return the procedural task of that name, or refuse the name."""
    if name not in _TASKS:
        raise UserError(f"unknown task {name!r}; tasks are {', '.join(_TASKS)}, or give file: or hub:")
    return _TASKS[name]
