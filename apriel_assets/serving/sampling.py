"""How the next token is chosen, each row of a batch in its own way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import choose_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What determines a completion, given model and prompt."""

    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # only the likeliest tokens that together have this probability
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be 0 or more")


def probabilities(logits: Tensor, rows: Sequence[Sampling]) -> Tensor:
    """Return the distribution that each row's next token is drawn from; a greedy row's has a single token.

    Args:
        logits: `[batch, vocab]`.
        rows: how each row samples.

    Returns:
        `[batch, vocab]`, fp32.
    """
    temperatures = torch.tensor([row.temperature for row in rows], device=logits.device)[:, None]
    greedy = temperatures == 0
    # From the likeliest down: divided by a temperature of 1e-38, others would be infinite.
    below = logits.float() - logits.float().amax(-1, keepdim=True)
    found = (below / temperatures.masked_fill(greedy, 1)).softmax(-1)
    if any(row.top_p < 1 for row in rows):
        found = _nucleus(found, torch.tensor([row.top_p for row in rows], device=logits.device)[:, None])
    if bool(greedy.any()):
        single = torch.zeros_like(found).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        found = torch.where(greedy, single, found)
    return found


def _nucleus(found: Tensor, top_p: Tensor) -> Tensor:
    ordered, order = found.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0)
    kept = torch.zeros_like(found).scatter_(-1, order, kept)
    return kept / kept.sum(-1, keepdim=True)


def draw(found: Tensor, uniforms: Tensor) -> Tensor:
    """Return a token of each row's distribution, `[batch]`.

    Args:
        found: weights, `[batch, vocab]`; they need not add up to 1.
        uniforms: numbers in [0, 1), `[batch]`, fp64.
    """
    return choose_tokens(found.log(), 1.0, uniforms)[0]


def next_tokens(logits: Tensor, rows: Sequence[Sampling], uniforms: Tensor) -> Tensor:
    """Return each row's next token, `[batch]`; `logits` is `[batch, vocab]`, `uniforms` as for `draw`."""
    if all(row.temperature == 0 for row in rows):
        return logits.argmax(-1)
    return draw(probabilities(logits, rows), uniforms)
