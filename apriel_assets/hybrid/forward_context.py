"""What the banks need to know about the forward pass they are in, whatever the architecture hands down.

Decoder layers pass a prepared attention mask or none at all, and each architecture its own keyword arguments.
Mixers need the raw padding mask, the placement and the cache. The model sets them once per forward pass;
activation checkpointing runs layers again later, maybe after other passes, so the recomputation gets the same
context back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from apriel_assets.hybrid.packing import Packing
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ForwardContext:
    """One forward pass of one model."""

    placement: Placement
    skipped: frozenset[int] = frozenset()  # layers whose mixer adds nothing
    padding_mask: torch.Tensor | None = (
        None  # [batch, past + seq], nonzero at real tokens; None: all are real
    )
    packing: Packing | None = None  # where rows are packed; they have no padding then
    # Shared by layers that need the same.
    attention_masks: dict[Any, torch.Tensor | None] = field(default_factory=dict)
    token_masks: dict[int, torch.Tensor | None] = field(default_factory=dict)

    def token_mask(self, seq_len: int) -> torch.Tensor | None:
        """Return which of this pass's tokens are real, `[batch, seq]`, or None when all are."""
        if seq_len not in self.token_masks:
            mask = None if self.padding_mask is None else self.padding_mask[:, -seq_len:]
            # Looked at once a pass, so that no layer masks what needs none. Not on a GPU: it would have to wait.
            if mask is not None and mask.device.type == "cpu" and bool(mask.all()):
                mask = None
            self.token_masks[seq_len] = mask
        return self.token_masks[seq_len]


_ACTIVE: ContextVar[ForwardContext | None] = ContextVar("forward_context", default=None)


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Make this the context of every bank called within."""
    token = _ACTIVE.set(context)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def active_context() -> ForwardContext:
    """Return the context of the forward pass that is running.

    Raises:
        RuntimeError: a decoder layer was called outside of the model's forward pass, e.g. by a checkpointing
            wrapper of another library.
    """
    context = _ACTIVE.get()
    if context is None:
        raise RuntimeError(
            "a mixer bank was called outside of HybridForCausalLM's forward pass; for activation "
            "checkpointing use model.gradient_checkpointing_enable(), which restores the pass it recomputes"
        )
    return context


def context_for(
    placement: Placement,
    skipped: frozenset[int],
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    packing: Packing | None,
) -> ForwardContext:
    """Return the context of a pass.

    Args:
        attention_mask: the raw one, `[batch, past + seq]`; None: all tokens are real.
        position_ids: `[batch, seq]`; None: they count up.

    Raises:
        ValueError: a mask or positions that recurrent mixers cannot use.
    """
    if any(name != FULL_ATTENTION for name in placement):
        check_rows(attention_mask, position_ids)
    return ForwardContext(placement=placement, skipped=skipped, padding_mask=attention_mask, packing=packing)


def packing_in_use() -> Packing | None:
    """Return how the rows of the pass that is running are packed, if they are."""
    context = _ACTIVE.get()
    return None if context is None else context.packing


def check_rows(attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None) -> None:
    """Check that each row is one sequence, as every mixer but full attention takes it to be.

    Args:
        attention_mask: must be the raw mask, `[batch, past + seq]`, or None.
        position_ids: without a mask, `[batch, seq]` must count up by one; None: they do.

    Raises:
        ValueError: a prepared mask, or several sequences packed into a row.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(f"a hybrid needs the mask as [batch, seq], got {tuple(attention_mask.shape)}")
    if attention_mask is None and position_ids is not None and (position_ids.diff() != 1).any():
        raise ValueError("position_ids start anew within a row (packed sequences): give each its own row")


def checkpoint_in_context(checkpoint: Callable[..., Any], function: Callable[..., Any], *args: Any) -> Any:
    """Checkpoint a layer so that its recomputation sees the context of its first run."""
    return checkpoint(partial(_run_in_context, active_context(), function), *args)


def _run_in_context(context: ForwardContext, function: Callable[..., Any], *args: Any) -> Any:
    with forward_context(context):
        return function(*args)
