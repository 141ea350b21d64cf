"""What recurrent layers share in vLLM: its cache pages, its convolution, and how its graph compiler steps over them."""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig  # pyright: ignore[reportMissingImports]
from vllm.forward_context import get_forward_context  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.layernorm import RMSNorm  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.mamba import mamba_mixer  # noqa: F401  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.mamba.abstract import MambaBase  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.mamba.mamba_utils import (  # pyright: ignore[reportMissingImports]
    MambaStateDtypeCalculator,
    is_conv_state_dim_first,
)
from vllm.model_executor.layers.mamba.ops.causal_conv1d import (  # pyright: ignore[reportMissingImports]
    causal_conv1d_fn,
    causal_conv1d_update,
)
from vllm.utils.torch_utils import _encode_layer_name  # pyright: ignore[reportMissingImports]

from apriel_assets.serving.vllm_plugin.token_batch import TokenBatch

Shapes = tuple[tuple[int, int], tuple[int, ...]]
"""Of the last tokens before the convolution, and of the recurrent state."""


def conv_shape(channels: int, conv_size: int) -> tuple[int, int]:
    """Return the shape in which vLLM keeps the last tokens before a convolution."""
    return (channels, conv_size - 1) if is_conv_state_dim_first() else (conv_size - 1, channels)


def state_dtypes(vllm_config: VllmConfig) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes of both states; the recurrent one is fp32, as everywhere here."""
    return MambaStateDtypeCalculator.kda_state_dtype(
        vllm_config.model_config.dtype, vllm_config.cache_config.mamba_cache_dtype
    )


class RecurrentLayer(nn.Module, MambaBase):
    """A layer with a convolution and a state of constant size; stands where vLLM's decoder layer has attention."""

    conv: nn.Conv1d

    def __init__(self, vllm_config: VllmConfig, prefix: str, shapes: Shapes) -> None:
        super().__init__()
        self.prefix, self._shapes, self._dtypes = prefix, shapes, state_dtypes(vllm_config)
        # Where vLLM looks for layers with a cache, and its custom op for the layer that it runs.
        vllm_config.compilation_config.static_forward_context[prefix] = self

    def get_state_shape(self) -> Shapes:
        return self._shapes

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return self._dtypes

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Mix tokens, `[tokens, hidden]`; positions are of no use to a recurrence."""
        output = torch.empty_like(hidden_states)
        # vLLM's own op for such layers: opaque to its compiler, and a border of its CUDA graphs.
        torch.ops.vllm.mamba_mixer(hidden_states, output, _encode_layer_name(self.prefix))
        return output

    def forward_impl(self, hidden_states: torch.Tensor, output: torch.Tensor) -> None:
        """What vLLM's op calls: write the mixed tokens of this step to `output`."""
        every: Any = get_forward_context().attn_metadata
        metadata = None if every is None else every.get(self.prefix)
        if metadata is None:  # vLLM measures memory: there is no cache yet
            output.zero_()
            return
        batch = self.read_batch(metadata)
        output[: batch.num_tokens] = self.mix(hidden_states[: batch.num_tokens], batch)

    def read_batch(self, metadata: Any) -> TokenBatch:
        raise NotImplementedError

    def mix(self, hidden_states: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """Mix a step's tokens, `[tokens, hidden]`, going on from the cache and writing to it."""
        raise NotImplementedError

    def convolve(self, values: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """Return SiLU of the causal depthwise convolution of `[tokens, channels]`, by vLLM's kernels."""
        state = self.kv_cache[0] if is_conv_state_dim_first() else self.kv_cache[0].transpose(-1, -2)
        weight, bias, count = self.conv.weight[:, 0], self.conv.bias, batch.num_decodes
        mixed = torch.empty_like(values)
        if count:
            mixed[:count] = causal_conv1d_update(
                values[:count].contiguous(),
                state,
                weight,
                bias,
                activation="silu",
                conv_state_indices=batch.decode_slots,
            )
        if batch.num_prompts:
            mixed[count:] = causal_conv1d_fn(
                values[count:].transpose(0, 1),
                weight,
                bias,
                conv_states=state,
                query_start_loc=batch.prompt_starts,
                cache_indices=batch.prompt_slots,
                has_initial_state=batch.prompt_continues,
                activation="silu",
            ).transpose(0, 1)
        return mixed


def head_norm(config: Any) -> RMSNorm | None:
    """Return the norm over each head's queries or keys, where this kind of attention has one."""
    return RMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.model_type == "qwen3" else None


def apply_head_norm(norm: RMSNorm | None, values: torch.Tensor, head_size: int) -> torch.Tensor:
    """Normalise `[tokens, heads * head_size]` head by head."""
    if norm is None:
        return values
    return norm(values.unflatten(-1, (-1, head_size)).contiguous()).flatten(-2)
