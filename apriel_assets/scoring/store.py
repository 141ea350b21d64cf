"""The teacher's log-prob store: sampled completions with what the teacher gave each token, and a verdict.

It is made once and serves many: placements are scored on it by forward passes alone, and students can be
distilled on it.
"""

from collections.abc import Sequence

import pyarrow as pa
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.distillation.batches import Traces, length_sorted_batches
from apriel_assets.distillation.causal_lm import final_hidden_states, lm_head
from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import Completion, evaluating, generate
from apriel_assets.evaluation.tasks.problems import Problem, make_problems, verify
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.progress import Progress, silent
from apriel_assets.scoring.config import StoreConfig
from apriel_assets.tables.schemas import to_table

_TRACES_PER_PASS = 64


def sample_store(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    specs: Sequence[TaskSpec],
    config: StoreConfig,
    *,
    seed: int,
    progress: Progress = silent,
) -> pa.Table:
    """Return the `completions` table: `samples` completions of each of `problems` validation problems.

    Args:
        teacher: the model that answers.
        tokenizer: its tokenizer.
        specs: the tasks, which share the problems evenly.
        config: how many, at which temperature.
        seed: of the problems and of the sampling.
        progress: called with finished and all completions.

    Raises:
        UserError: too few distinct problems, prompts that do not fit the model.
    """
    asked = [
        (spec, problem)
        for spec, share in zip(specs, even_shares(config.problems, len(specs)), strict=True)
        for problem in make_problems(spec, "validation", share, seed)
    ]
    completions = generate(
        teacher,
        tokenizer,
        [problem.prompt for _, problem in asked],
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        samples=config.samples,
        seed=seed,
        batch_size=config.batch_size,
        progress=progress,
    )
    prompts = tokenizer([problem.prompt for _, problem in asked]).input_ids
    rows = [
        _row(spec, problem, prompt, number, sample, config)
        for (spec, problem), prompt, samples in zip(asked, prompts, completions, strict=True)
        for number, sample in enumerate(samples)
    ]
    if config.top_k_log_probs is not None:
        add_top_k(teacher, rows, config.top_k_log_probs)
    return to_table("completions", rows)


def even_shares(total: int, parts: int) -> list[int]:
    """Split a number into near-equal parts, larger ones first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def add_top_k(teacher: PreTrainedModel, rows: list[dict], k: int) -> None:
    """Add to each row the k likeliest tokens at each completion position, by one teacher-forced pass.

    Raises:
        UserError: k exceeds the vocabulary.
    """
    head = lm_head(teacher)
    if k > head.out_features:
        raise UserError(f"store.top_k_log_probs={k} exceeds the vocabulary of {head.out_features}")
    traces = Traces(
        tuple(tuple(row["prompt_token_ids"]) for row in rows), tuple(tuple(row["token_ids"]) for row in rows)
    )
    with evaluating(teacher), torch.inference_mode():
        for indices in length_sorted_batches(traces, _TRACES_PER_PASS):
            batch = traces.batch(indices).to(teacher.device)
            hidden = final_hidden_states(teacher, batch.input_ids, batch.attention_mask)
            for index, states, mask in zip(indices, hidden, batch.mask, strict=True):
                top = head(states[mask]).float().log_softmax(-1).topk(k)
                rows[index]["top_k_token_ids"] = top.indices.tolist()
                rows[index]["top_k_log_probs"] = top.values.tolist()


def _row(
    spec: TaskSpec, problem: Problem, prompt: list[int], number: int, sample: Completion, config: StoreConfig
) -> dict:
    return {
        "task": problem.task,
        "problem_id": problem.problem_id,
        "sample": number,
        "prompt": problem.prompt,
        "completion": sample.text,
        "answer": problem.answer,
        "correct": verify(spec, problem, sample.text),
        "finished": sample.finished,
        "temperature": config.temperature,
        "prompt_token_ids": prompt,
        "token_ids": sample.token_ids,
        "log_probs": sample.log_probs,
    }
