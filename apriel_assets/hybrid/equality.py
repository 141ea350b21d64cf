"""Whether two models are the same: their weights tensor by tensor, their logits on a probe batch.

Not for tolerances: what ships as the teacher must be the teacher bit for bit, and what was written must be what was
trained.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement

_PROBE_SHAPE = (2, 48)  # sequences, tokens: short, since a wrong mixer is wrong from the first tokens on


def largest_difference(
    model: HybridForCausalLM, other: HybridForCausalLM, placement: Placement | None = None
) -> float:
    """Return the largest absolute difference of two models' logits under one placement.

    The probe batch is random tokens, the same at every call. Both models are left as they were.

    Args:
        model: holds the placement.
        other: holds it too, on the same device.
        placement: None: full attention in every layer.

    Returns:
        0 if the logits are the same bit for bit; NaN if one of them is not a number.

    Raises:
        UserError: a layer that does not hold its mixer.
    """
    placement = placement or (FULL_ATTENTION,) * model.num_layers
    ours, theirs = (probe_logits(one, placement) for one in (model, other))
    return (ours - theirs.to(ours.device)).abs().max().item()


def probe_logits(model: HybridForCausalLM, placement: Placement) -> Tensor:
    """Return a placement's logits of the probe batch, `[batch, seq, vocab]`; the model is left as it was."""
    with _probed(model, placement), torch.inference_mode():
        return model(_probe_ids(model), use_cache=False).logits


def tensors_that_differ(model: HybridForCausalLM, path: Path) -> list[str]:
    """Load a checkpoint on the CPU and return the names of tensors that are not the model's bit for bit.

    Raises:
        UserError: weights are missing, unexpected or of the wrong shape.
    """
    loaded = HybridForCausalLM.from_pretrained(path).state_dict()
    own = model.state_dict()
    names = own.keys() | loaded.keys()
    return sorted(
        name for name in names if name not in own or name not in loaded or not _same(own[name], loaded[name])
    )


def _same(one: Tensor, other: Tensor) -> bool:
    # Compared as bytes: NaN differs from itself, and -0 equals 0.
    one, other = one.detach().cpu().contiguous(), other.detach().cpu().contiguous()
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


@contextmanager
def _probed(model: HybridForCausalLM, placement: Sequence[str]) -> Iterator[None]:
    training, before = model.training, model.placement
    model.eval().set_placement(tuple(placement))
    try:
        yield
    finally:
        model.set_placement(before)
        model.train(training)


def _probe_ids(model: HybridForCausalLM) -> Tensor:
    vocabulary = cast(Tensor, model.backbone.get_input_embeddings().weight).shape[0]
    ids = torch.randint(0, vocabulary, _PROBE_SHAPE, generator=torch.Generator().manual_seed(0))
    return ids.to(model.device)
