"""Make problems of a task and verify completions: the public face of this package.

A problem's whole text is `prompt + trace`: the trace brings the white space that separates them, so that
sub-word tokenizers see ordinary text when the two are tokenised apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks import registry
from apriel_assets.evaluation.tasks.answers import extract_answer
from apriel_assets.evaluation.tasks.procedural import Range
from apriel_assets.evaluation.tasks.rows import read_rows
from apriel_assets.evaluation.tasks.specs import SPLITS, Split, TaskSpec
from apriel_assets.evaluation.tasks.splits import content_digest, split_of

_MAX_BARREN_DRAWS = 2000  # in a row, before a task is called exhausted


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem with a reference solution."""

    task: str
    problem_id: str  # names the content: equal for the same problem in another phrasing
    prompt: str
    trace: str  # reference completion, final answer included; end-of-sequence follows it
    answer: str


def task_names() -> tuple[str, ...]:
    """Return the names of the short procedural tasks, which the bundled teacher learnt."""
    return registry.task_names()


def make_problems(spec: TaskSpec, split: Split, num: int, seed: int) -> list[Problem]:
    """Return `num` distinct problems of one split.

    The same arguments give the same problems, and a smaller `num` gives their beginning.

    Raises:
        UserError: unknown split, a task without that many distinct problems, an unreadable file.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; splits are {', '.join(SPLITS)}")
    if num < 0:
        raise UserError(f"{num} problems of task {spec.task} asked for; give 0 or more")
    rng = Random(f"{spec.task}/{split}/{seed}")
    if spec.name is None:
        return _choose_rows(spec, split, num, rng)
    problems: dict[str, Problem] = {}
    knobs = registry.find_task(spec.name).resolve_knobs(spec.knobs)
    barren = 0
    while len(problems) < num:
        problem = draw_problem(spec.name, knobs, split, rng)
        if problem is None or problem.problem_id in problems:
            barren += 1
            if barren > _MAX_BARREN_DRAWS:
                raise _too_few(spec, split, num, len(problems))
            continue
        barren = 0
        problems[problem.problem_id] = replace(problem, task=spec.task)
    return list(problems.values())


def draw_problem(name: str, knobs: Mapping[str, Range], split: Split, rng: Random) -> Problem | None:
    """Draw one problem of a procedural task; None if the draw belongs to another split.

    Args:
        name: the task's name.
        knobs: a range for every knob, as `resolve_knobs` returns them.
        split: the split that the problem must belong to.
        rng: source of the problem and its phrasing.
    """
    task = registry.find_task(name)
    content = task.draw(rng, knobs)
    digest = content_digest(name, task.identity(content))
    if split_of(digest) != split:
        return None
    prompt, trace, answer = task.prompt(content), task.trace(content, rng), task.answer(content)
    if not prompt[-1].isspace():
        trace = " " + trace
    return Problem(task=name, problem_id=f"{name}-{digest}", prompt=prompt, trace=trace, answer=answer)


def verify(task: str | TaskSpec, problem: Problem, completion: str) -> bool:
    """Return whether `completion` answers `problem`: however phrased, but wholly and without contradiction.

    Args:
        task: the spec that made the problem, or a procedural task's name.
        problem: the problem.
        completion: generated text without special tokens.
    """
    spec = TaskSpec(name=task) if isinstance(task, str) else task
    if spec.name is None:
        return extract_answer(completion, spec.answer_match, spec.answer_pattern) == problem.answer
    return registry.find_task(spec.name).verifies(problem.answer, completion)


def _choose_rows(spec: TaskSpec, split: Split, num: int, rng: Random) -> list[Problem]:
    problems: dict[str, Problem] = {}
    for row in read_rows(spec):
        digest = content_digest("rows", row.content)
        if spec.split_by == "file" or split_of(digest) == split:
            problem_id = f"{spec.task}-{digest}"
            problems[problem_id] = Problem(
                task=spec.task, problem_id=problem_id, prompt=row.prompt, trace=row.trace, answer=row.answer
            )
    if len(problems) < num:
        raise _too_few(spec, split, num, len(problems))
    chosen = list(problems.values())
    rng.shuffle(chosen)
    return chosen[:num]


def _too_few(spec: TaskSpec, split: Split, num: int, found: int) -> UserError:
    remedy = "widen its knobs" if spec.name else "add rows, or set split_by: file for data already split"
    return UserError(
        f"task {spec.task} has {found} distinct problems in split {split}, {num} asked for; "
        f"ask for at most {found}, or {remedy}"
    )
