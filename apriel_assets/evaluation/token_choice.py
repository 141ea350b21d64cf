"""How the next token of each row is chosen, and when a row is done."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_LEAST_TEMPERATURE = 1e-30  # under it, fp32 knows none


def choose_tokens(logits: Tensor, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's next token `[batch]` and its log-probability `[2, batch]`, at T=1 and as sampled."""
    log_probs = logits.float().log_softmax(-1)
    if temperature == 0:
        chosen = log_probs.argmax(-1)
        figure = log_probs.gather(-1, chosen[:, None])[:, 0]
        return chosen, torch.stack([figure, figure])
    # From the likeliest down, as in serving: at a temperature near 0 all would be infinite else.
    below = log_probs if temperature == 1 else log_probs - log_probs.amax(-1, keepdim=True)
    sampled = (
        log_probs if temperature == 1 else (below / max(temperature, _LEAST_TEMPERATURE)).log_softmax(-1)
    )
    # Inverse transform: the first token whose cumulative probability exceeds u. One uniform number a token
    # makes the choice independent of the batch. fp64, since fp32 sums over a vocabulary lose the rare tokens.
    cumulative = sampled.double().exp().cumsum(-1)
    thresholds = uniforms[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, thresholds, right=True).clamp(max=logits.shape[-1] - 1)
    return chosen[:, 0], torch.stack([log_probs.gather(-1, chosen)[:, 0], sampled.gather(-1, chosen)[:, 0]])


def uniforms_for(seed: int, rows: Sequence[tuple[int, int]], num_tokens: int, temperature: float) -> Tensor:
    """Return numbers in [0, 1), `[rows, num_tokens]`, fp64, each row's from its own generator."""
    if temperature == 0:
        return torch.zeros(len(rows), num_tokens, dtype=torch.float64)
    draws = [np.random.default_rng([seed, *row]).random(num_tokens) for row in rows]
    return torch.from_numpy(np.stack(draws))


class StopStrings:
    """Tells which rows of tokens have come to hold a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self._tokenizer, self._strings = tokenizer, [string for string in strings if string]
        # A string takes at most as many tokens as characters; two more, since a cut character decodes differently.
        self.width = max((len(string.encode()) for string in self._strings), default=0) + 2

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return whether `[rows, seq]` tokens hold one, `[rows]`; to look at the last `width` is enough each time."""
        texts = self._tokenizer.batch_decode(tokens)
        held = [any(string in text for string in self._strings) for text in texts]
        return torch.tensor(held, dtype=torch.bool, device=tokens.device)
