"""Start a mixer from the attention it replaces. SWA: all of it. Mamba: V -> x, K -> B, Q -> C, O -> out_proj.
GDN and KDA: Q, K, V and O, keys and values repeated for their query heads.

What attention has no counterpart for starts so that it does no harm and learns at once: the gate is open and
constant, the convolution passes the current token through, and every parameter has a gradient from the first
step on.
"""

import copy
import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import nn

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import (
    FullAttentionConfig,
    GatedDeltaNetConfig,
    KimiDeltaConfig,
    MambaConfig,
    MixerConfig,
    SlidingWindowConfig,
)
from apriel_assets.hybrid.mixers.delta.mixer import GatedDeltaNetMixer, KimiDeltaMixer, repeat_heads
from apriel_assets.hybrid.mixers.mamba.mixer import MambaMixer
from apriel_assets.hybrid.mixers.sliding_window import SlidingWindowMixer

Init = Literal["mapped", "random"]

OPEN_GATE = 1.2784645427610738
"""SiLU of this is 1: the gate's bias, so that it starts open."""

_MAMBA_SOURCES = {"x_proj": "v_proj", "B_proj": "k_proj", "C_proj": "q_proj", "out_proj": "o_proj"}
_DELTA_SOURCES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
_AnyDeltaMixer = GatedDeltaNetMixer | KimiDeltaMixer


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
            case GatedDeltaNetConfig():
                return GatedDeltaNetMixer(attention, options)
            case KimiDeltaConfig():
                return KimiDeltaMixer(attention, options)
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
        raise UserError("full attention is what mixers are converted from; choose another mixer")
    mixer = build_mixer(attention, options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if init == "random":
            _reset(mixer, generator)
        if isinstance(mixer, MambaMixer):
            if init == "mapped":
                _copy_attention(mixer, attention, _MAMBA_SOURCES)
            _start_mamba(mixer, generator)
        elif isinstance(mixer, GatedDeltaNetMixer | KimiDeltaMixer):
            if init == "mapped":
                _copy_attention(mixer, attention, _DELTA_SOURCES)
            _start_delta(mixer, generator)
    return mixer


def _copy_attention(
    mixer: MambaMixer | _AnyDeltaMixer, attention: nn.Module, sources: Mapping[str, str]
) -> None:
    """Copy projections with their biases; QK-norms came with the structure."""
    shape = mixer.shape
    for target, source in sources.items():
        module = cast(nn.Linear, getattr(mixer, target))
        weights: dict[str, torch.Tensor] = getattr(attention, source).state_dict()
        if weights["weight"].shape[0] < module.out_features:  # key-value heads, for a head per query
            weights = {
                name: repeat_heads(value, shape.head_size, shape.queries_per_kv_head)
                for name, value in weights.items()
            }
        module.load_state_dict(weights)


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


def _start_mamba(mixer: MambaMixer, generator: torch.Generator) -> None:
    """Set what attention has no counterpart for: gate, convolution, step size, decay, skip."""
    options = mixer.options
    mixer.z_proj.weight.zero_()
    mixer.z_proj.bias.fill_(OPEN_GATE)
    _pass_through(mixer.conv)
    cast(torch.Tensor, mixer.conv.bias).zero_()
    _uniform(mixer.dt_in_proj.weight, 1 / math.sqrt(mixer.dt_in_proj.in_features), generator)
    _uniform(mixer.dt_proj.weight, 1 / math.sqrt(mixer.dt_proj.in_features), generator)
    log_dt = torch.empty(mixer.inner_size).uniform_(
        math.log(options.dt_min), math.log(options.dt_max), generator=generator
    )
    mixer.dt_proj.bias.copy_(_inverse_softplus(log_dt.exp()))
    rates = (
        torch.arange(1, mixer.state_size + 1) if options.decay == "spread" else torch.ones(mixer.state_size)
    )
    mixer.A_log.copy_(rates.log().expand_as(mixer.A_log))
    mixer.D.fill_(1.0)


def _start_delta(mixer: _AnyDeltaMixer, generator: torch.Generator) -> None:
    """Set what attention has no counterpart for: decay, strength of the write, gate, convolution.

    All are constant at first: decays differ by head or channel only, half of each value is written, the
    output gate is sigmoid(0) = 1/2 and the norm's weight 2 makes up for it.
    """
    options, heads = mixer.options, mixer.shape.num_heads
    _pass_through(mixer.conv)
    mixer.beta_proj.weight.zero_()
    mixer.norm.weight.fill_(2.0)
    mixer.A_log.zero_()
    per_head = mixer.dt_bias.numel() // heads
    spread = torch.linspace(math.log(options.rate_min), math.log(options.rate_max), max(heads, per_head))
    rates = spread[:heads] if per_head == 1 else spread[:per_head].repeat(heads)
    mixer.dt_bias.copy_(_inverse_softplus(rates.exp()))
    if isinstance(mixer, KimiDeltaMixer):
        _cancel(mixer.decay_in_proj, mixer.decay_proj, generator)
        _cancel(mixer.gate_in_proj, mixer.gate_proj, generator)
    else:
        mixer.decay_proj.weight.zero_()
        mixer.gate_proj.weight.zero_()


def _cancel(into: nn.Linear, out: nn.Linear, generator: torch.Generator) -> None:
    """Start a bottleneck as pairs of equal inputs and opposite outputs.

    Its product is 0 and both matrices have gradients; a zero matrix would keep the other from learning.
    """
    half = into.out_features // 2
    for weight, fan_in in ((into.weight[:half], into.in_features), (out.weight[:, :half], 2 * half)):
        _uniform(weight, 1 / math.sqrt(fan_in), generator)
    into.weight[half:] = into.weight[:half]
    out.weight[:, half:] = -out.weight[:, :half]


def _pass_through(conv: nn.Conv1d) -> None:
    conv.weight.zero_()
    conv.weight[..., -1] = 1.0


def _inverse_softplus(values: torch.Tensor) -> torch.Tensor:
    return torch.log(torch.expm1(values))


def _uniform(weight: torch.Tensor, bound: float, generator: torch.Generator) -> None:
    # Drawn on CPU in fp32, so that a seed means the same on every device and in every dtype.
    weight.copy_(torch.empty(weight.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator))
