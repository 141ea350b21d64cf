"""What determines eval rows and throughput rows, given a model and a seed."""

from dataclasses import dataclass
from typing import ClassVar

from apriel_assets.errors import UserError


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
    """At which points speed is measured."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    contexts: tuple[int, ...] = (128, 1024, 4096)  # tokens in the cache when decoding starts; prompt lengths
    # Further contexts, for decoding only: reached by a cache that is lengthened, not by a prompt that is read.
    decode_contexts: tuple[int, ...] = ()
    batch_size: int = 8  # sequences at once
    decode_tokens: int = 16  # tokens per sequence in one timed decode
    repeats: int = 3  # timed runs per point; the median counts
    max_seconds_per_point: float = 60.0  # no further repeat starts after this; the first always runs

    def __post_init__(self) -> None:
        if not self.contexts or list(self.contexts) != sorted(set(self.contexts)) or self.contexts[0] < 1:
            raise UserError(f"contexts={list(self.contexts)} must be positive and strictly increasing")
        longer = (self.contexts[-1], *self.decode_contexts)
        if list(longer) != sorted(set(longer)):
            raise UserError(
                f"decode_contexts={list(self.decode_contexts)} must be strictly increasing and longer than "
                f"contexts={list(self.contexts)}"
            )
        for name in ("batch_size", "decode_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_seconds_per_point <= 0:
            raise UserError(f"max_seconds_per_point={self.max_seconds_per_point} must be positive")
