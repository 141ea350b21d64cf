"""Mamba-1 with the head structure of the attention it replaces.

s_t = exp(dt_t A) s_{t-1} + dt_t B_t x_t;  y_t = C_t s_t + D x_t, gated by SiLU(z_t), through out_proj.

x, B and C are what attention calls V, K and Q. They pass a causal depthwise convolution and SiLU; then heads
share them as attention's do. A head wider than the state is cut into sub-heads of the state's width.
"""

import math
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from apriel_assets.errors import UserError
from apriel_assets.hybrid.caches import RecurrentLayer
from apriel_assets.hybrid.config import MambaConfig
from apriel_assets.hybrid.forward_context import ForwardContext
from apriel_assets.hybrid.mixers.mamba.scan import choose_scan
from apriel_assets.hybrid.mixers.recurrent_inputs import apply_norm, convolve, norm_like
from apriel_assets.hybrid.packing import pack, unpack
from apriel_assets.hybrid.surgery import attention_shape


class MambaMixer(nn.Module):
    """The mixer, shaped after an attention module; its weights are set by conversion or loaded."""

    def __init__(self, attention: nn.Module, options: MambaConfig) -> None:
        """
        Args:
            attention: gives sizes, biases and QK-norms; its weights are not read.
            options: state size, convolution, bottleneck of the step size.

        Raises:
            UserError: a state size that does not divide the head size.
        """
        super().__init__()
        shape = attention_shape(attention)
        self.shape, self.options = shape, options
        self.state_size = options.state_size or shape.head_size
        if shape.head_size % self.state_size:
            raise UserError(
                f"mamba.state_size={self.state_size} does not divide the head size {shape.head_size}; "
                "choose a divisor, or null for the head size"
            )
        hidden, head = shape.hidden_size, shape.head_size
        self.inner_size, self.kv_size = shape.num_heads * head, shape.num_kv_heads * head
        dt_rank = options.dt_rank or math.ceil(hidden / 16)
        weight = cast(nn.Linear, attention.q_proj).weight
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}

        def bias_of(projection: str) -> bool:
            return getattr(attention, projection).bias is not None

        self.x_proj = nn.Linear(hidden, self.kv_size, bias=bias_of("v_proj"), **like)
        self.B_proj = nn.Linear(hidden, self.kv_size, bias=bias_of("k_proj"), **like)
        self.C_proj = nn.Linear(hidden, self.inner_size, bias=bias_of("q_proj"), **like)
        self.B_norm = norm_like(attention, "k_norm", self.kv_size, head)
        self.C_norm = norm_like(attention, "q_norm", self.inner_size, head)
        self.z_proj = nn.Linear(hidden, self.inner_size, **like)
        self.dt_in_proj = nn.Linear(hidden, dt_rank, bias=False, **like)
        self.dt_proj = nn.Linear(dt_rank, self.inner_size, **like)
        conv_channels = 2 * self.kv_size + self.inner_size
        self.conv = nn.Conv1d(conv_channels, conv_channels, options.conv_size, groups=conv_channels, **like)
        self.A_log = nn.Parameter(torch.empty(self.inner_size, self.state_size, **like))
        self.D = nn.Parameter(torch.empty(self.inner_size, **like))
        self.out_proj = nn.Linear(self.inner_size, hidden, bias=bias_of("o_proj"), **like)

    def make_cache_layer(self) -> RecurrentLayer:
        return RecurrentLayer()

    def forward(
        self, context: ForwardContext, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix `hidden_states`, `[batch, seq, hidden]`, going on from the cache where there is one."""
        hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        state = None if cache is None else cache.layers[layer]
        return self._mix(hidden_states, context, state), None

    def _mix(
        self, hidden_states: torch.Tensor, context: ForwardContext, state: RecurrentLayer | None
    ) -> torch.Tensor:
        mask, packing = context.token_mask(hidden_states.shape[1]), context.packing
        B, C = (
            apply_norm(self.B_norm, self.B_proj(hidden_states)),
            apply_norm(self.C_norm, self.C_proj(hidden_states)),
        )
        conv_input = torch.cat([self.x_proj(hidden_states), B, C], dim=-1)
        dt = functional.softplus(self.dt_proj(self.dt_in_proj(hidden_states)).float())
        if mask is not None:
            # Zeros are what the convolution sees before a sequence starts; a step of size 0 leaves the state
            # alone.
            conv_input = conv_input.masked_fill(mask[..., None] == 0, 0)
            dt = dt.masked_fill(mask[..., None] == 0, 0)
        conv_input, dt = unpack(packing, conv_input), unpack(packing, dt)
        seq_len = conv_input.shape[1]
        initial = state.recurrent_states[0] if state is not None and state.has_previous_state[0] else None
        x, B, C = convolve(self.conv, conv_input, state, self.options.kernel).split(
            [self.kv_size, self.kv_size, self.inner_size], dim=-1
        )
        x, B = self._to_query_heads(x).flatten(2), self._to_query_heads(B)
        scan = choose_scan(x.device, seq_len, self.options.kernel, initial is not None)
        y, final = scan(x, dt, -self.A_log.float().exp(), self._sub_heads(B), self._sub_heads(C), initial)
        if state is not None:
            state.update_recurrent_state(final)
            state.advance(seq_len)
        return self.out_proj(pack(packing, y + self.D * x) * functional.silu(self.z_proj(hidden_states)))

    def _to_query_heads(self, values: torch.Tensor) -> torch.Tensor:
        """Repeat key-value heads for their query heads: `[batch, seq, query heads, head size]`."""
        heads = values.unflatten(-1, (self.shape.num_kv_heads, self.shape.head_size))
        return heads.repeat_interleave(self.shape.queries_per_kv_head, dim=2)

    def _sub_heads(self, values: torch.Tensor) -> torch.Tensor:
        """Cut query heads to the state's width: `[batch, seq, sub-heads, state]`."""
        return values.flatten(2).unflatten(-1, (-1, self.state_size))
