"""Reduce one placement's final hidden states to a few numbers per completion, without [tokens, vocab]."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apriel_assets.distillation.batches import Batch
from apriel_assets.distillation.losses import TeacherHead, check_vocabularies

# Logits per chunk and model: as many as a CPU cache holds, more on a GPU.
_CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**27}


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """About each completion token of a batch, `[tokens]`, row after row."""

    log_q: Tensor  # log-probability of the stored token, fp32 nats
    kl: Tensor  # KL(placement || teacher) of the distribution that it was drawn from, fp32 nats
    is_top: Tensor  # whether it is the likeliest token

    def sums(self, batch: Batch) -> Tensor:
        """Return the three sums of each completion, `[3, batch]`, fp64, on the CPU."""
        rows = batch.mask.nonzero()[:, 0]
        values = torch.stack([self.log_q.double(), self.kl.double(), self.is_top.double()])
        return values.new_zeros(3, len(batch.mask)).index_add_(1, rows, values).cpu()


def token_figures(
    hidden_states: Tensor, head: nn.Linear, targets: Tensor, teacher: TeacherHead
) -> TokenFigures:
    """Compare a placement with the teacher at each completion token.

    Args:
        hidden_states: the placement's, after its final norm, `[tokens, hidden]`; the teacher's likewise.
        head: the placement's LM head.
        targets: stored token ids, `[tokens]`.

    Raises:
        UserError: the two heads have different vocabularies.
    """
    check_vocabularies(head, teacher.head)
    size = max(1, _CHUNK_LOGITS.get(hidden_states.device.type, _CHUNK_LOGITS["cpu"]) // head.out_features)
    log_q, kl, is_top = [], [], []
    for start in range(0, len(hidden_states), size):
        chunk = slice(start, start + size)
        log_probs = head(hidden_states[chunk]).float().log_softmax(-1)
        reference = teacher.head(teacher.hidden_states[chunk]).float().log_softmax(-1)
        log_q.append(log_probs.gather(-1, targets[chunk, None])[:, 0])
        is_top.append(log_probs.argmax(-1) == targets[chunk])
        kl.append((log_probs.exp() * (log_probs - reference)).sum(-1))
    return TokenFigures(torch.cat(log_q), torch.cat(kl), torch.cat(is_top))
