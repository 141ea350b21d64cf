"""Our procedural tasks as tasks of the harness: its task files (`lm_eval_tasks/`) call these two functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from apriel_assets.evaluation.tasks.problems import Problem, make_problems, verify
from apriel_assets.evaluation.tasks.specs import Split, TaskSpec

_FIELDS = ("task", "problem_id", "prompt", "trace", "answer")


def drawn(
    *,
    name: str,
    num_problems: int,
    seed: int,
    knobs: Mapping[str, Any] | None = None,
    split: Split = "test",
    **_: Any,  # what else the harness knows of the task and the model
) -> dict[str, Dataset]:
    """Return problems of a procedural task, drawn now, as the harness's data set.

    Raises:
        UserError: an unknown task or knob, too few distinct problems.
    """
    spec = TaskSpec(name=name, knobs={key: _knob(value) for key, value in (knobs or {}).items()})
    problems = make_problems(spec, split, num_problems, seed)
    return {"test": Dataset.from_list([{key: getattr(own, key) for key in _FIELDS} for own in problems])}


def _knob(value: Any) -> int | tuple[int, int]:
    return value if isinstance(value, int) else (int(value[0]), int(value[1]))


def judged(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return the verifier's verdict on a completion."""
    problem = Problem(**{key: doc[key] for key in _FIELDS})
    return {"accuracy": float(verify(problem.task, problem, results[0]))}
