"""Gated DeltaNet and Kimi Delta Attention in vLLM: equations and weights of `hybrid/mixers/delta/mixer.py`."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from vllm.config import VllmConfig  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.layernorm import RMSNorm  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.linear import (  # pyright: ignore[reportMissingImports]
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.mamba.mamba_utils import (  # pyright: ignore[reportMissingImports]
    MambaStateShapeCalculator,
)
from vllm.v1.attention.backends.registry import (  # pyright: ignore[reportMissingImports]
    MambaAttentionBackendEnum,
)

from apriel_assets.hybrid.config import GatedDeltaNetConfig, KimiDeltaConfig
from apriel_assets.hybrid.mixers.delta.mixer import NORM_EPS, l2_normalise
from apriel_assets.hybrid.mixers.delta.rule import choose_rule
from apriel_assets.serving.vllm_plugin.layers.recurrent import (
    RecurrentLayer,
    Shapes,
    apply_head_norm,
    head_norm,
)
from apriel_assets.serving.vllm_plugin.token_batch import (
    TokenBatch,
    read_delta_batch,
    recur_decodes,
    recur_prompts,
)


def delta_state_shapes(config: Any, options: GatedDeltaNetConfig | KimiDeltaConfig) -> Shapes:
    """Return the shapes of a layer's states; GDN's and KDA's are the same, so they share a cache group."""
    heads, size = config.num_attention_heads, config.head_dim
    return MambaStateShapeCalculator.gated_delta_net_state_shape(
        1, heads, heads, size, size, options.conv_size
    )


class _DeltaLayer(RecurrentLayer):
    """What the two share; a subclass has the projections of decay and output gate."""

    A_log: nn.Parameter  # [heads]
    dt_bias: nn.Parameter  # [heads], or [heads * head size] for a decay per channel

    def __init__(
        self,
        config: Any,
        options: GatedDeltaNetConfig | KimiDeltaConfig,
        vllm_config: VllmConfig,
        *,
        bias: bool,
        bias_o_proj: bool,
        prefix: str,
    ) -> None:
        """
        Args:
            config: of the backbone.
            options: of the mixer.
            vllm_config: of the whole model.
            bias: whether q, k and v have biases; bias_o_proj: whether the output has.
            prefix: the layer's name.
        """
        super().__init__(vllm_config, prefix, delta_state_shapes(config, options))
        hidden, self.num_heads, self.head_size = (
            config.hidden_size,
            config.num_attention_heads,
            config.head_dim,
        )
        self.inner_size, self.kernel = self.num_heads * self.head_size, options.kernel
        quantised: dict[str, Any] = {"quant_config": vllm_config.quant_config}
        self.qkv_proj = QKVParallelLinear(
            hidden, self.head_size, self.num_heads, bias=bias, prefix=f"{prefix}.qkv_proj", **quantised
        )
        self.q_norm, self.k_norm = head_norm(config), head_norm(config)
        channels = 3 * self.inner_size
        self.conv = nn.Conv1d(channels, channels, options.conv_size, groups=channels, bias=False)
        self.beta_proj = ReplicatedLinear(hidden, self.num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.norm = RMSNorm(self.head_size, eps=NORM_EPS)
        self.out_proj = RowParallelLinear(
            self.inner_size, hidden, bias=bias_o_proj, prefix=f"{prefix}.out_proj", **quantised
        )

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.GDN_ATTN

    def read_batch(self, metadata: Any) -> TokenBatch:
        return read_delta_batch(metadata)

    def decay(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what the step size is made of, before its bias, `[tokens, size of dt_bias]`."""
        raise NotImplementedError

    def gate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the output gate before its sigmoid, `[tokens, heads * head size]`."""
        raise NotImplementedError

    def mix(self, hidden_states: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        q, k, v = self.qkv_proj(hidden_states)[0].chunk(3, dim=-1)
        q = apply_head_norm(self.q_norm, q, self.head_size)
        k = apply_head_norm(self.k_norm, k, self.head_size)
        mixed = self.convolve(torch.cat([q, k, v], dim=-1), batch)
        q, k, v = mixed.unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        dt = functional.softplus((self.decay(hidden_states) + self.dt_bias).float())
        log_decay = -self.A_log.float().exp()[:, None] * dt.unflatten(-1, (self.num_heads, -1))
        streams = (
            l2_normalise(q) * self.head_size**-0.5,
            l2_normalise(k),
            v,
            log_decay,
            self.beta_proj(hidden_states)[0].float().sigmoid(),
        )
        o, states = torch.empty_like(v), self.kv_cache[1]
        for recur, seq_len in ((recur_decodes, 1), (recur_prompts, 2)):
            recur(choose_rule(v.device, v.dtype, seq_len, self.kernel), streams, states, batch, o)
        return self.out_proj(self.norm(o).flatten(1) * self.gate(hidden_states).sigmoid())[0]


class GatedDeltaNetLayer(_DeltaLayer):
    """One decay per head; a full-rank output gate."""

    def __init__(self, config: Any, options: GatedDeltaNetConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, options, *args, **kwargs)
        hidden = config.hidden_size
        self.decay_proj = ReplicatedLinear(hidden, self.num_heads, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.output_gate = ReplicatedLinear(hidden, self.inner_size, bias=False)

    def decay(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decay_proj(hidden_states)[0]

    def gate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output_gate(hidden_states)[0]


class KimiDeltaLayer(_DeltaLayer):
    """One decay per key channel; decay and output gate through bottlenecks."""

    def __init__(self, config: Any, options: KimiDeltaConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, options, *args, **kwargs)
        hidden, inner, rank = config.hidden_size, self.inner_size, options.gate_rank or self.head_size
        self.decay_in_proj = ReplicatedLinear(hidden, rank, bias=False)
        self.decay_proj = ReplicatedLinear(rank, inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.gate_in_proj = ReplicatedLinear(hidden, rank, bias=False)
        self.output_gate = ReplicatedLinear(rank, inner, bias=False)

    def decay(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decay_proj(self.decay_in_proj(hidden_states)[0])[0]

    def gate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output_gate(self.gate_in_proj(hidden_states)[0])[0]
