"""Chunked losses against the plain formula: values, gradients, masks, dtypes, memory shape."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apriel_assets.distillation.losses import TeacherHead, token_divergences, token_log_probs, token_loss
from apriel_assets.distillation.top_k import TopKTeacher
from apriel_assets.errors import UserError

VOCAB, HIDDEN, TEACHER_HIDDEN = 37, 12, 20


def make_case(dtype=torch.float32, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 9, HIDDEN, generator=generator).to(dtype).requires_grad_()
    teacher_hidden = torch.randn(3, 9, TEACHER_HIDDEN, generator=generator).to(dtype)
    head, teacher_head = nn.Linear(HIDDEN, VOCAB, bias=bias), nn.Linear(TEACHER_HIDDEN, VOCAB, bias=bias)
    for module in (head, teacher_head):
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    mask = torch.rand(3, 9, generator=generator) < 0.6
    mask[1] = False  # one row has no completion at all
    targets = torch.randint(VOCAB, (3, 9), generator=generator)
    return hidden, head.to(dtype), TeacherHead(teacher_hidden, teacher_head.to(dtype)), mask, targets


def plain_loss(kind, hidden, head, teacher, mask, targets, temperature, num_tokens):
    log_q = (head(hidden).float() / temperature).log_softmax(-1)[mask]
    if kind == "cross_entropy":
        return F.nll_loss(log_q, targets[mask], reduction="sum") / num_tokens
    log_p = (teacher.head(teacher.hidden_states).float() / temperature).log_softmax(-1)[mask]
    if kind == "reverse_kl":
        return (log_q.exp() * (log_q - log_p)).sum() / num_tokens
    return (log_p.exp() * (log_p - log_q)).sum() / num_tokens


def gradients(loss, hidden, head):
    tensors = [hidden, *head.parameters()]
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "cross_entropy"])
def test_values_and_gradients_equal_the_plain_formula(kind, temperature, bias):
    hidden, head, teacher, mask, targets = make_case(bias=bias)
    expected = plain_loss(kind, hidden, head, teacher, mask, targets, temperature, num_tokens=50)
    actual = token_loss(
        hidden, head, mask, loss=kind, teacher=teacher, targets=targets, temperature=temperature,
        num_tokens=50, chunk_tokens=4,
    )  # fmt: skip
    torch.testing.assert_close(actual, expected)
    # fp32, sums of 15 tokens in another order
    for mine, plain in zip(gradients(actual, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "cross_entropy"])
def test_bf16_inputs_give_an_fp32_loss_and_gradients_as_exact_as_autograd(kind):
    hidden, head, teacher, mask, targets = make_case(torch.bfloat16)
    arguments = {"loss": kind, "teacher": teacher, "targets": targets, "chunk_tokens": 4}
    actual = token_loss(hidden, head, mask, **arguments)
    expected = plain_loss(kind, hidden, head, teacher, mask, targets, 1.0, int(mask.sum()))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)
    for mine, plain in zip(gradients(actual, hidden, head), gradients(expected, hidden, head), strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, plain, atol=4e-3, rtol=2e-2)  # bf16 has 8 significant bits


def test_hand_arithmetic_of_reverse_kl():
    # student (3/4, 1/4), teacher (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2)
    head, teacher_head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    head.weight.data, teacher_head.weight.data = torch.eye(2), torch.eye(2)
    hidden = torch.tensor([[0.75, 0.25]]).log()
    loss = token_loss(
        hidden, head, torch.tensor([True]), teacher=TeacherHead(torch.zeros(1, 2), teacher_head)
    )
    assert loss.item() == pytest.approx(
        0.75 * torch.tensor(1.5).log().item() - 0.25 * torch.tensor(2.0).log().item()
    )


def test_chunk_size_does_not_change_the_loss():
    hidden, head, teacher, mask, _ = make_case()
    whole = token_loss(hidden, head, mask, teacher=teacher)
    for size in (1, 2, 7, 1000):
        torch.testing.assert_close(token_loss(hidden, head, mask, teacher=teacher, chunk_tokens=size), whole)


def test_masked_positions_get_no_gradient_and_may_hold_anything():
    hidden, head, teacher, mask, _ = make_case()
    poisoned = hidden.detach().clone()
    poisoned[~mask] = torch.nan
    poisoned.requires_grad_()
    loss = token_loss(poisoned, head, mask, teacher=teacher)
    torch.testing.assert_close(loss, token_loss(hidden, head, mask, teacher=teacher))
    (grad,) = torch.autograd.grad(loss, [poisoned])
    assert (grad[~mask] == 0).all()
    assert (grad[mask] != 0).any()


def test_micro_batches_with_one_normaliser_add_up_to_the_whole_batch():
    hidden, head, teacher, mask, _ = make_case()
    whole = token_loss(hidden, head, mask, teacher=teacher)
    parts = [
        token_loss(hidden[i], head, mask[i], teacher=TeacherHead(teacher.hidden_states[i], teacher.head),
                   num_tokens=int(mask.sum()))
        for i in (0, 2)
    ]  # fmt: skip
    torch.testing.assert_close(sum(parts), whole)


def test_frozen_head_gets_no_gradient():
    hidden, head, teacher, mask, _ = make_case()
    head.requires_grad_(False)
    token_loss(hidden, head, mask, teacher=teacher).backward()
    assert head.weight.grad is None
    assert hidden.grad is not None


def test_both_divergences_of_a_pass_equal_the_plain_formula():
    hidden, head, teacher, _, targets = make_case()
    student, other = (
        hidden.detach().flatten(0, 1),
        TeacherHead(teacher.hidden_states.flatten(0, 1), teacher.head),
    )
    reverse, forward, agree = token_divergences(student, head, other, chunk_tokens=5)
    log_q, log_p = head(student).log_softmax(-1), other.head(other.hidden_states).log_softmax(-1)
    torch.testing.assert_close(reverse, (log_q.exp() * (log_q - log_p)).sum(-1))
    torch.testing.assert_close(forward, (log_p.exp() * (log_p - log_q)).sum(-1))
    assert (agree == (log_q.argmax(-1) == log_p.argmax(-1))).all()
    log_probs, is_top = token_log_probs(student, head, targets.flatten(), chunk_tokens=5)
    torch.testing.assert_close(log_probs, log_q.gather(-1, targets.flatten()[:, None])[:, 0])
    assert (is_top == (log_q.argmax(-1) == targets.flatten())).all()


def test_a_model_has_no_divergence_from_itself():
    hidden, head, _, mask, _ = make_case()
    loss = token_loss(hidden, head, mask, teacher=TeacherHead(hidden.detach(), head))
    assert loss.item() == pytest.approx(0, abs=1e-6)


class LargestTensor(TorchDispatchMode):
    """Sees every tensor that any operation makes, in the backward pass too."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "cross_entropy"])
def test_no_tensor_is_larger_than_a_chunk_of_logits(kind):
    hidden, head, teacher, _, targets = make_case()
    mask = torch.ones(3, 9, dtype=torch.bool)
    with LargestTensor() as seen:
        token_loss(
            hidden, head, mask, loss=kind, teacher=teacher, targets=targets, chunk_tokens=10
        ).backward()
    # 10 of 27 tokens; the teacher's head, [37, 20], is an input
    assert seen.numel <= TEACHER_HIDDEN * VOCAB < len(mask.flatten()) * VOCAB


def test_refuses_an_empty_mask():
    hidden, head, teacher, mask, _ = make_case()
    with pytest.raises(UserError, match="no loss-carrying token"):
        token_loss(hidden, head, torch.zeros_like(mask), teacher=teacher)


def test_refuses_two_vocabularies():
    hidden, head, teacher, mask, _ = make_case()
    other = TeacherHead(teacher.hidden_states, nn.Linear(TEACHER_HIDDEN, VOCAB + 1))
    with pytest.raises(UserError, match="37 logits, teacher 38"):
        token_loss(hidden, head, mask, teacher=other)


def make_top_k(teacher, k):
    top = teacher.head(teacher.hidden_states).float().log_softmax(-1).topk(k)
    return TopKTeacher(top.indices.int(), top.values)


def joined_loss(hidden, head, teacher, mask, k):
    """The same with the tail as one outcome, by autograd."""
    log_q = head(hidden).log_softmax(-1)[mask]
    log_p = teacher.head(teacher.hidden_states).log_softmax(-1)[mask]
    kept = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, log_p.topk(k).indices, True)

    def joined(log_probs):
        tail = log_probs.masked_fill(kept, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([log_probs[kept].view(-1, k), tail], dim=-1)

    log_q, log_p = joined(log_q), joined(log_p)
    return (log_q.exp() * (log_q - log_p)).sum() / len(log_q)


def make_flat_case():
    """A teacher of whom no token is beneath the least tail that is believed."""
    hidden, head, teacher, mask, _ = make_case()
    return hidden, head, TeacherHead(0.2 * teacher.hidden_states, teacher.head), mask


@pytest.mark.parametrize("k", [1, 5, VOCAB - 1])
def test_stored_top_k_equals_the_plain_formula_with_one_tail(k):
    hidden, head, teacher, mask = make_flat_case()
    actual = token_loss(hidden, head, mask, teacher=make_top_k(teacher, k), chunk_tokens=4)
    expected = joined_loss(hidden, head, teacher, mask, k)
    torch.testing.assert_close(actual, expected)
    for mine, plain in zip(gradients(actual, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-6, rtol=1e-4)


def test_more_stored_log_probs_come_closer_to_the_full_loss_from_below():
    hidden, head, teacher, mask = make_flat_case()
    full = token_loss(hidden, head, mask, teacher=teacher).item()
    losses = [token_loss(hidden, head, mask, teacher=make_top_k(teacher, k)).item() for k in (1, 4, 16, 36)]
    assert losses == sorted(losses)
    assert losses[-1] == pytest.approx(full, abs=1e-4)  # a tail of one token
    assert losses[0] < 0.9 * full


def test_stored_top_k_of_a_sure_teacher_stays_finite():
    hidden, head, _, mask, _ = make_case()
    sure = TopKTeacher(torch.zeros(3, 9, 1, dtype=torch.int32), torch.zeros(3, 9, 1))
    loss = token_loss(hidden, head, mask, teacher=sure)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, hidden, head))


def test_stored_top_k_serves_only_what_it_can():
    hidden, head, teacher, mask, _ = make_case()
    stored = make_top_k(teacher, 3)
    with pytest.raises(UserError, match="not forward_kl at 1"):
        token_loss(hidden, head, mask, loss="forward_kl", teacher=stored)
    with pytest.raises(UserError, match="not reverse_kl at 2"):
        token_loss(hidden, head, mask, temperature=2.0, teacher=stored)
    with pytest.raises(UserError, match="no tail"):
        token_loss(hidden, head, mask, teacher=make_top_k(teacher, VOCAB))
