"""How far a mixer's output is from full attention's on the same input: a loss, and a figure to watch.

    error = sum |mixer(x) - fa(x)|^2 / sum |fa(x)|^2     over the real tokens of a batch

1 is what a mixer that outputs nothing has; a mixer that replaces full attention exactly has 0.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from apriel_assets.distillation.batches import Batch
from apriel_assets.errors import UserError
from apriel_assets.hybrid.forward_context import active_context
from apriel_assets.hybrid.placement import FULL_ATTENTION

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM


@contextmanager
def matched_outputs(student: "HybridForCausalLM", attention_mask: Tensor) -> Iterator[list[Tensor]]:
    """Collect the errors of the active mixers while the student runs, one differentiable fp32 scalar a layer.

    The gradient of an error reaches its own mixer only: the mixer runs once more on a detached input, so no
    layer learns to make the next one's task easier. Layers that run or lack full attention add nothing.

    Args:
        attention_mask: `[batch, seq]`, nonzero at real tokens.

    Raises:
        UserError: gradient checkpointing is on, which runs layers again during the backward pass.
    """
    _refuse_checkpointing(student, "mixer_matching")
    errors: list[Tensor] = []

    def compare(bank: Any, args: tuple, kwargs: dict[str, Any], output: tuple) -> None:
        context = active_context()
        name = context.placement[bank.layer]
        if name == FULL_ATTENTION or FULL_ATTENTION not in bank.names:
            return
        args, kwargs = _detached(args), dict(zip(kwargs, _detached(kwargs.values()), strict=True))
        with torch.no_grad():
            wanted, _ = bank.mixers[FULL_ATTENTION](*args, **kwargs)
        mixed, _ = bank.mixers[name](context, bank.layer, *args, **kwargs)
        errors.append(output_error(mixed, wanted, attention_mask))

    with _after_banks(student, compare):
        yield errors


class AlignmentLoss(nn.Module):
    """Errors of all mixers of a supernet at once, each on its layer's input under the active placement.

    The forward pass is the active placement's, all-FA as a rule; beside it every mixer runs on the detached
    input of its layer. So one pass gives every mixer a gradient of its own, where distillation reaches one
    mixer a layer through all the noise of the others.
    """

    def __init__(self, student: "HybridForCausalLM") -> None:
        """
        Raises:
            UserError: gradient checkpointing is on.
        """
        super().__init__()
        _refuse_checkpointing(student, "align_steps")
        self.student = student
        self.teacher = None

    def forward(self, batch: Batch, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return the micro-batch's share of the mean error, twice: what is reported and what is minimised."""
        errors = _all_errors(cast(Any, self.student), batch)
        loss = torch.stack([error for found in errors.values() for error in found]).mean()
        loss = loss * batch.mask.sum() / num_tokens
        return loss.detach(), loss


@torch.no_grad()
def mixer_errors(supernet: "HybridForCausalLM", batch: Batch) -> dict[str, float]:
    """Return each mixer's error, mean over the layers that hold it, on the inputs of the active placement.

    One pass: each bank's other mixers run on the input that its active one gets.
    """
    errors = _all_errors(supernet, batch)
    return {name: torch.stack(found).mean().item() for name, found in errors.items()}


def _all_errors(supernet: "HybridForCausalLM", batch: Batch) -> dict[str, list[Tensor]]:
    """Return the errors of each mixer, one for each layer that holds it and full attention."""
    errors: dict[str, list[Tensor]] = {}

    def compare(bank: Any, args: tuple, kwargs: dict[str, Any], output: tuple) -> None:
        if FULL_ATTENTION not in bank.names:
            return
        context = active_context()
        args, kwargs = _detached(args), dict(zip(kwargs, _detached(kwargs.values()), strict=True))
        with torch.no_grad():
            wanted, _ = bank.mixers[FULL_ATTENTION](*args, **kwargs)
        for name in bank.names:
            if name != FULL_ATTENTION:
                mixed, _ = bank.mixers[name](context, bank.layer, *args, **kwargs)
                error = output_error(mixed, wanted, batch.attention_mask)
                errors.setdefault(name, []).append(error)

    with _after_banks(supernet, compare):
        supernet.final_hidden_states(batch.input_ids, packing=batch.packing)
    return errors


def output_error(mixed: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Return the squared error over the squared size of `wanted`, an fp32 scalar.

    Args:
        mixed: `[batch, seq, hidden]`.
        wanted: likewise; zero everywhere gives NaN or inf.
        mask: `[batch, seq]`, nonzero at tokens that count.
    """
    real = mask.bool()
    wanted = wanted[real].float()
    return (mixed[real].float() - wanted).square().sum() / wanted.square().sum()


def _refuse_checkpointing(student: "HybridForCausalLM", option: str) -> None:
    if any(getattr(module, "gradient_checkpointing", False) for module in student.modules()):
        raise UserError(f"{option} does not work with gradient checkpointing; switch one of them off")


@contextmanager
def _after_banks(model: "HybridForCausalLM", hook: Callable[..., None]) -> Iterator[None]:
    handles = [bank.register_forward_hook(hook, with_kwargs=True) for bank in model.banks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _detached(values: Any) -> tuple:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in values)
