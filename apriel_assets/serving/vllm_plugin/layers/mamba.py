"""Mamba-1 with attention's heads in vLLM: equations and weights of `hybrid/mixers/mamba/mixer.py`."""

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from vllm.config import VllmConfig  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.linear import (  # pyright: ignore[reportMissingImports]
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.v1.attention.backends.registry import (  # pyright: ignore[reportMissingImports]
    MambaAttentionBackendEnum,
)

from apriel_assets.hybrid.config import MambaConfig
from apriel_assets.hybrid.mixers.mamba.scan import Scan, choose_scan
from apriel_assets.serving.vllm_plugin.layers.recurrent import (
    RecurrentLayer,
    Shapes,
    apply_head_norm,
    conv_shape,
    head_norm,
)
from apriel_assets.serving.vllm_plugin.token_batch import (
    TokenBatch,
    read_mamba_batch,
    recur_decodes,
    recur_prompts,
)


def mamba_state_shapes(config: Any, options: MambaConfig) -> Shapes:
    """Return the shapes of a layer's states."""
    inner, kv_size = (
        heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    return conv_shape(2 * kv_size + inner, options.conv_size), (inner, options.state_size or config.head_dim)


class MambaLayer(RecurrentLayer):
    """A decay for every channel and state: vLLM's kernel for a CPU knows one a head, and gives other numbers."""

    def __init__(
        self,
        config: Any,
        options: MambaConfig,
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
            bias: whether x, B and C have biases; bias_o_proj: whether the output has.
            prefix: the layer's name.
        """
        super().__init__(vllm_config, prefix, mamba_state_shapes(config, options))
        hidden, self.head_size, self.kernel = config.hidden_size, config.head_dim, options.kernel
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.state_size = options.state_size or self.head_size
        inner, self.kv_size = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        rank = options.dt_rank or math.ceil(hidden / 16)
        quantised: dict[str, Any] = {"quant_config": vllm_config.quant_config}
        for name, size in (("x_proj", self.kv_size), ("B_proj", self.kv_size), ("C_proj", inner)):
            linear = ReplicatedLinear(hidden, size, bias=bias, prefix=f"{prefix}.{name}", **quantised)
            self.add_module(name, linear)
        self.B_norm, self.C_norm = head_norm(config), head_norm(config)
        self.z_proj = ReplicatedLinear(hidden, inner, prefix=f"{prefix}.z_proj", **quantised)
        self.dt_in_proj = ReplicatedLinear(hidden, rank, bias=False)
        self.dt_proj = ReplicatedLinear(rank, inner)
        channels = 2 * self.kv_size + inner
        self.conv = nn.Conv1d(channels, channels, options.conv_size, groups=channels)
        self.A_log = nn.Parameter(torch.empty(inner, self.state_size))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = RowParallelLinear(
            inner, hidden, bias=bias_o_proj, prefix=f"{prefix}.out_proj", **quantised
        )

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.MAMBA1

    def read_batch(self, metadata: Any) -> TokenBatch:
        return read_mamba_batch(metadata)

    def mix(self, hidden_states: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        B = apply_head_norm(self.B_norm, self.B_proj(hidden_states)[0], self.head_size)
        C = apply_head_norm(self.C_norm, self.C_proj(hidden_states)[0], self.head_size)
        mixed = self.convolve(torch.cat([self.x_proj(hidden_states)[0], B, C], dim=-1), batch)
        x, B, C = mixed.split([self.kv_size, self.kv_size, mixed.shape[-1] - 2 * self.kv_size], dim=-1)
        x, B = self._to_query_heads(x), self._to_query_heads(B)
        dt = functional.softplus(self.dt_proj(self.dt_in_proj(hidden_states)[0])[0].float())
        B, C = (values.unflatten(-1, (-1, self.state_size)) for values in (B, C))
        A, y = -self.A_log.float().exp(), torch.empty_like(x)
        for recur, seq_len in ((recur_decodes, 1), (recur_prompts, 2)):
            scan = choose_scan(x.device, seq_len, self.kernel, with_state=True)
            recur(partial(_scan_with, scan, A), (x, dt, B, C), self.kv_cache[1], batch, y)
        return self.out_proj((y + self.D * x) * functional.silu(self.z_proj(hidden_states)[0]))[0]

    def _to_query_heads(self, values: torch.Tensor) -> torch.Tensor:
        """Repeat key-value heads for their query heads: `[tokens, query heads * head size]`."""
        heads = values.unflatten(-1, (self.num_kv_heads, self.head_size))
        return heads.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1).flatten(1)


def _scan_with(
    scan: Scan,
    A: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    before: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    return scan(x, dt, A, B, C, before)
