"""Tiny models that every evaluation test can afford."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from apriel_assets.bundled.tokenizer import build_tokenizer


def make_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A random Llama over the bundled vocabulary. Scaled up, so that its choices are clear-cut and varied."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "initializer_range": 0.3,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **changes,
        }
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama():
    """The maker of tiny models."""
    return make_llama
