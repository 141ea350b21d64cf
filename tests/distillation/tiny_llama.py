"""Tiny random models and traces, built in code."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from apriel_assets.distillation.batches import Traces

VOCAB = 29


def make_llama(seed: int = 0, *, num_layers: int = 2, hidden_size: int = 16, **settings) -> LlamaForCausalLM:
    """A random Llama with grouped heads."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden_size,
        intermediate_size=24,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        **settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def make_traces(num: int = 24, seed: int = 0) -> Traces:
    """Random tokens of random lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(longest: int) -> tuple[int, ...]:
        length = int(torch.randint(1, longest + 1, (1,), generator=generator))
        return tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist())

    return Traces(
        prompts=tuple((1, *draw(6)) for _ in range(num)), completions=tuple((*draw(5), 2) for _ in range(num))
    )
