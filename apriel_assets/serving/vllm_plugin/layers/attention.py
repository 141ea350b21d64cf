"""Full and sliding-window attention: vLLM's own layers, told which window."""

import copy
from typing import Any

from torch import nn
from vllm.model_executor.models.llama import LlamaAttention  # pyright: ignore[reportMissingImports]
from vllm.model_executor.models.qwen3 import Qwen3Attention  # pyright: ignore[reportMissingImports]


def build_attention(
    config: Any,
    window: int | None,
    *,
    hidden_size: int,
    num_heads: int,
    num_kv_heads: int,
    max_position_embeddings: int,
    bias: bool,
    prefix: str,
    **others: Any,
) -> nn.Module:
    """Return the attention of one layer.

    Args:
        config: of the backbone.
        window: tokens that it sees, the current one included; None: all.
        hidden_size, num_heads, num_kv_heads, max_position_embeddings, bias, prefix, others: as vLLM's Llama layer
            gives them.
    """
    if config.model_type == "qwen3":
        others.pop("bias_o_proj")
        return Qwen3Attention(
            hidden_size, num_heads, num_kv_heads, config.rope_parameters, max_position_embeddings, config.head_dim,
            config.rms_norm_eps, bias, prefix=prefix, per_layer_sliding_window=window, **others,
        )  # fmt: skip
    own = copy.copy(config)  # Llama's attention reads its window off the config
    own.sliding_window = window
    own.layer_types = ["full_attention" if window is None else "sliding_attention"] * config.num_hidden_layers
    return LlamaAttention(
        own, hidden_size, num_heads, num_kv_heads, max_position_embeddings, bias=bias, prefix=prefix, **others
    )
