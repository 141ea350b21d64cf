"""Continuous batching: requests join and leave a running batch between two steps of the decode runner."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation.decode_runner import DecodeRunner
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.serving.sampling import Sampling, next_tokens

Finish = Literal["stop", "length", "cancelled"]
_IDLE = Sampling(max_new_tokens=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One completion to make."""

    id: int
    prompt: tuple[int, ...]
    sampling: Sampling
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Event:
    """What a step did for one request."""

    id: int
    token: int | None  # None: it ended without one
    finish: Finish | None = None  # None: it goes on


@dataclass(slots=True)
class _Running:
    request: Request
    left: int  # tokens that may still come
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.request.sampling.seed)


class ContinuousBatch:
    """The requests of one model: at most `num_slots` at once, the others wait their turn."""

    def __init__(
        self, model: HybridForCausalLM, *, num_slots: int, capacity: int, prefill_tokens: int = 2048
    ) -> None:
        """
        Args:
            model: under the placement to be served.
            num_slots: requests decoded together.
            capacity: most tokens of a request, prompt and completion.
            prefill_tokens: once as many were read between two steps, further prompts wait for the next one.

        Raises:
            UserError: what the decode runner refuses.
        """
        self.runner = DecodeRunner(model, batch_size=num_slots, capacity=capacity)
        self._prefill_tokens = prefill_tokens
        self._waiting: deque[Request] = deque()
        self._slots: list[_Running | None] = [None] * num_slots

    @property
    def weight_bytes(self) -> int:
        return self.runner.num_parameter_bytes

    @property
    def cache_bytes(self) -> int:
        return self.runner.cache_bytes

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return sum(slot is not None for slot in self._slots)

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._waiting and not self.num_running

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            UserError: an empty prompt, or more tokens than a request may have.
        """
        wanted, capacity = len(request.prompt) + request.sampling.max_new_tokens, self.runner.capacity
        if not request.prompt or wanted > capacity:
            raise UserError(
                f"a prompt of {len(request.prompt)} tokens and {request.sampling.max_new_tokens} more; "
                f"a request has at least 1 and at most {capacity} together"
            )
        self._waiting.append(request)

    def cancel(self, request_id: int) -> None:
        """Forget a request, waiting or running; nothing if it is neither."""
        self._waiting = deque(own for own in self._waiting if own.id != request_id)
        for row, slot in enumerate(self._slots):
            if slot is not None and slot.request.id == request_id:
                self._slots[row] = None

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Let waiting requests in, and give every running one its next token."""
        self._admit()
        running = [(row, slot) for row, slot in enumerate(self._slots) if slot is not None]
        if not running:
            return []
        tokens = self._choose(running)
        chosen = tokens.tolist()
        events = [self._advance(row, slot, chosen[row]) for row, slot in running]
        if self.num_running:
            self._empty_idle_rows()
            self.runner.step(tokens)
        return events

    def _admit(self) -> None:
        read = 0
        for row, slot in enumerate(self._slots):
            if slot is None and self._waiting and (not read or read < self._prefill_tokens):
                request = self._waiting.popleft()
                self.runner.admit(row, request.prompt)
                self._slots[row] = _Running(request, request.sampling.max_new_tokens)
                read += len(request.prompt)

    def _choose(self, running: Sequence[tuple[int, _Running]]) -> torch.Tensor:
        samplings, uniforms = [_IDLE] * len(self._slots), np.zeros(len(self._slots))
        for row, slot in running:
            samplings[row] = slot.request.sampling
            if samplings[row].temperature:
                uniforms[row] = slot.random.random()
        logits = self.runner.logits
        return next_tokens(logits, samplings, torch.from_numpy(uniforms).to(logits.device))

    def _advance(self, row: int, slot: _Running, token: int) -> Event:
        slot.left -= 1
        finish: Finish | None = None
        if token in slot.request.stop_ids:
            finish = "stop"
        elif not slot.left:
            finish = "length"
        if finish is not None:
            self._slots[row] = None
        return Event(slot.request.id, token, finish)

    def _empty_idle_rows(self) -> None:
        """Rows without a request are computed too, and must not run out of room."""
        lengths = self.runner.lengths.clone()
        lengths[[row for row, slot in enumerate(self._slots) if slot is None]] = 0
        self.runner.rewind(lengths)
