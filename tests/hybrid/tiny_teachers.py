"""Random teachers small enough to build in milliseconds, one for each kind of attention."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB_SIZE = 61

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

TEACHERS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama_biased": (LlamaConfig, {"attention_bias": True}),
    "llama_tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "mistral_windowed": (MistralConfig, {"sliding_window": 6}),
    "qwen2": (Qwen2Config, {}),  # biases on q, k and v
    "qwen3": (Qwen3Config, {}),  # QK-norm per head
    "olmo2": (Olmo2Config, {}),  # QK-norm over the whole projection
}


def tiny_teacher(kind: str = "llama", attention: str = "sdpa", **sizes: Any) -> PreTrainedModel:
    """Return a random teacher in eval mode, biases and norms included: their defaults hide mistakes."""
    config_class, own = TEACHERS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = config_class(**{**_SIZES, **own, **sizes})
        teacher = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for name, parameter in teacher.named_parameters():
                if "norm" in name or "bias" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return teacher.eval()


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))
