"""Set how loud a new mixer starts, relative to the attention it replaces.

A converted mixer is not yet what the attention was, so at first its output is mostly noise to the layers above. Starting
it softer lets the teacher's residual stream through while the mixer learns; measured in docs/log.md.
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
    """Set each mixer's constant gate so that its output has `scale` times the active mixer's root mean square.

    Args:
        model: still without the new mixers; gives each layer's input and the output to compare with.
        mixers: the new mixers by layer, with gates that are 1 for every token (`z_proj` bias, weights zero).
        scale: wanted size over the active mixer's, > 0.
        input_ids: `[batch, seq]`; None: random tokens, which need no data and give sizes near enough.
        seed: of the random tokens.
    """
    if input_ids is None:
        generator = torch.Generator().manual_seed(seed)
        vocab_size = model.get_input_embeddings().num_embeddings
        input_ids = torch.randint(cast(int, vocab_size), _RANDOM_BATCH, generator=generator)
    gates: dict[int, float] = {}

    def compare(bank: nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple) -> None:
        layer = cast(int, bank.layer)
        mixed, _ = mixers[layer](active_context(), layer, *args, **kwargs)
        sizes = [values.float().square().mean().sqrt().item() for values in (output[0], mixed)]
        gates[layer] = scale * sizes[0] / sizes[1]

    handles = [model.banks[layer].register_forward_hook(compare, with_kwargs=True) for layer in mixers]
    try:
        model.final_hidden_states(input_ids.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    for layer, gate in gates.items():
        cast(torch.Tensor, cast(nn.Linear, mixers[layer].z_proj).bias).fill_(inverse_silu(gate))


def inverse_silu(value: float) -> float:
    """Return the x >= 0 with x * sigmoid(x) = value, for value >= 0, to fp64 rounding."""
    assert value >= 0, value
    x = torch.tensor(value, dtype=torch.float64)
    for _ in range(60):  # Newton; SiLU is convex and increasing enough on x >= 0 to converge from any value
        sigmoid = torch.sigmoid(x)
        x = (x - (x * sigmoid - value) / (sigmoid * (1 + x * (1 - sigmoid)))).clamp(min=0)
    return x.item()
