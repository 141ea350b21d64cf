"""What limits decode and prefill, from shapes alone: bytes read per step, FLOP, and the device's ridge point.

Decode rereads weights and KV cache for every token, so its speed is bandwidth over bytes; prefill is limited
by FLOP. The ratio of two models' bytes (or FLOP) is the speed-up that perfect kernels would show. No torch
here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from apriel_assets.errors import UserError

Phase = Literal["prefill", "decode"]

_STATE_BYTES = 4  # recurrent states are fp32: bf16 drops small updates
_FULL_ATTENTION = "fa"


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Peak figures of one device, dense bf16."""

    flops_per_s: float
    bytes_per_s: float

    @property
    def ridge_flops_per_byte(self) -> float:
        """Arithmetic intensity at which compute and bandwidth are equally long."""
        return self.flops_per_s / self.bytes_per_s


DEVICES: Mapping[str, Device] = {
    "H100": Device(flops_per_s=989e12, bytes_per_s=3.35e12),
    "H200": Device(flops_per_s=989e12, bytes_per_s=4.8e12),
    "B200": Device(flops_per_s=2250e12, bytes_per_s=8e12),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The sizes that bytes and FLOP depend on."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    weight_bytes: float = 2  # of one parameter
    cache_bytes: float = 2  # of one key or value element
    window: int = 64  # tokens that SWA sees
    state_size: int | None = None  # Mamba's state per channel; None: the head size
    conv_size: int = 4  # tokens of the causal convolutions
    dt_rank: int | None = None  # width of Mamba's step-size bottleneck; None: hidden size / 16, rounded up
    gate_rank: int | None = None  # width of KDA's bottlenecks; None: the head size

    @classmethod
    def from_config(cls, config: Any, **changes: Any) -> "ModelShape":
        """Read the sizes from a text model's config (Llama's names); `changes` override or add.

        Raises:
            UserError: the config lacks a size.
        """
        names = ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
        if missing := [name for name in names if getattr(config, name, None) is None]:
            raise UserError(
                f"config {type(config).__name__} has no {', '.join(missing)}; give a Llama-like one"
            )
        heads = config.num_attention_heads
        sizes = {
            "hidden_size": config.hidden_size,
            "num_heads": heads,
            "num_kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
            "intermediate_size": config.intermediate_size,
            "vocab_size": config.vocab_size,
        }
        return cls(**{**sizes, **changes})

    @property
    def inner_size(self) -> int:
        """Channels of all query heads together."""
        return self.num_heads * self.head_size

    @property
    def mamba_state_size(self) -> int:
        """Mamba's state per channel."""
        return self.state_size or self.head_size


def mixer_parameters(shape: ModelShape, mixer: str) -> int:
    """Return the parameters of one layer's mixer; biases and norms are left out.

    Raises:
        UserError: a mixer that this model does not know.
    """
    d, inner, kv = shape.hidden_size, shape.inner_size, shape.num_kv_heads * shape.head_size
    if mixer in ("fa", "swa"):
        return 2 * d * inner + 2 * d * kv
    if mixer == "mamba":
        rank = shape.dt_rank or -(-d // 16)
        projections = d * (3 * inner + 2 * kv + rank) + rank * inner  # z, C, out; x, B; step size down and up
        return projections + inner * shape.mamba_state_size + (inner + 2 * kv) * shape.conv_size
    if mixer in ("gdn", "kda"):
        parameters = 4 * d * inner + d * shape.num_heads + 3 * inner * shape.conv_size  # q, k, v, out; beta
        if mixer == "gdn":
            return parameters + d * inner + d * shape.num_heads  # output gate; decay
        return parameters + 2 * (shape.gate_rank or shape.head_size) * (d + inner)  # both through bottlenecks
    raise UserError(f"no byte model for mixer {mixer!r}; known: fa, swa, mamba, gdn, kda")


def cache_bytes_per_layer(shape: ModelShape, mixer: str, context: int) -> float:
    """Return the KV cache, or recurrent and conv state, that a layer keeps of one sequence."""
    per_token = 2 * shape.num_kv_heads * shape.head_size * shape.cache_bytes
    if mixer == "fa":
        return per_token * context
    if mixer == "swa":
        return per_token * min(context, shape.window)
    if mixer == "mamba":
        state = shape.inner_size * shape.mamba_state_size * _STATE_BYTES
        channels = shape.inner_size + 2 * shape.num_kv_heads * shape.head_size  # C, x and B are convolved
        return state + channels * (shape.conv_size - 1) * shape.cache_bytes
    if mixer in ("gdn", "kda"):
        state = shape.inner_size * shape.head_size * _STATE_BYTES
        return state + 3 * shape.inner_size * (shape.conv_size - 1) * shape.cache_bytes
    raise UserError(f"no byte model for mixer {mixer!r}; known: fa, swa, mamba, gdn, kda")


def num_parameters(shape: ModelShape, placement: Sequence[str]) -> int:
    """Return the parameters that a step reads: mixers, SwiGLU blocks and LM head, not the embedding table."""
    feed_forward = 3 * shape.hidden_size * shape.intermediate_size
    mixers = sum(mixer_parameters(shape, mixer) for mixer in placement)
    return mixers + len(placement) * feed_forward + shape.vocab_size * shape.hidden_size


def decode_bytes_per_step(shape: ModelShape, placement: Sequence[str], context: int, batch: int) -> float:
    """Return the bytes that one decode step moves for `batch` sequences of `context` tokens.

    Weights once; KV caches are read once, recurrent states read and written, per sequence.
    """
    weights = num_parameters(shape, placement) * shape.weight_bytes
    per_sequence = 0.0
    for mixer in placement:
        passes = 1 if mixer in ("fa", "swa") else 2
        per_sequence += passes * cache_bytes_per_layer(shape, mixer, context)
    return weights + batch * per_sequence


def decode_flops_per_step(shape: ModelShape, placement: Sequence[str], context: int, batch: int) -> float:
    """Return the FLOP of one decode step of `batch` sequences that hold `context` tokens with the new one."""
    mixing = sum(token_mixing_flops(shape, mixer, context) for mixer in placement)
    return batch * (2 * num_parameters(shape, placement) + mixing)


def prefill_flops(shape: ModelShape, placement: Sequence[str], context: int, batch: int) -> float:
    """Return the FLOP of reading `batch` prompts of `context` tokens; logits of the last token only."""
    head = shape.vocab_size * shape.hidden_size
    per_token = 2 * (num_parameters(shape, placement) - head)
    mixing = sum(_mixing_flops(shape, mixer, context) for mixer in placement)
    return batch * (per_token * context + mixing + 2 * head)


def _mixing_flops(shape: ModelShape, mixer: str, context: int) -> float:
    """Return the FLOP of one layer's token mixing over one prompt, projections left out."""
    if mixer in ("fa", "swa"):
        span = context if mixer == "fa" else min(context, shape.window)
        # Token t sees min(t, span) positions; scores and weighted sum cost 2 FLOP per channel and position
        # each.
        seen = span * (span + 1) // 2 + (context - span) * span
        return 4 * shape.inner_size * seen
    return token_mixing_flops(shape, mixer, context) * context


def token_mixing_flops(shape: ModelShape, mixer: str, context: int) -> float:
    """Return the FLOP of one layer's mixing for the last token of a context, projections left out."""
    if mixer in ("fa", "swa"):
        return 4 * shape.inner_size * (context if mixer == "fa" else min(context, shape.window))
    # Per state element: decay, write and read at 2 FLOP each; the delta rule reads once more.
    width = shape.mamba_state_size if mixer == "mamba" else shape.head_size
    return (6 if mixer == "mamba" else 8) * shape.inner_size * width


def kv_read_intensity(shape: ModelShape) -> float:
    """Return attention's FLOP per byte of KV cache in decode, at any context.

    Each cached position costs 4 h_q d_h FLOP (scores and weighted sum) and 2 h_kv d_h b bytes.
    """
    return 2 * shape.num_heads / (shape.num_kv_heads * shape.cache_bytes)


def decode_tokens_per_s_bound(
    shape: ModelShape, placement: Sequence[str], context: int, batch: int, device: Device
) -> float:
    """Return the most tokens/s, all sequences together, that the device's bandwidth and FLOP/s allow in decode."""
    moving = decode_bytes_per_step(shape, placement, context, batch) / device.bytes_per_s
    computing = decode_flops_per_step(shape, placement, context, batch) / device.flops_per_s
    return batch / max(moving, computing)


def prefill_tokens_per_s_bound(
    shape: ModelShape, placement: Sequence[str], context: int, batch: int, device: Device
) -> float:
    """Return the most prompt tokens/s, all sequences together, that the device's FLOP/s allow."""
    return batch * context * device.flops_per_s / prefill_flops(shape, placement, context, batch)


def modelled_speedup(
    shape: ModelShape, placement: Sequence[str], context: int, batch: int, phase: Phase = "decode"
) -> float:
    """Return the all-FA model's bytes (decode) or FLOP (prefill) over this placement's.

    Raises:
        UserError: an empty placement, no tokens or sequences, an unknown phase or mixer.
    """
    if not placement or context < 1 or batch < 1:
        raise UserError(f"{len(placement)} layers, context {context}, batch {batch}: each must be at least 1")
    if phase not in ("prefill", "decode"):
        raise UserError(f"unknown phase {phase!r}; phases are prefill and decode")
    amount = decode_bytes_per_step if phase == "decode" else prefill_flops
    full = (_FULL_ATTENTION,) * len(placement)
    return amount(shape, full, context, batch) / amount(shape, placement, context, batch)
