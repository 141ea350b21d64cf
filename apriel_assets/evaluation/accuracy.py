"""How good a model is on one task: generated accuracy, and divergence from the teacher on reference traces.

Accuracy is what matters and needs hundreds of problems to move; the divergence sees every token's
distribution and tells two checkpoints apart long before. Both have intervals over problems.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.distillation.batches import Traces, length_sorted_batches
from apriel_assets.distillation.causal_lm import final_hidden_states, lm_head
from apriel_assets.distillation.losses import TeacherHead, token_divergences
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.generation import Completion, evaluating, generate
from apriel_assets.evaluation.tasks.problems import Problem, make_problems, verify
from apriel_assets.evaluation.tasks.specs import Split, TaskSpec
from apriel_assets.progress import Progress, silent
from apriel_assets.tables.schemas import to_table

_TRACES_PER_BATCH = 64


def evaluate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskSpec,
    config: EvalConfig,
    *,
    model_name: str,
    teacher: PreTrainedModel | None = None,
    split: Split = "test",
    seed: int = 0,
    progress: Progress = silent,
) -> pa.Table:
    """Return `eval_samples` rows of one task: each problem's completion, verdict and KL to the teacher.

    Args:
        model: what is evaluated.
        tokenizer: its tokenizer, and the teacher's.
        task: gives the problems.
        config: how many problems, how long the completions.
        model_name: goes into the rows.
        teacher: what the divergences are measured against; None: they are null.
        split: which of the task's problems.
        seed: of the problem draw.
        progress: called with answered and all problems.

    Raises:
        UserError: too few problems, a prompt that does not fit, another vocabulary than the teacher's.
    """
    problems = make_problems(task, split, config.num_problems, seed)
    answers = _answers(model, tokenizer, [(task, problems)], config, progress)
    rows = [
        {
            "model": model_name,
            "task": task.task,
            "problem_id": problem.problem_id,
            "correct": correct,
            "tokens": len(completion.token_ids),
            "finished": completion.finished,
            "completion": completion.text,
            "seed": seed,
        }
        for problem, (correct, completion) in zip(problems, answers, strict=True)
    ]
    if teacher is not None:
        traces = Traces.from_problems(problems, tokenizer)
        for row, figures in zip(rows, _divergences(model, teacher, traces), strict=True):
            row |= figures
    return to_table("eval_samples", rows)


def _divergences(
    model: PreTrainedModel, teacher: PreTrainedModel, traces: Traces
) -> list[dict[str, float | int]]:
    """Return each trace's tokens and mean KL both ways."""
    reverse, forward, owners = (part.numpy() for part in divergences_per_token(model, teacher, traces))
    tokens = np.bincount(owners)
    means = (np.bincount(owners, weights=values) / tokens for values in (reverse, forward))
    names = ("trace_tokens", "reverse_kl_nats", "forward_kl_nats")
    columns = [values.tolist() for values in (tokens, *means)]
    return [dict(zip(names, figures, strict=True)) for figures in zip(*columns, strict=True)]


def answer_problems(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskSpec,
    problems: Sequence[Problem],
    config: EvalConfig,
    *,
    progress: Progress = silent,
) -> list[bool]:
    """Return whether the model's greedy completion, cut off or not, answers each problem."""
    return answer_tasks(model, tokenizer, [(task, problems)], config, progress=progress)


def answer_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[TaskSpec, Sequence[Problem]]],
    config: EvalConfig,
    *,
    progress: Progress = silent,
) -> list[bool]:
    """Return the verdicts on several tasks' problems, task after task; all are generated together."""
    return [correct for correct, _ in _answers(model, tokenizer, asked, config, progress)]


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[TaskSpec, Sequence[Problem]]],
    config: EvalConfig,
    progress: Progress,
) -> list[tuple[bool, Completion]]:
    """Return the verdict on each problem's greedy completion, and that."""
    pairs = [(task, problem) for task, problems in asked for problem in problems]
    completions = generate(
        model,
        tokenizer,
        [problem.prompt for _, problem in pairs],
        max_new_tokens=config.max_new_tokens,
        temperature=0.0,
        batch_size=config.batch_size,
        progress=progress,
    )
    return [
        (verify(task, problem, samples[0].text), samples[0])
        for (task, problem), samples in zip(pairs, completions, strict=True)
    ]


def divergences_per_token(
    model: PreTrainedModel, teacher: PreTrainedModel, traces: Traces
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each completion token, KL(model || teacher), KL(teacher || model) and its trace.

    All `[completion tokens]`: fp32 nats, fp32 nats, index into `traces`. The logits exist for a chunk of
    tokens at a time only.

    Raises:
        UserError: the two have different vocabularies.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluating(model), evaluating(teacher), torch.inference_mode():
        for indices in length_sorted_batches(traces, _TRACES_PER_BATCH):
            batch = traces.batch(indices)
            owners = torch.tensor(indices)[:, None].expand_as(batch.mask)[batch.mask]
            here = batch.to(model.device)
            hidden = final_hidden_states(model, here.input_ids, here.attention_mask)[here.mask]
            there = batch.to(teacher.device)
            reference = final_hidden_states(teacher, there.input_ids, there.attention_mask)[there.mask]
            head = TeacherHead(reference.to(hidden.device), lm_head(teacher))
            reverse, forward, _ = token_divergences(hidden, lm_head(model), head)
            found.append((reverse.cpu(), forward.cpu(), owners))
    reverse, forward, owners = (torch.cat(parts) for parts in zip(*found, strict=True))
    return reverse, forward, owners
