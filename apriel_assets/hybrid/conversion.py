"""Start a mixer from the attention it replaces. Mamba: V -> x, K -> B, Q -> C, O -> out_proj; SWA: all of it.

What attention has no counterpart for starts so that it does no harm and learns at once: the gate is open and
constant, the convolution passes the current token through, and every parameter has a gradient from the first
step on.
"""

import copy
import math
from typing import Literal, cast

import torch
from torch import nn

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import FullAttentionConfig, MambaConfig, MixerConfig, SlidingWindowConfig
from apriel_assets.hybrid.mixers.mamba.mixer import MambaMixer
from apriel_assets.hybrid.mixers.sliding_window import SlidingWindowMixer

Init = Literal["mapped", "random"]

OPEN_GATE = 1.2784645427610738
"""SiLU of this is 1: the gate's bias, so that it starts open."""

_MAMBA_SOURCES = {"x_proj": "v_proj", "B_proj": "k_proj", "C_proj": "q_proj", "out_proj": "o_proj"}


def build_mixer(attention: nn.Module, options: MixerConfig) -> nn.Module:
    """Return a mixer shaped after an attention module; its weights are still to be set or loaded.

    Raises:
        UserError: attention that the mixer cannot be shaped after.
    """
    # fork_rng: torch's layers draw their first weights from the global generator, which is not ours to
    # advance.
    with torch.random.fork_rng(devices=[]):
        match options:
            case FullAttentionConfig():
                return attention
            case SlidingWindowConfig():
                return SlidingWindowMixer(copy.deepcopy(attention), options.window)
            case MambaConfig():
                return MambaMixer(attention, options)


def convert_attention(attention: nn.Module, options: MixerConfig, *, init: Init, seed: int) -> nn.Module:
    """Return a new mixer that starts from an attention module, which is left as it is.

    Args:
        attention: an attention module of the usual projections.
        options: which mixer, and how it is built.
        init: "mapped": weights come from the attention; "random": a fresh mixer of the same shape.
        seed: of the random weights.

    Raises:
        UserError: shapes that do not fit, or nothing to convert to.
    """
    if isinstance(options, FullAttentionConfig):
        raise UserError("full attention is what mixers are converted from; choose swa or mamba")
    mixer = build_mixer(attention, options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if init == "random":
            _reset(mixer, generator)
        if isinstance(mixer, MambaMixer):
            if init == "mapped":
                _copy_attention(mixer, attention)
            _start_fresh_parts(mixer, generator)
    return mixer


def _copy_attention(mixer: MambaMixer, attention: nn.Module) -> None:
    """Copy projections with their biases; QK-norms came with the structure."""
    for target, source in _MAMBA_SOURCES.items():
        cast(nn.Linear, getattr(mixer, target)).load_state_dict(getattr(attention, source).state_dict())


def _reset(mixer: nn.Module, generator: torch.Generator) -> None:
    """Set linear layers as torch does by default, and norms to one."""
    for module in mixer.modules():
        if isinstance(module, nn.Linear):
            _uniform(module.weight, 1 / math.sqrt(module.in_features), generator)
            if module.bias is not None:
                module.bias.zero_()
    for name, parameter in mixer.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)


def _start_fresh_parts(mixer: MambaMixer, generator: torch.Generator) -> None:
    """Set what attention has no counterpart for: gate, convolution, step size, decay, skip."""
    options = mixer.options
    mixer.z_proj.weight.zero_()
    mixer.z_proj.bias.fill_(OPEN_GATE)
    mixer.conv.weight.zero_()
    mixer.conv.weight[..., -1] = 1.0
    cast(torch.Tensor, mixer.conv.bias).zero_()
    _uniform(mixer.dt_in_proj.weight, 1 / math.sqrt(mixer.dt_in_proj.in_features), generator)
    _uniform(mixer.dt_proj.weight, 1 / math.sqrt(mixer.dt_proj.in_features), generator)
    log_dt = torch.empty(mixer.inner_size).uniform_(
        math.log(options.dt_min), math.log(options.dt_max), generator=generator
    )
    # The bias whose softplus is dt.
    mixer.dt_proj.bias.copy_(torch.log(torch.expm1(log_dt.exp())))
    rates = (
        torch.arange(1, mixer.state_size + 1) if options.decay == "spread" else torch.ones(mixer.state_size)
    )
    mixer.A_log.copy_(rates.log().expand_as(mixer.A_log))
    mixer.D.fill_(1.0)


def _uniform(weight: torch.Tensor, bound: float, generator: torch.Generator) -> None:
    # Drawn on CPU in fp32, so that a seed means the same on every device and in every dtype.
    weight.copy_(torch.empty(weight.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator))
