"""How much of a GPU's peaks each kind of work reaches: measured where a committed result says so, else assumed.

MFU here is of all FLOP that are executed, recomputed ones and the teacher's included, over the datasheet's dense bf16
peak.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import DEVICES, Device


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it is from."""

    value: float
    source: str  # begins with "measured" or "assumed"


@dataclass(frozen=True, slots=True)
class ScanSeconds:
    """Seconds of a recurrent mixer's kernels per token and channel, forward alone and with the backward pass."""

    forward: float
    forward_and_backward: float
    source: str


_LOSS = "measured: benchmarks/results/loss_gpu.json, ours, 4 products of 8192 x 4096 x 128256 in 55.4 ms"
_DECODE = (
    "measured: benchmarks/results/decode_gpu.json, least share of the datasheet's rate with rows at capacity"
)
_KERNELS = "measured: benchmarks/results/kernels_gpu.json, 8192 tokens, 32 heads of 128"
_KERNEL_CHANNELS = 8192 * 4096  # tokens and channels of the measured kernels

TRAIN_MFU = Figure(
    0.40, "assumed: 0.43 was measured at 1.2B on one H100 (training_gpu.json), less for sharding"
)
FORWARD_MFU = Figure(0.50, "assumed: no backward pass, no optimiser")
LOSS_MFU = Figure(0.628, _LOSS)
DECODE_SHARE = Figure(0.782, _DECODE)

# What a program can have of a device's memory, bytes.
MEMORY_BYTES: Mapping[str, float] = {"H100": 78 * 2**30, "H200": 139 * 2**30}


def _measured(forward_ms: float, both_ms: float) -> ScanSeconds:
    return ScanSeconds(forward_ms / 1e3 / _KERNEL_CHANNELS, both_ms / 1e3 / _KERNEL_CHANNELS, _KERNELS)


# Recurrence and causal convolution, which was timed with 3 x 4096 channels; Mamba convolves half as many.
SCANS: Mapping[str, ScanSeconds] = {
    "mamba": _measured(10.06 + 0.51 / 2, 33.76 + 2.78 / 2),
    "gdn": _measured(1.11 + 0.51, 9.63 + 2.78),
    "kda": _measured(2.09 + 0.51, 9.56 + 2.78),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What turns FLOP and bytes into seconds on one kind of GPU."""

    device: Device = DEVICES["H100"]
    memory_bytes: float = MEMORY_BYTES["H100"]
    train_mfu: float = TRAIN_MFU.value  # of the layers, student and teacher, in a training step
    forward_mfu: float = FORWARD_MFU.value  # of the layers in passes without gradients
    loss_mfu: float = LOSS_MFU.value  # of the LM heads
    decode_share: float = DECODE_SHARE.value  # of the device's bandwidth, by the bytes of decode steps
    scans: Mapping[str, ScanSeconds] = field(default_factory=lambda: SCANS)  # measured on an H100

    @classmethod
    def of(cls, gpu: str, **shares: float) -> "Rates":
        """Return the rates on a GPU by name.

        Raises:
            UserError: an unknown GPU.
        """
        if gpu not in MEMORY_BYTES:
            raise UserError(f"no rates for GPU {gpu!r}; known: {', '.join(MEMORY_BYTES)}")
        return cls(device=DEVICES[gpu], memory_bytes=MEMORY_BYTES[gpu], **shares)  # type: ignore[arg-type]

    def seconds(self, flops: float, mfu: float) -> float:
        """Return the seconds of so many FLOP on one device."""
        return flops / (mfu * self.device.flops_per_s)

    def scan_seconds(self, mixer: str, tokens: float, channels: int, *, backward: bool) -> float:
        """Return the seconds of one layer's recurrence; attention has none, its FLOP are counted."""
        if (scan := self.scans.get(mixer)) is None:
            return 0.0
        return tokens * channels * (scan.forward_and_backward if backward else scan.forward)
