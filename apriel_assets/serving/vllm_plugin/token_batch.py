"""A step's tokens as vLLM lays them out, and recurrences over them. Plain torch: tested without vLLM."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Recurrence = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""Takes streams, `[batch, seq, ...]`, and a state, `[batch, ...]`, or None; returns outputs and the last state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Tokens of many requests in a row: those that decode first, one token each, then (parts of) prompts."""

    decode_slots: torch.Tensor  # [decoding requests], where each keeps its state
    prompt_slots: torch.Tensor  # [prompts]
    prompt_starts: torch.Tensor  # [prompts + 1], in tokens from the first prompt's first
    prompt_continues: torch.Tensor  # [prompts], bool: its slot has the state of what came before
    num_prompt_tokens: int

    @property
    def num_decodes(self) -> int:
        return self.decode_slots.shape[0]

    @property
    def num_prompts(self) -> int:
        return self.prompt_slots.shape[0]

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + self.num_prompt_tokens

    def prompts(self) -> Iterator[tuple[slice, int, bool]]:
        """Yield each prompt's tokens, its slot, and whether it goes on from what is there."""
        starts = [self.num_decodes + start for start in self.prompt_starts.tolist()]
        slots, continues = self.prompt_slots.tolist(), self.prompt_continues.tolist()
        for first, end, slot, goes_on in zip(starts[:-1], starts[1:], slots, continues, strict=True):
            yield slice(first, end), slot, goes_on


def read_delta_batch(metadata: Any) -> TokenBatch:
    """Return the batch that vLLM's metadata of gated delta rule layers describes."""
    nothing = metadata.non_spec_state_indices_tensor[:0]
    prompts = metadata.num_prefills > 0
    return TokenBatch(
        decode_slots=metadata.non_spec_state_indices_tensor[: metadata.num_decodes],
        prompt_slots=metadata.prefill_state_indices[: metadata.num_prefills] if prompts else nothing,
        prompt_starts=metadata.prefill_query_start_loc[: metadata.num_prefills + 1] if prompts else nothing,
        prompt_continues=metadata.prefill_has_initial_state[: metadata.num_prefills] if prompts else nothing,
        num_prompt_tokens=metadata.num_prefill_tokens,
    )


def read_mamba_batch(metadata: Any) -> TokenBatch:
    """Return the batch that vLLM's metadata of Mamba layers describes."""
    decode_slots = metadata.state_indices_tensor_d[:, 0]
    nothing = decode_slots[:0]
    prompts = metadata.num_prefills > 0
    return TokenBatch(
        decode_slots=decode_slots[: metadata.num_decodes],
        prompt_slots=metadata.state_indices_tensor_p if prompts else nothing,
        prompt_starts=metadata.query_start_loc_p if prompts else nothing,
        prompt_continues=metadata.has_initial_states_p if prompts else nothing,
        num_prompt_tokens=metadata.num_prefill_tokens,
    )


def recur_prompts(
    recurrence: Recurrence,
    streams: Sequence[torch.Tensor],
    states: torch.Tensor,
    batch: TokenBatch,
    out: torch.Tensor,
) -> None:
    """Run every prompt of a batch, one after another; its last state goes into its slot.

    Args:
        recurrence: what runs.
        streams: its operands, `[tokens, ...]` each.
        states: `[slots, ...]`, changed in place.
        batch: which tokens are whose.
        out: `[tokens, ...]`, gets the outputs of prompt tokens.
    """
    for tokens, slot, goes_on in batch.prompts():
        operands = [stream[None, tokens] for stream in streams]
        # An old copy: what is written to the slot must not be read from it half-way.
        before = states[slot][None].clone() if goes_on else None
        y, state = recurrence(*operands, before)
        out[tokens] = y[0].view_as(out[tokens])
        states[slot] = state[0].view_as(states[slot]).to(states.dtype)


def recur_decodes(
    recurrence: Recurrence,
    streams: Sequence[torch.Tensor],
    states: torch.Tensor,
    batch: TokenBatch,
    out: torch.Tensor,
) -> None:
    """Run one token of each decoding request of a batch, all at once; arguments as `recur_prompts`."""
    if not (count := batch.num_decodes):
        return
    slots = batch.decode_slots.long()
    y, state = recurrence(*(stream[:count, None] for stream in streams), states[slots])
    out[:count] = y[:, 0].view_as(out[:count])
    states[slots] = state.view_as(states[slots]).to(states.dtype)
