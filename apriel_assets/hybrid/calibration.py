"""Set how loud a new mixer starts, relative to the attention it replaces.

A converted mixer is not yet what the attention was, so at first its output is mostly noise to the layers
above. Starting it softer lets the teacher's residual stream through while the mixer learns; measured in
docs/log.md.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from apriel_assets.hybrid.forward_context import active_context

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

_RANDOM_BATCH = (8, 64)  # sequences, tokens


@torch.no_grad()
def set_output_scale(
    model: "HybridForCausalLM",
    mixers: Mapping[int, nn.Module],
    scale: float,
    input_ids: torch.Tensor | None,
    seed: int,
) -> None:
    """Scale each mixer's `out_proj` so that its output has `scale` times the active mixer's root mean square.

    On `out_proj` and not on the gate: the optimisers' steps are as large for a small matrix as for a large
    one, so a quiet `out_proj` learns quickly, while behind a nearly closed gate everything learns slowly.

    Args:
        model: still without the new mixers; gives each layer's input and the output to compare with.
        mixers: the new mixers by layer; modules with an `out_proj`.
        scale: wanted size over the active mixer's, > 0.
        input_ids: `[batch, seq]`; None: random tokens, which need no data and give sizes near enough.
        seed: of the random tokens.
    """
    if input_ids is None:
        generator = torch.Generator().manual_seed(seed)
        vocab_size = model.get_input_embeddings().num_embeddings
        input_ids = torch.randint(cast(int, vocab_size), _RANDOM_BATCH, generator=generator)
    factors: dict[int, float] = {}

    def compare(bank: nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple) -> None:
        layer = cast(int, bank.layer)
        mixed, _ = mixers[layer](active_context(), layer, *args, **kwargs)
        sizes = [values.float().square().mean().sqrt().item() for values in (output[0], mixed)]
        factors[layer] = scale * sizes[0] / sizes[1]

    handles = [model.banks[layer].register_forward_hook(compare, with_kwargs=True) for layer in mixers]
    try:
        model.final_hidden_states(input_ids.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    for layer, factor in factors.items():
        cast(nn.Linear, mixers[layer].out_proj).weight.mul_(factor)
