"""A step's experience: problems, sampled completions, what each is worth, and its log-probabilities now and then."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.distillation.batches import Batch, Traces
from apriel_assets.distillation.causal_lm import final_hidden_states, lm_head
from apriel_assets.distillation.losses import head_chunks
from apriel_assets.evaluation.generation import generate_from_ids
from apriel_assets.evaluation.tasks.problems import Problem, verify
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.posttraining.config import GrpoConfig

Asked = tuple[TaskSpec, Problem]


@dataclass(frozen=True)
class Rollouts:
    """Groups of completions, completion after completion: group 0's first."""

    traces: Traces  # prompts and completions, `groups * samples`
    log_probs: tuple[tuple[float, ...], ...]  # of each completion's tokens when it was sampled, nats
    rewards: Tensor  # [groups, samples], 1 = right
    finished: tuple[bool, ...]  # ended by themselves


def sample_rollouts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    config: GrpoConfig,
    *,
    numbers: Sequence[int],
    seed: int,
    step: int,
) -> Rollouts:
    """Return completions of the active placement, with their tasks' verdicts.

    What is sampled is a function of (seed, step, number of the problem, number of the sample).

    Args:
        model: generates as in evaluation: with a KV cache, in batches.
        tokenizer: the model's.
        asked: the step's problems.
        config: samples, temperature, longest completion.
        numbers: what stands for each problem in its randomness.
        seed: of the run.
        step: from 0.
    """
    prompts = [list(ids) for ids in tokenizer([problem.prompt for _, problem in asked]).input_ids]
    groups = generate_from_ids(
        model,
        tokenizer,
        prompts,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        samples=config.samples,
        seed=int(np.random.SeedSequence([seed, step]).generate_state(1)[0]),
        batch_size=config.batch_size,
        numbers=numbers,
    )
    rewards = [
        [float(verify(task, problem, own.text)) for own in group]
        for (task, problem), group in zip(asked, groups, strict=True)
    ]
    flat = [(tuple(prompt), own) for prompt, group in zip(prompts, groups, strict=True) for own in group]
    return Rollouts(
        traces=Traces(tuple(prompt for prompt, _ in flat), tuple(tuple(own.token_ids) for _, own in flat)),
        # At a temperature of 1 they are the plain ones.
        log_probs=tuple(tuple(own.sampled_log_probs or own.log_probs) for _, own in flat),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        finished=tuple(own.finished for _, own in flat),
    )


def completion_log_probs(model: PreTrainedModel, batch: Batch, temperature: float) -> Tensor:
    """Return the log-probability of each completion token of a batch, row after row: `[tokens]`, fp32 nats.

    Gradients flow where they are on. Logits exist for a chunk of tokens at a time, and once more in the backward pass.

    Args:
        model: under its active placement.
        batch: on the model's device.
        temperature: divides the logits.
    """
    # No mask: padding is on the right and mixers are causal, so no token of a completion sees it.
    hidden = final_hidden_states(model, batch.input_ids)[batch.mask]
    targets = batch.targets[batch.mask]
    own = partial(_log_probs, lm_head(model), temperature)
    chunks = head_chunks(len(hidden), lm_head(model))
    return torch.cat([checkpoint(own, hidden[at], targets[at], use_reentrant=False) for at in chunks])


def _log_probs(head: torch.nn.Linear, temperature: float, hidden: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(head(hidden).float() / temperature, targets, reduction="none")


def micro_batches(traces: Traces, kept: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the kept completions, at most `size` at once, of similar length together."""
    lengths = traces.lengths()
    order = sorted(kept, key=lengths.__getitem__)
    yield from (order[start : start + size] for start in range(0, len(order), size))
