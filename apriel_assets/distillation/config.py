"""What determines a distilled student's weights, given student, teacher, traces and seed. No torch here."""

from dataclasses import dataclass
from typing import Literal

from apriel_assets.errors import UserError

Loss = Literal["reverse_kl", "forward_kl", "cross_entropy"]
Optimizer = Literal["muon", "adamw"]
Decay = Literal["linear", "cosine", "constant"]
Overlong = Literal["refuse", "truncate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """One training run: distillation from a teacher, or SFT (`loss="cross_entropy"`, no teacher)."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by pydantic, never mutated)

    steps: int = 100  # optimiser steps
    batch_size: int = 16  # sequences per optimiser step, all micro-batches and processes together
    gradient_accumulation: int = 1  # micro-batches per step; changes memory, not the result
    loss: Loss = "reverse_kl"
    temperature: float = 1.0  # divides both sides' logits
    trains: Literal["all", "mixers"] = "all"  # mixers: only those that are not full attention
    optimizer: Optimizer = "muon"
    learning_rate: float = 1e-3  # AdamW
    muon_learning_rate: float = 1e-2
    weight_decay: float = 0.0  # of matrices only, never of norms, biases, embeddings, decay rates
    warmup_fraction: float = 0.05  # share of the steps
    decay: Decay = "linear"  # to zero after the last step
    grad_clip_norm: float | None = 1.0  # None: no clipping
    max_tokens: int | None = None  # longest trace, prompt and completion together; None: any
    overlong: Overlong = "refuse"  # what happens to longer traces
    save_every: int = 100  # steps between resume points

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation", "save_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")
        for name in ("temperature", "learning_rate", "muon_learning_rate"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number >= 0")
        _require(0 <= self.warmup_fraction <= 1, "warmup_fraction", self.warmup_fraction, "between 0 and 1")
        _require(
            self.grad_clip_norm is None or self.grad_clip_norm > 0,
            "grad_clip_norm",
            self.grad_clip_norm,
            "a number > 0, or null for no clipping",
        )
        _require(
            self.max_tokens is None or self.max_tokens >= 2,
            "max_tokens",
            self.max_tokens,
            "an integer >= 2, or null",
        )
        _require(
            self.batch_size % self.gradient_accumulation == 0,
            "gradient_accumulation",
            self.gradient_accumulation,
            f"a divisor of batch_size={self.batch_size}",
        )
        _require(
            self.loss != "cross_entropy" or self.temperature == 1,
            "temperature",
            self.temperature,
            "1 with loss cross_entropy (there is no teacher to soften)",
        )


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise UserError(f"{name}={value} is not allowed; give {allowed}")
