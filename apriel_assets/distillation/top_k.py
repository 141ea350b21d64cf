"""Reverse KL to a teacher of whom only the k largest log-probs of each token were stored.

What is outside the k counts as one outcome, the tail, with what mass is left on either side:

    L = sum over the k of q_v (log q_v - log p_v)  +  q_tail (log q_tail - log p_tail),    d/dlogits = q (c - L)

with c_v = log q_v - log p_v among the k and log q_tail - log p_tail elsewhere. Joining outcomes can only lower a
divergence (data processing inequality): L is at most the full KL, and what is missing is q_tail times the KL within the
tail. `benchmarks/loss_gpu.py` reports that bias for several k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from apriel_assets.errors import UserError

# Below this mass, 1 - sum(p) of fp32 log-probs is rounding: the teacher's tail is then taken to weigh this much.
_LEAST_TAIL = 1e-6


@dataclass(frozen=True)
class TopKTeacher:
    """What was stored of a teacher, at T = 1, for each token.

    Attributes:
        token_ids: the k likeliest, `[..., k]`, different from each other.
        log_probs: their log-probs, `[..., k]`, nats.
    """

    token_ids: Tensor
    log_probs: Tensor

    def check(self, loss: str, temperature: float, vocab_size: int) -> None:
        """Check that these serve a loss.

        Raises:
            UserError: another loss than the reverse KL, another temperature than 1, or nothing outside the k.
        """
        if loss != "reverse_kl" or temperature != 1:
            raise UserError(
                f"stored top-k log-probs serve the loss reverse_kl at temperature 1, not {loss} at {temperature:g}; "
                "keep the teacher in memory for that"
            )
        if self.token_ids.shape[-1] >= vocab_size:
            raise UserError(
                f"{self.token_ids.shape[-1]} stored log-probs leave no tail in a vocabulary of {vocab_size}; "
                "store fewer"
            )


def reverse_kl_to_top_k(logits: Tensor, token_ids: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss summed over tokens and its gradient by the logits.

    Args:
        logits: the student's, `[tokens, vocab]`, fp32.
        token_ids: the teacher's likeliest, `[tokens, k]`.
        log_probs: the teacher's log-probs of these, `[tokens, k]`, nats.
    """
    token_ids, log_p = token_ids.long(), log_probs.float()
    log_q = logits.log_softmax(-1)
    # Over what is left, not 1 - sum: that would be all rounding where the student is as sure as the teacher.
    log_q_tail = log_q.scatter(-1, token_ids, -torch.inf).logsumexp(-1, keepdim=True)
    log_p_tail = (1 - log_p.exp().sum(-1, keepdim=True)).clamp_min(_LEAST_TAIL).log()
    log_q_kept = log_q.gather(-1, token_ids)
    kept, tail = log_q_kept - log_p, log_q_tail - log_p_tail
    kl = (log_q_kept.exp() * kept).sum(-1, keepdim=True) + log_q_tail.exp() * tail
    ratio = tail.expand_as(log_q).scatter(-1, token_ids, kept)
    return kl.sum(), log_q.exp() * (ratio - kl)
