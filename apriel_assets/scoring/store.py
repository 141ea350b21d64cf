"""The teacher's log-prob store: sampled completions with what the teacher gave each token, and a verdict.

It is made once and serves many: placements are scored on it by forward passes alone, and students can be distilled
on it.
"""

from collections.abc import Sequence

import pyarrow as pa
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.evaluation.generation import Completion, generate
from apriel_assets.evaluation.tasks.problems import Problem, make_problems, verify
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.progress import Progress, silent
from apriel_assets.scoring.config import StoreConfig
from apriel_assets.tables.schemas import to_table


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
    share = -(-config.problems // len(specs))
    asked = [
        (spec, problem) for spec in specs for problem in make_problems(spec, "validation", share, seed)
    ][: config.problems]
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
    return to_table("completions", rows)


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
