"""What determines eval rows and throughput rows, given a model and a seed."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import DEVICES


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """How a task's problems become accuracy and divergence rows."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    num_problems: int = 100  # test problems per task
    max_new_tokens: int = 64  # a completion that has not ended by then counts as it stands
    batch_size: int = 256  # sequences at once
    confidence: float = 0.95  # of the bootstrap intervals
    resamples: int = 2000  # bootstrap resamples

    def __post_init__(self) -> None:
        for name in ("num_problems", "max_new_tokens", "batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.confidence < 1:
            raise UserError(f"confidence={self.confidence} must lie between 0 and 1, e.g. 0.95")


@dataclass(frozen=True, kw_only=True, slots=True)
class ThroughputConfig:
    """At which points speed is measured, and what decodes."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    contexts: tuple[int, ...] = (128, 1024, 4096)  # tokens in the cache when decoding starts; prompt lengths
    # Further contexts, for decoding only: reached by a cache that is lengthened, not by a prompt that is read.
    decode_contexts: tuple[int, ...] = ()
    batch_size: int | tuple[int, ...] = 8  # sequences at once; several: each context with each
    decode_tokens: int = 16  # tokens per sequence in one timed decode
    repeats: int = 3  # timed runs per point; the median counts
    max_seconds_per_point: float = 60.0  # no further repeat starts after this; the first always runs
    # What decodes: the runner with static caches (on a GPU one CUDA graph a step), or the model's own forward pass.
    decoder: Literal["auto", "runner", "model"] = (
        "auto"  # auto: the runner, unless it does not know the model
    )

    # The teacher decodes a few steps between a model's repeats, so that a busy machine slows both; needs room for both.
    in_turn: bool = True

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes, smallest first."""
        return (self.batch_size,) if isinstance(self.batch_size, int) else self.batch_size

    def __post_init__(self) -> None:
        if not self.contexts or list(self.contexts) != sorted(set(self.contexts)) or self.contexts[0] < 1:
            raise UserError(f"contexts={list(self.contexts)} must be positive and strictly increasing")
        longer = (self.contexts[-1], *self.decode_contexts)
        if list(longer) != sorted(set(longer)):
            raise UserError(
                f"decode_contexts={list(self.decode_contexts)} must be strictly increasing and longer than "
                f"contexts={list(self.contexts)}"
            )
        sizes = list(self.batch_sizes)
        if not sizes or sizes != sorted(set(sizes)) or sizes[0] < 1:
            raise UserError(
                f"batch_size={sizes} must be a positive number, or several in strictly increasing order"
            )
        for name in ("decode_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.decoder not in ("auto", "runner", "model"):
            raise UserError(f"decoder={self.decoder!r} is unknown; choose auto, runner or model")
        if self.max_seconds_per_point <= 0:
            raise UserError(f"max_seconds_per_point={self.max_seconds_per_point} must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class RooflineConfig:
    """For which devices and at which points the byte model is written out; nothing is measured but the device."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    devices: tuple[str, ...] = ("H100", "H200", "B200")  # by their datasheets, beside the present device
    contexts: tuple[int, ...] = (128, 512, 2048, 8192, 32768, 131072)  # tokens held by each sequence
    batch_size: int = 8  # sequences at once, of the curves

    def __post_init__(self) -> None:
        if unknown := [name for name in self.devices if name not in DEVICES]:
            raise UserError(f"no datasheet of device {unknown[0]!r}; known: {', '.join(DEVICES)}")
        if not self.contexts or list(self.contexts) != sorted(set(self.contexts)) or self.contexts[0] < 1:
            raise UserError(f"contexts={list(self.contexts)} must be positive and strictly increasing")
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size} must be at least 1")
