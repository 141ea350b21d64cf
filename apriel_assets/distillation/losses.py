"""Divergences between two language models' next-token distributions, without ever building [tokens, vocab].

At 8,192 tokens and a vocabulary of 128k the dense loss holds a dozen [tokens, vocab] matrices (23 GiB). Here
a chunk of tokens goes through both LM heads, gives its share of the loss and of the gradients, and is gone.
The gradients have a closed form, so the backward pass only scales them. With q = softmax(student logits / T)
and p = softmax(teacher logits / T):

    reverse KL     KL(q || p) = sum q (log q - log p)      d/dlogits = q (log q - log p - KL) / T
    forward KL     KL(p || q) = sum p (log p - log q)      d/dlogits = (q - p) / T
    cross entropy  -log q[target]                          d/dlogits = q - onehot(target)

Logits are rounded as the head emits them, gradients by them likewise; everything between is fp32. On a GPU a kernel of
two passes writes the gradient over the logits (`loss_kernel.py`). Same scheme as "Liger Kernel: Efficient Triton
Kernels for LLM Training" (arXiv 2410.10989), fused linear cross entropy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from apriel_assets.distillation.config import Loss
from apriel_assets.distillation.top_k import TopKTeacher, reverse_kl_to_top_k
from apriel_assets.errors import UserError

# Logits per chunk. CPU: 8 MiB per fp32 matrix, about the cache. GPU: 0.5 GiB in bf16, so that the head's gradient,
# which each chunk reads and writes as a whole, is touched rarely.
_CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**28}

# On a GPU up to so many chunks' products are added up in the head's own dtype, inside the matrix product: a sum in fp32
# would take twice the memory and another pass. Each product is summed in fp32 and rounded once, so n chunks in bf16 are
# about sqrt(n) / 2 times as inexact as the one rounding that autograd's dense gradient has.
_MOST_ROUNDINGS = 16

Formula = Callable[[Tensor, Any], tuple[Tensor, Tensor]]
"""From a chunk's logits and what they are held against to the summed loss and its gradient, in the logits' dtype."""


@dataclass(frozen=True)
class TeacherHead:
    """What the teacher says about the same tokens: final hidden states `[..., hidden]` and the head that
    reads them.

    Its hidden size may differ from the student's; its vocabulary may not.
    """

    hidden_states: Tensor
    head: nn.Linear


def token_loss(
    hidden_states: Tensor,
    head: nn.Linear,
    mask: Tensor,
    *,
    loss: Loss = "reverse_kl",
    teacher: TeacherHead | TopKTeacher | None = None,
    targets: Tensor | None = None,
    temperature: float = 1.0,
    num_tokens: int | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Return the loss over the masked-in tokens divided by `num_tokens`: a differentiable fp32 scalar, nats
    per token.

    Args:
        hidden_states: the student's, after its final norm, `[..., hidden]`.
        head: the student's LM head, with or without bias. Its weight and bias get gradients if they require
            them.
        mask: `[...]`, True where the next token counts. Other positions never reach a head.
        teacher: needed by the two KLs; gets no gradient. Stored top-k log-probs serve the reverse KL at T = 1.
        targets: next token ids, `[...]`; needed by cross entropy.
        num_tokens: tokens of the whole batch, over micro-batches and processes. None: those of this mask.
        chunk_tokens: tokens that go through the heads at once. None: as many as suit the device.

    Raises:
        UserError: no token counts, the two vocabularies differ, or stored log-probs that do not serve this loss.
    """
    mask = mask.bool()
    count = int(mask.sum())
    if count == 0:
        raise UserError("no loss-carrying token in the batch; each trace needs at least one completion token")
    chosen = hidden_states[mask]
    if loss == "cross_entropy":
        assert targets is not None, "cross entropy needs targets"
        formula, held_against = _formula(loss, chosen, temperature), partial(_pick, targets[mask])
    elif isinstance(teacher, TopKTeacher):
        teacher.check(loss, temperature, head.out_features)
        formula = _formula("reverse_kl_to_top_k", chosen, temperature)
        held_against = partial(_pick_both, teacher.token_ids[mask], teacher.log_probs[mask])
    else:
        assert teacher is not None, f"{loss} needs a teacher"
        check_vocabularies(head, teacher.head)
        formula = _formula(loss, chosen, temperature)
        held_against = partial(_teacher_logits, teacher.hidden_states.detach()[mask], teacher.head)
    size = chunk_tokens or _chunk_tokens(head)
    total = _HeadLoss.apply(chosen, head.weight, head.bias, formula, held_against, size)
    return total / (num_tokens or count)


@torch.no_grad()
def token_divergences(
    hidden_states: Tensor, head: nn.Linear, teacher: TeacherHead, *, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each token, KL(student || teacher), KL(teacher || student) and whether both agree on the
    top token.

    Args:
        hidden_states: the student's, `[tokens, hidden]`; the teacher's likewise. No gradients.

    Returns:
        reverse and forward KL, `[tokens]`, fp32 nats; agreement, `[tokens]`, bool.
    """
    check_vocabularies(head, teacher.head)
    reverse, forward, agree = [], [], []
    for chunk in _chunks(len(hidden_states), chunk_tokens or _chunk_tokens(head)):
        log_q = head(hidden_states[chunk]).float().log_softmax(-1)
        log_p = teacher.head(teacher.hidden_states[chunk]).float().log_softmax(-1)
        difference = log_q - log_p
        reverse.append((log_q.exp() * difference).sum(-1))
        forward.append(-(log_p.exp() * difference).sum(-1))
        agree.append(log_q.argmax(-1) == log_p.argmax(-1))
    return torch.cat(reverse), torch.cat(forward), torch.cat(agree)


@torch.no_grad()
def token_log_probs(
    hidden_states: Tensor, head: nn.Linear, targets: Tensor, *, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return each target's log-probability (nats, fp32) and whether it is the most likely token, both
    `[tokens]`.

    Args:
        hidden_states: `[tokens, hidden]`, at the position before each target.
        targets: token ids, `[tokens]`.
    """
    log_probs, is_top = [], []
    for chunk in _chunks(len(hidden_states), chunk_tokens or _chunk_tokens(head)):
        logits = head(hidden_states[chunk]).float()
        log_probs.append(-F.cross_entropy(logits, targets[chunk], reduction="none"))
        is_top.append(logits.argmax(-1) == targets[chunk])
    return torch.cat(log_probs), torch.cat(is_top)


def check_vocabularies(head: nn.Linear, teacher_head: nn.Linear) -> None:
    """Raise UserError unless both heads have as many logits."""
    if head.out_features != teacher_head.out_features:
        raise UserError(
            f"student has {head.out_features} logits, teacher {teacher_head.out_features};"
            " a divergence needs one vocabulary: take a teacher with the student's tokenizer"
        )


def reverse_kl(logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return KL(student || teacher) summed over tokens and its gradient by the logits, `[tokens, vocab]`."""
    log_q = (logits / temperature).log_softmax(-1)
    log_ratio = log_q - (teacher_logits / temperature).log_softmax(-1)
    q = log_q.exp_()  # in place here and below: each temporary is as large as a chunk's logits
    kl = (q * log_ratio).sum(-1, keepdim=True)
    return kl.sum(), log_ratio.sub_(kl).mul_(q).div_(temperature)


def forward_kl(logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return KL(teacher || student) summed over tokens and its gradient by the logits, `[tokens, vocab]`."""
    log_q = (logits / temperature).log_softmax(-1)
    log_p = (teacher_logits / temperature).log_softmax(-1)
    p = log_p.exp()
    kl = log_p.sub_(log_q).mul_(p).sum()
    return kl, log_q.exp_().sub_(p).div_(temperature)


def cross_entropy(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return -log q[target] summed over tokens and its gradient by the logits, `[tokens, vocab]`."""
    log_q = (logits / temperature).log_softmax(-1)
    loss = -log_q.gather(-1, targets[:, None]).sum()
    one_hot = log_q.new_full((len(targets), 1), -1.0)
    return loss, log_q.exp_().scatter_add_(-1, targets[:, None], one_hot).div_(temperature)


_FORMULAS: dict[str, Callable] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "cross_entropy": cross_entropy,
    "reverse_kl_to_top_k": lambda logits, stored, temperature: reverse_kl_to_top_k(logits, *stored),
}


def _pick(values: Tensor, chunk: slice) -> Tensor:
    return values[chunk]


def _pick_both(token_ids: Tensor, log_probs: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
    return token_ids[chunk], log_probs[chunk]


def _teacher_logits(hidden_states: Tensor, head: nn.Linear, chunk: slice) -> Tensor:
    return head(hidden_states[chunk])


def _formula(loss: str, hidden_states: Tensor, temperature: float) -> Formula:
    """Return the loss's fastest form on the device of its operands: the one place that decides."""
    if hidden_states.is_cuda and loss != "reverse_kl_to_top_k" and find_spec("triton") is not None:
        from apriel_assets.distillation.loss_kernel import loss_and_slope

        return partial(loss_and_slope, loss, temperature=temperature)
    # Eager, each formula walks [chunk, vocab] a dozen times. On CPU compiling costs more than it saves in a run of
    # minutes.
    rounded = _compiled(loss) if hidden_states.is_cuda else partial(_rounded, loss)
    return partial(rounded, temperature=temperature)


def _rounded(loss: str, logits: Tensor, reference: Any, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute in fp32; return the gradient in the logits' dtype."""
    if isinstance(reference, Tensor) and reference.is_floating_point():
        reference = reference.float()
    total, slope = _FORMULAS[loss](logits.float(), reference, temperature)
    return total, slope.to(logits.dtype)


@cache
def _compiled(loss: str) -> Callable:
    return torch.compile(partial(_rounded, loss), dynamic=True)


class _HeadLoss(torch.autograd.Function):
    """Sum of a loss over tokens by hidden states and head; the forward pass computes the gradients too."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, formula, reference, chunk_tokens):
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        wide = not hidden.is_cuda or len(hidden) > _MOST_ROUNDINGS * chunk_tokens
        grad_weight = (
            torch.zeros_like(weight, dtype=torch.float32 if wide else None) if needs_weight else None
        )
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for chunk in _chunks(len(hidden), chunk_tokens):
            loss, slope = formula(F.linear(hidden[chunk], weight, bias), reference(chunk))
            total += loss
            if grad_bias is not None:
                grad_bias += slope.sum(0, dtype=torch.float32)
            slope = slope.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(slope, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                _add_product(grad_weight, slope.T, hidden[chunk])
            del slope  # before the next chunk's logits are made
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.head_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, *grad_outputs):
        (scale,) = grad_outputs
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        # In place: a second [vocab, hidden] matrix would cost more than a chunk. Autograd refuses a second
        # backward.
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight.mul_(scale).to(ctx.head_dtype),
            None if grad_bias is None else grad_bias.mul_(scale).to(ctx.head_dtype),
            None,
            None,
            None,
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to `total` in place, without a second matrix of its size where dtypes allow."""
    if total.dtype == left.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def head_chunks(num_tokens: int, head: nn.Linear) -> Iterator[slice]:
    """Return the tokens that go through an LM head at once, of as many as suit its device."""
    return _chunks(num_tokens, _chunk_tokens(head))


def _chunk_tokens(head: nn.Linear) -> int:
    return max(1, _CHUNK_LOGITS.get(head.weight.device.type, _CHUNK_LOGITS["cuda"]) // head.out_features)


def _chunks(num_tokens: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, num_tokens, size))
