"""Gated DeltaNet and Kimi Delta Attention with the heads of the attention they replace.

S_t = (I - b_t k_t k_t^T) Diag(a_t) S_{t-1} + b_t k_t v_t^T;  o_t = S_t^T q_t
a_t = exp(-exp(A_log) softplus(decay(h_t) + dt_bias)),  b_t = sigmoid(beta_proj(h_t))
out = out_proj(RMSNorm(o_t) * sigmoid(gate(h_t)))

q, k and v pass a causal depthwise convolution and SiLU; q and k are then l2-normalised, q scaled by
head_size^-1/2. There is a state per query head, so keys and values have as many heads as queries.
"""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from apriel_assets.hybrid.caches import RecurrentLayer
from apriel_assets.hybrid.config import GatedDeltaNetConfig, KimiDeltaConfig
from apriel_assets.hybrid.forward_context import ForwardContext
from apriel_assets.hybrid.mixers.delta.rule import choose_rule
from apriel_assets.hybrid.mixers.recurrent_inputs import apply_norm, convolve, norm_like
from apriel_assets.hybrid.packing import pack, unpack
from apriel_assets.hybrid.surgery import attention_shape

NORM_EPS = 1e-6


class _DeltaMixer(nn.Module):
    """What the two share; a subclass has the projections of decay and output gate."""

    A_log: nn.Parameter  # [heads]
    dt_bias: nn.Parameter  # [heads], or [heads * head size] for a decay per channel

    def __init__(self, attention: nn.Module, options: GatedDeltaNetConfig | KimiDeltaConfig) -> None:
        """
        Args:
            attention: gives sizes, biases and QK-norms; its weights are not read.
            options: convolution, bottlenecks.

        Raises:
            UserError: attention without separate projections or with sizes that do not fit together.
        """
        super().__init__()
        shape = attention_shape(attention)
        self.shape, self.options = shape, options
        hidden, head = shape.hidden_size, shape.head_size
        self.inner_size = inner = shape.num_heads * head
        weight = cast(nn.Linear, attention.q_proj).weight
        self._like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}

        def bias_of(projection: str) -> bool:
            return getattr(attention, projection).bias is not None

        self.q_proj = nn.Linear(hidden, inner, bias=bias_of("q_proj"), **self._like)
        self.k_proj = nn.Linear(hidden, inner, bias=bias_of("k_proj"), **self._like)
        self.v_proj = nn.Linear(hidden, inner, bias=bias_of("v_proj"), **self._like)
        self.q_norm = norm_like(attention, "q_norm", inner, head)
        self.k_norm = norm_like(attention, "k_norm", shape.num_kv_heads * head, head)
        if self.k_norm is not None:
            _widen(self.k_norm, head, shape.queries_per_kv_head)
        self.conv = nn.Conv1d(
            3 * inner, 3 * inner, options.conv_size, groups=3 * inner, bias=False, **self._like
        )
        self.beta_proj = nn.Linear(hidden, shape.num_heads, bias=False, **self._like)
        self.A_log = nn.Parameter(torch.empty(shape.num_heads, **self._like))
        self.norm = nn.RMSNorm(head, eps=NORM_EPS, **self._like)
        self.out_proj = nn.Linear(inner, hidden, bias=bias_of("o_proj"), **self._like)

    def make_cache_layer(self) -> RecurrentLayer:
        return RecurrentLayer()

    def decay(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what the step size is made of, before its bias, `[batch, seq, size of dt_bias]`."""
        raise NotImplementedError

    def gate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the output gate before its sigmoid, `[batch, seq, heads * head size]`."""
        raise NotImplementedError

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
        q, k = (
            apply_norm(self.q_norm, self.q_proj(hidden_states)),
            apply_norm(self.k_norm, self.k_proj(hidden_states)),
        )
        conv_input = torch.cat([q, k, self.v_proj(hidden_states)], dim=-1)
        log_decay = self.log_decay(hidden_states)
        beta = self.beta_proj(hidden_states).float().sigmoid()
        if mask is not None:
            # Zeros are what the convolution sees before a text starts; a write of strength 0 after a decay of
            # 0 nats leaves the state alone.
            padding = mask[..., None] == 0
            conv_input, beta = conv_input.masked_fill(padding, 0), beta.masked_fill(padding, 0)
            log_decay = log_decay.masked_fill(padding[..., None], 0)
        conv_input, log_decay, beta = (unpack(packing, each) for each in (conv_input, log_decay, beta))
        seq_len = conv_input.shape[1]
        initial = state.recurrent_states[0] if state is not None and state.has_previous_state[0] else None
        heads = convolve(self.conv, conv_input, state, self.options.kernel).unflatten(
            -1, (3, self.shape.num_heads, -1)
        )
        q, k, v = heads.unbind(-3)
        q, k = l2_normalise(q) * self.shape.head_size**-0.5, l2_normalise(k)
        rule = choose_rule(v.device, v.dtype, seq_len, self.options.kernel)
        o, final = rule(q, k, v, log_decay, beta, initial)
        if state is not None:
            state.update_recurrent_state(final)
            state.advance(seq_len)
        return self.out_proj(self.norm(pack(packing, o)).flatten(2) * self.gate(hidden_states).sigmoid())

    def log_decay(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the decay in nats, `[batch, seq, heads, 1 or head size]`, in fp32."""
        dt = functional.softplus((self.decay(hidden_states) + self.dt_bias).float())
        return -self.A_log.float().exp()[:, None] * dt.unflatten(-1, (self.shape.num_heads, -1))


class GatedDeltaNetMixer(_DeltaMixer):
    """One decay per head; a full-rank output gate."""

    def __init__(self, attention: nn.Module, options: GatedDeltaNetConfig) -> None:
        super().__init__(attention, options)
        hidden, heads = self.shape.hidden_size, self.shape.num_heads
        self.decay_proj = nn.Linear(hidden, heads, bias=False, **self._like)
        self.dt_bias = nn.Parameter(torch.empty(heads, **self._like))
        self.gate_proj = nn.Linear(hidden, self.inner_size, bias=False, **self._like)

    def decay(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decay_proj(hidden_states)

    def gate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.gate_proj(hidden_states)


class KimiDeltaMixer(_DeltaMixer):
    """One decay per key channel; decay and output gate through bottlenecks."""

    def __init__(self, attention: nn.Module, options: KimiDeltaConfig) -> None:
        super().__init__(attention, options)
        hidden, inner = self.shape.hidden_size, self.inner_size
        rank = options.gate_rank or self.shape.head_size
        self.decay_in_proj = nn.Linear(hidden, rank, bias=False, **self._like)
        self.decay_proj = nn.Linear(rank, inner, bias=False, **self._like)
        self.dt_bias = nn.Parameter(torch.empty(inner, **self._like))
        self.gate_in_proj = nn.Linear(hidden, rank, bias=False, **self._like)
        self.gate_proj = nn.Linear(rank, inner, bias=False, **self._like)

    def decay(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decay_proj(self.decay_in_proj(hidden_states))

    def gate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.gate_proj(self.gate_in_proj(hidden_states))


def l2_normalise(values: torch.Tensor) -> torch.Tensor:
    """Return queries or keys, `[..., head size]`, at length 1, computed in fp32."""
    wide = values.float()
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(values.dtype)


def _widen(norm: nn.Module, head_size: int, repeats: int) -> None:
    """Make a key norm over all key-value heads one over their repetitions; one over a head stays."""
    weight = cast(torch.Tensor, norm.weight)
    if weight.numel() > head_size and repeats > 1:
        norm.weight = nn.Parameter(repeat_heads(weight.detach(), head_size, repeats))
        if hasattr(norm, "normalized_shape"):
            cast(Any, norm).normalized_shape = tuple(norm.weight.shape)


def repeat_heads(values: torch.Tensor, head_size: int, repeats: int) -> torch.Tensor:
    """Repeat the heads in the first dimension, each `repeats` times in a row: query head h gets h // repeats."""
    return values.unflatten(0, (-1, head_size)).repeat_interleave(repeats, dim=0).flatten(0, 1)
