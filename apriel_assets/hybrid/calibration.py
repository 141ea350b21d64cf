"""Match a new mixer's output size to that of the attention it replaces, on a batch of tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from apriel_assets.hybrid.forward_context import active_context

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

_RANDOM_BATCH = (8, 64)  # sequences, tokens


@torch.no_grad()
def match_output_scale(
    model: "HybridForCausalLM", mixers: Mapping[int, nn.Module], input_ids: torch.Tensor | None, seed: int
) -> None:
    """Scale each mixer's `out_proj` weight so that its output has the root mean square of the active mixer's.

    Args:
        model: still without the new mixers; gives each layer's input and the output to match.
        mixers: the new mixers by layer; a module with an `out_proj`.
        input_ids: `[batch, seq]`; None: random tokens, which need no data and give sizes near enough.
        seed: of the random tokens.
    """
    if input_ids is None:
        generator = torch.Generator().manual_seed(seed)
        vocab_size = model.get_input_embeddings().num_embeddings
        input_ids = torch.randint(cast(int, vocab_size), _RANDOM_BATCH, generator=generator)
    scales: dict[int, torch.Tensor] = {}

    def compare(bank: nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple) -> None:
        layer = cast(int, bank.layer)
        mixed, _ = mixers[layer](active_context(), layer, *args, **kwargs)
        scales[layer] = output[0].float().square().mean().sqrt() / mixed.float().square().mean().sqrt()

    handles = [model.banks[layer].register_forward_hook(compare, with_kwargs=True) for layer in mixers]
    try:
        model.final_hidden_states(input_ids.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    for layer, scale in scales.items():
        cast(torch.Tensor, cast(nn.Linear, mixers[layer].out_proj).weight).mul_(scale)
