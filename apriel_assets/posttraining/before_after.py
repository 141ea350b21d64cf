"""What further training changed: every placement on the same held-out problems, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.evaluation.accuracy import answer_tasks
from apriel_assets.evaluation.comparison import ComparisonRow, compare
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.tasks.problems import make_problems
from apriel_assets.evaluation.tasks.specs import Split, TaskSpec
from apriel_assets.hybrid.equality import probe_logits
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.progress import Progress, silent
from apriel_assets.tables.schemas import to_table

_CHANGED = {"a": "better", "b": "worse", None: "none"}  # A is after, B before


@dataclass(frozen=True)
class Answers:
    """What one placement of a checkpoint does."""

    samples: pa.Table  # `eval_samples` rows
    logits: Tensor  # on the probe batch


def answer_by_placement(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[TaskSpec],
    config: EvalConfig,
    *,
    split: Split = "validation",
    seed: int,
    progress: Progress = silent,
) -> dict[str, Answers]:
    """Return what each named placement answers, greedily; the active one is put back.

    Args:
        model: with named placements.
        tokenizer: its tokenizer.
        tasks: give the problems.
        config: how many problems of each task, how long the completions.
        split: of the problems.
        seed: of their draw: the same one gives the same problems.
        progress: called with answered and all problems of each placement.

    Raises:
        UserError: too few problems, or one that does not fit.
    """
    asked = [(task, make_problems(task, split, config.num_problems, seed)) for task in tasks]
    names = [(task.task, problem.problem_id) for task, problems in asked for problem in problems]
    active, found = model.placement, {}
    for name, placement in model.placements.items():
        model.set_placement(placement)
        verdicts = answer_tasks(model, tokenizer, asked, config, progress=progress)
        rows = [
            {"model": name, "task": task, "problem_id": problem, "correct": correct, "seed": seed}
            for (task, problem), correct in zip(names, verdicts, strict=True)
        ]
        found[name] = Answers(to_table("eval_samples", rows), probe_logits(model, placement))
    model.set_placement(active)
    return found


def before_after_table(
    before: Mapping[str, Answers], after: Mapping[str, Answers], *, stage: str, confidence: float = 0.95
) -> pa.Table:
    """Return `before_after` rows: of each placement, over all tasks first, then each task.

    Raises:
        UserError: the two have not the same placements.
    """
    if before.keys() != after.keys():
        raise UserError(
            f"placements before and after differ: {', '.join(before)} and {', '.join(after)}; compare one checkpoint's"
        )
    rows = []
    for name in after:
        pair = (after[name].samples, before[name].samples)
        moved = (after[name].logits - before[name].logits.to(after[name].logits.device)).abs().max().item()
        rows += [
            {"stage": stage, "placement": name, "max_logit_difference": moved, **_figures(own)}
            for own in compare([pair], ["accuracy"], confidence=confidence)
        ]
    return to_table("before_after", rows)


def _figures(row: ComparisonRow) -> dict[str, object]:
    same = ("task", "num_problems", "num_differing", "difference", "low", "high", "p_value", "could_hide")
    own = {name: getattr(row, name) for name in same}
    return {**own, "before": row.b, "after": row.a, "changed": _CHANGED[row.better]}
