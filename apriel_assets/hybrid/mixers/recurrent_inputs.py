"""What recurrent mixers do to queries, keys and values before the recurrence: QK-norms, causal convolution."""

import copy
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from apriel_assets.errors import UserError
from apriel_assets.hybrid.caches import RecurrentLayer
from apriel_assets.hybrid.mixers.kernels import FLA, use_library


def norm_like(attention: nn.Module, name: str, size: int, head_size: int) -> nn.Module | None:
    """Return a copy of an attention's QK-norm, or None where it has none.

    Raises:
        UserError: a norm over something else than a head or the whole projection.
    """
    norm = getattr(attention, name, None)
    if norm is None:
        return None
    weight = getattr(norm, "weight", None)
    if weight is None or weight.numel() not in (size, head_size):
        raise UserError(
            f"{type(attention).__name__}.{name} normalises neither a head ({head_size}) nor all ({size})"
        )
    return copy.deepcopy(norm)


def apply_norm(norm: nn.Module | None, values: torch.Tensor) -> torch.Tensor:
    """Apply a QK-norm to `[batch, seq, size]`: whole or head by head, as its weight says."""
    if norm is None:
        return values
    return norm(values.unflatten(-1, (-1, cast(torch.Tensor, norm.weight).numel()))).flatten(-2)


def convolve(
    conv: nn.Conv1d, values: torch.Tensor, state: RecurrentLayer | None, kernel: str = "auto"
) -> torch.Tensor:
    """Return SiLU of the causal depthwise convolution, going on from cached tokens and caching the last ones.

    Args:
        conv: without padding of its own.
        values: `[batch, seq, channels]`; zeros stand for tokens that are not there.
        state: keeps the last tokens; None: a text starts here and nothing is kept.
        kernel: the mixer's option; unless "torch", a GPU takes flash-linear-attention's convolution where it has it.

    Returns:
        `[batch, seq, channels]`.
    """
    seq_len, history = values.shape[1], conv.kernel_size[0] - 1
    by_fla = seq_len > 1 and use_library(FLA, "torch" if kernel == "torch" else "auto", values.device)
    if by_fla and state is None:
        return _convolve_fla(conv, values)
    values = values.transpose(1, 2)
    if state is not None:
        values = state.update_conv_state(values, conv_kernel_size=history)
    # A first pass comes back without a past, or with zeros for part of it.
    values = functional.pad(values, (seq_len + history - values.shape[-1], 0))
    if (
        seq_len == 1
    ):  # decoding: a sum of four products, where a convolution's set-up costs more than its work
        mixed = (values * conv.weight[:, 0]).sum(-1)
        mixed = mixed if conv.bias is None else mixed + conv.bias
        return functional.silu(mixed)[:, None]
    if by_fla:
        return _convolve_fla(conv, values.transpose(1, 2).contiguous())[:, history:]
    return functional.silu(conv(values)).transpose(1, 2)


def _convolve_fla(conv: nn.Conv1d, values: torch.Tensor) -> torch.Tensor:
    """The same by flash-linear-attention's kernels, `[batch, seq, channels]`, zeros before the first token."""
    from fla.modules.causal_conv1d import causal_conv1d  # pyright: ignore[reportMissingImports]

    mixed, _ = causal_conv1d(values, weight=conv.weight[:, 0], bias=conv.bias, activation="silu")
    return mixed
