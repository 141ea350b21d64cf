"""Which implementation of the gated delta rule runs. All take and return the same."""

from collections.abc import Callable

import torch

from apriel_assets.hybrid.mixers.delta.reference import delta_rule_reference

Rule = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def choose_rule(device: torch.device, seq_len: int, per_channel: bool) -> Rule:
    """Return the fastest rule for this device, length and kind of decay: the one place that decides."""
    del device, seq_len, per_channel
    return delta_rule_reference
