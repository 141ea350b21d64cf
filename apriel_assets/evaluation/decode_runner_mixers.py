"""What each mixer keeps for every row of a decode runner, and how it takes one token.

Buffers are made once and written in place, so that a CUDA graph can hold their addresses. They keep no padding: row r's
tokens stand at the beginning of its buffers, `Clock.lengths[r]` of them; a window's stand in a ring.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from apriel_assets.errors import UserError
from apriel_assets.evaluation.decode_runner_projections import Apart, Fused, fuse
from apriel_assets.hybrid.kernels import decode
from apriel_assets.hybrid.mixers.delta.mixer import GatedDeltaNetMixer, KimiDeltaMixer
from apriel_assets.hybrid.mixers.mamba.mixer import MambaMixer
from apriel_assets.hybrid.mixers.recurrent_inputs import apply_norm
from apriel_assets.hybrid.mixers.sliding_window import SlidingWindowMixer
from apriel_assets.hybrid.surgery import attention_shape


@dataclass(frozen=True, slots=True)
class Clock:
    """Where every row is, and what rotates a position."""

    lengths: Tensor  # tokens held by each row, `[batch]`, int32
    cos: Tensor  # `[positions, head size]`
    sin: Tensor


class StaticMixer(Protocol):
    """One layer's mixer with its buffers."""

    cache_bytes: int  # of all buffers
    parameters: list[Tensor]  # that a step reads

    def step(self, hidden_states: Tensor, clock: Clock) -> Tensor:
        """Take one token a row, `[batch, hidden]`, and return the mixer's output."""
        ...

    def load(self, rows: slice, cache_layer: Any, lengths: list[int]) -> None:
        """Take over what a prefill left in a dynamic cache layer for these rows, padded on the left."""
        ...

    def held_bytes(self, length: int) -> int:
        """Return the bytes of what is in the buffers when each row holds `length` tokens."""
        ...

    def bytes_per_step(self, length: int) -> int:
        """Return the cache bytes that a step moves when each row holds `length` tokens."""
        ...

    def buffers(self) -> list[Tensor]:
        """Return the buffers, for filling."""
        ...


def static_mixer(mixer: nn.Module, batch: int, capacity: int, own_window: int | None) -> StaticMixer:
    """Return the static form of a layer's mixer.

    Args:
        mixer: a mixer of a bank; its projections are fused in place.
        batch: rows.
        capacity: most tokens of a row.
        own_window: tokens that the backbone's own attention sees in this layer; None: all.

    Raises:
        UserError: a mixer, or an attention module, of an unknown kind.
    """
    match mixer:
        case GatedDeltaNetMixer() | KimiDeltaMixer():
            return _DeltaStep(mixer, batch)
        case MambaMixer():
            return _MambaStep(mixer, batch)
        case SlidingWindowMixer():
            return _AttentionStep(mixer.attention, batch, capacity, mixer.window)
    return _AttentionStep(mixer, batch, capacity, own_window)


class _AttentionStep:
    """Full attention, or a window: then the buffers are a ring of as many tokens."""

    def __init__(self, attention: nn.Module, batch: int, capacity: int, window: int | None) -> None:
        self._attention = cast(Any, attention)
        self._shape = shape = attention_shape(attention)
        if (
            not isinstance(getattr(attention, "scaling", None), float)
            or getattr(attention, "is_causal", True) is False
        ):
            raise UserError(
                f"{type(attention).__name__} is no causal attention with a scale; cannot decode it"
            )
        self._window = window
        self._capacity = capacity if window is None else min(window, capacity)
        self._qkv = fuse(self._attention.q_proj, self._attention.k_proj, self._attention.v_proj)
        self._norms = tuple(getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        weight = self._qkv.weight
        self._keys, self._values = (
            weight.new_zeros(batch, shape.num_kv_heads, self._capacity, shape.head_size) for _ in range(2)
        )
        self.cache_bytes = 2 * self._keys.numel() * self._keys.element_size()
        self.parameters: list[Tensor] = list(attention.parameters())

    def buffers(self) -> list[Tensor]:
        return [self._keys, self._values]

    def step(self, hidden_states: Tensor, clock: Clock) -> Tensor:
        qkv = self._qkv(hidden_states)
        if any(norm is not None for norm in self._norms):
            sizes = [self._shape.num_heads, self._shape.num_kv_heads, self._shape.num_kv_heads]
            q, k, v = qkv.split([size * self._shape.head_size for size in sizes], dim=-1)
            qkv = torch.cat([apply_norm(self._norms[0], q), apply_norm(self._norms[1], k), v], dim=-1)
        slots, held = clock.lengths, clock.lengths + 1
        if self._window is not None:
            slots, held = slots % self._capacity, held.clamp(max=self._capacity)
        q = decode.rotate_and_store(qkv, clock.cos, clock.sin, self._keys, self._values, clock.lengths, slots)
        mixed = decode.attend(q, self._keys, self._values, held, self._attention.scaling)
        return self._attention.o_proj(mixed.flatten(1))

    def load(self, rows: slice, cache_layer: Any, lengths: list[int]) -> None:
        for index, length in enumerate(lengths):
            kept = min(length, self._capacity, cache_layer.keys.shape[-2])
            slots = torch.arange(length - kept, length, device=self._keys.device) % self._capacity
            for buffer, held in ((self._keys, cache_layer.keys), (self._values, cache_layer.values)):
                buffer[rows.start + index].index_copy_(1, slots, held[index, :, -kept:])

    def held_bytes(self, length: int) -> int:
        return self.cache_bytes // self._capacity * min(length, self._capacity)

    def bytes_per_step(self, length: int) -> int:
        return self.held_bytes(length)


class _RecurrentStep:
    """Convolution history and recurrent state; both are read and written at each step."""

    def __init__(self, mixer: nn.Module, batch: int, channels: int, state_shape: tuple[int, ...]) -> None:
        self._conv = cast(nn.Conv1d, mixer.conv)
        weight = self._conv.weight
        self._history = weight.new_zeros(batch, channels, weight.shape[-1] - 1)
        self._state = torch.zeros(batch, *state_shape, dtype=torch.float32, device=weight.device)
        self.cache_bytes = sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())
        self.parameters: list[Tensor] = list(mixer.parameters())

    def buffers(self) -> list[Tensor]:
        return [self._history, self._state]

    def load(self, rows: slice, cache_layer: Any, lengths: list[int]) -> None:
        self._history[rows].copy_(cache_layer.conv_states[0])
        self._state[rows].copy_(cache_layer.recurrent_states[0])

    def held_bytes(self, length: int) -> int:
        del length
        return self.cache_bytes

    def bytes_per_step(self, length: int) -> int:
        return 2 * self.held_bytes(length)


class _DeltaStep(_RecurrentStep):
    def __init__(self, mixer: GatedDeltaNetMixer | KimiDeltaMixer, batch: int) -> None:
        shape, inner = mixer.shape, mixer.inner_size
        super().__init__(mixer, batch, 3 * inner, (shape.num_heads, shape.head_size, shape.head_size))
        self._mixer = mixer
        self._low_rank = isinstance(mixer, KimiDeltaMixer)
        ends = (
            (mixer.decay_in_proj, mixer.gate_in_proj)
            if isinstance(mixer, KimiDeltaMixer)
            else (mixer.decay_proj, mixer.gate_proj)
        )
        self._in = fuse(mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.beta_proj, *ends)
        self._conv_weight = self._conv.weight[:, 0]

    def step(self, hidden_states: Tensor, clock: Clock) -> Tensor:
        del clock
        mixer, inner = self._mixer, self._mixer.inner_size
        projected = self._in(hidden_states)
        *qkv, beta, decay, gate = self._in.split(projected)
        if self._low_rank:
            decay, gate = mixer.decay_proj(decay), mixer.gate_proj(gate)
        if mixer.q_norm is not None or mixer.k_norm is not None:
            projected = torch.cat(
                [apply_norm(mixer.q_norm, qkv[0]), apply_norm(mixer.k_norm, qkv[1]), qkv[2]], dim=-1
            )
        mixed = decode.delta_step(
            projected[:, : 3 * inner],
            decay,
            gate,
            beta,
            self._history,
            self._state,
            self._conv_weight,
            mixer.A_log,
            mixer.dt_bias,
            mixer.norm.weight,
            cast(float, mixer.norm.eps),
        )
        return mixer.out_proj(mixed)


class _MambaStep(_RecurrentStep):
    def __init__(self, mixer: MambaMixer, batch: int) -> None:
        channels = 2 * mixer.kv_size + mixer.inner_size
        super().__init__(mixer, batch, channels, (mixer.inner_size, mixer.state_size))
        self._mixer = mixer
        self._in: Fused | Apart = fuse(
            mixer.x_proj, mixer.B_proj, mixer.C_proj, mixer.z_proj, mixer.dt_in_proj
        )
        self._conv_weight = self._conv.weight[:, 0]
        self._rates = (-mixer.A_log.float().exp() / math.log(2)).detach()

    def step(self, hidden_states: Tensor, clock: Clock) -> Tensor:
        del clock
        mixer = self._mixer
        projected = self._in(hidden_states)
        x, B, C, z, dt = self._in.split(projected)
        if mixer.B_norm is not None or mixer.C_norm is not None:
            projected = torch.cat([x, apply_norm(mixer.B_norm, B), apply_norm(mixer.C_norm, C)], dim=-1)
        mixed = decode.convolve(projected, self._history, self._conv_weight, self._conv.bias)
        dt = functional.linear(dt, mixer.dt_proj.weight, mixer.dt_proj.bias)
        y = decode.mamba_step(
            mixed, dt, z, self._state, self._rates, mixer.D, mixer.kv_size, mixer.shape.head_size
        )
        return mixer.out_proj(y)
