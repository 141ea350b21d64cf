"""Generation by the decode runner: static caches, a step as one graph. On a GPU many times as fast as step by step.

Rows that have ended stay in the batch, unlike in `generation`, until all have.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from apriel_assets.errors import UserError
from apriel_assets.evaluation.decode_runner import DecodeRunner
from apriel_assets.evaluation.decode_runner_layers import check_decodable
from apriel_assets.evaluation.generation import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def runner_for(
    model: "PreTrainedModel", num_rows: int, num_tokens: int, temperature: float
) -> DecodeRunner | None:
    """Return a runner for rows of at most `num_tokens`, or None where it does not pay or cannot run."""
    if not applies(model, num_tokens, temperature):
        return None
    return DecodeRunner(cast(Any, model), batch_size=num_rows, capacity=num_tokens)


def complete(
    runner: DecodeRunner,
    prompts: Sequence[Sequence[int]],
    draws: Tensor,
    temperature: float,
    stop_ids: Sequence[int],
) -> list[Completion]:
    """Return a completion, without its text, of each prompt.

    Args:
        prompts: at most as many as the runner has rows.
        draws: numbers in [0, 1) that choose the tokens, `[prompts, num_tokens]`.
        temperature: 0 or 1.
        stop_ids: tokens that end a row.
    """
    idle = runner.batch_size - len(prompts)  # rows that repeat the last prompt, and are left out
    runner.prefill([*prompts, *[prompts[-1]] * idle])
    draws = torch.cat([draws, draws[-1:].expand(idle, -1)])
    decoded = runner.decode(draws.shape[1], temperature=temperature, draws=draws, stop_ids=stop_ids)
    return [Completion(row.token_ids, row.log_probs, "", row.finished) for row in decoded[: len(prompts)]]


def applies(model: Any, num_tokens: int, temperature: float) -> bool:
    """Whether the runner writes for this model: a hybrid on a GPU that it can decode."""
    # The runner keeps log-probabilities at a temperature of 1 only.
    if model.device.type != "cuda" or temperature not in (0, 1) or not hasattr(model, "banks"):
        return False
    try:
        check_decodable(model, num_tokens)
    except UserError:
        return False
    return True
