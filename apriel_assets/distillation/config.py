"""What determines a distilled student's weights, given student, teacher, traces and seed. No torch here."""

import math
from dataclasses import dataclass, field
from typing import Literal

from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import MIXERS
from apriel_assets.slices import UNHASHED

Loss = Literal["reverse_kl", "forward_kl", "cross_entropy"]
Optimizer = Literal["muon", "adamw"]
Decay = Literal["linear", "cosine", "constant"]
Overlong = Literal["refuse", "truncate"]
Sampling = Literal["uniform", "weighted", "allocations", "layouts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How weights move, whatever the loss: which of them, for how many steps, by which optimiser."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by pydantic, never mutated)

    steps: int = 100  # optimiser steps
    trains: Literal["all", "mixers"] = "all"  # mixers: only those that are not full attention
    optimizer: Optimizer = "muon"
    learning_rate: float = 1e-3  # AdamW
    muon_learning_rate: float = 1e-2
    weight_decay: float = 0.0  # of matrices only, never of norms, biases, embeddings, decay rates
    warmup_fraction: float = 0.05  # share of the steps
    decay: Decay = "linear"  # to zero after the last step
    grad_clip_norm: float | None = 1.0  # None: no clipping
    save_every: int = field(default=100, metadata=UNHASHED)  # steps between resume points

    def __post_init__(self) -> None:
        for name in ("steps", "save_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")
        for name in ("learning_rate", "muon_learning_rate"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "a finite number > 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number >= 0")
        require(0 <= self.warmup_fraction <= 1, "warmup_fraction", self.warmup_fraction, "between 0 and 1")
        require(
            self.grad_clip_norm is None or self.grad_clip_norm > 0,
            "grad_clip_norm",
            self.grad_clip_norm,
            "a number > 0, or null for no clipping",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(OptimizerConfig):
    """One training run: distillation from a teacher, or SFT (`loss="cross_entropy"`, no teacher)."""

    batch_size: int = 16  # sequences per optimiser step, all micro-batches and processes together
    # Micro-batches per step: changes memory and the last bits of sums, not the result.
    gradient_accumulation: int = field(default=1, metadata=UNHASHED)
    loss: Loss = "reverse_kl"
    temperature: float = 1.0  # divides both sides' logits
    max_tokens: int | None = None  # longest trace, prompt and completion together; None: any
    overlong: Overlong = "refuse"  # what happens to longer traces
    # Layers are computed again in the backward pass instead of kept: less memory, a third more work.
    activation_checkpointing: bool = field(default=False, metadata=UNHASHED)
    # Traces of a micro-batch stand in one row without padding: pays where their lengths differ. Moves last bits
    packing: bool = False
    compile: bool = False  # fuses MLPs and norms; for GPUs. Moves last bits
    # Several processes: each holds a part of weights, gradients and optimiser state, instead of all of them.
    sharding: bool = field(default=False, metadata=UNHASHED)

    def __post_init__(self) -> None:
        OptimizerConfig.__post_init__(self)  # super() is lost where slots rebuild the class
        for name in ("batch_size", "gradient_accumulation"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "a finite number > 0")
        require(
            self.max_tokens is None or self.max_tokens >= 2,
            "max_tokens",
            self.max_tokens,
            "an integer >= 2, or null",
        )
        require(
            self.batch_size % self.gradient_accumulation == 0,
            "gradient_accumulation",
            self.gradient_accumulation,
            f"a divisor of batch_size={self.batch_size}",
        )
        require(
            self.loss != "cross_entropy" or self.temperature == 1,
            "temperature",
            self.temperature,
            "1 with loss cross_entropy (there is no teacher to soften)",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutConfig:
    """One placement that a supernet trains in a share of its steps."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by pydantic, never mutated)

    placement: tuple[str, ...]  # one mixer per layer, first layer first
    probability: float = 1.0  # relative to the other layouts'; they need not add up to 1

    def __post_init__(self) -> None:
        require_weight("layouts.probability", self.probability)


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetConfig(DistillConfig):
    """Training of a supernet: every step samples one mixer per layer and distils that placement.

    The sampled placement is a function of (seed, step) alone, see `sampling.py`.
    """

    trains: Literal["all", "mixers"] = "mixers"  # mixers: all-FA stays the teacher, bit for bit
    sampling: Sampling = "uniform"
    # weighted: relative chance of a mixer wherever a layer holds it; a mixer not named weighs 1.
    weights: dict[str, float] = field(default_factory=dict)
    layouts: tuple[LayoutConfig, ...] = ()  # layouts: the placements to choose from
    # Weight of the second loss, the squared error of each sampled mixer's output over full attention's.
    mixer_matching: float = 0.0
    # Steps before the first, in which every mixer at once learns full attention's outputs, without sampling.
    align_steps: int = 0
    probe_every: int = 50  # steps between points of the curves; start and end always have one
    random_probes: int = 3  # probe placements with random mixers, beside one of each mixer alone
    probe_traces: int = 16  # held-out traces that the curves are measured on

    def __post_init__(self) -> None:
        DistillConfig.__post_init__(self)
        require(self.loss != "cross_entropy", "loss", self.loss, "reverse_kl or forward_kl for a supernet")
        for name in ("probe_every", "probe_traces"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")
        for name in ("random_probes", "align_steps"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "an integer >= 0")
        # Alignment's errors leave layers by no output, so nothing would gather their weights for the backward pass.
        require(not (self.sharding and self.align_steps), "align_steps", self.align_steps, "0 with sharding")
        matching = self.mixer_matching
        require(0 <= matching < math.inf, "mixer_matching", matching, "a number >= 0, where 0 is off")
        for given, wanted in (("weights", "weighted"), ("layouts", "layouts")):
            fits = bool(getattr(self, given)) == (self.sampling == wanted)
            require(fits, "sampling", self.sampling, f"{wanted} together with {given}, or neither")
        for mixer, weight in self.weights.items():
            require(mixer in MIXERS, "weights", mixer, f"weights of {', '.join(MIXERS)}")
            require_weight(f"weights.{mixer}", weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class MatryoshkaTrainConfig(DistillConfig):
    """Further training of a matryoshka: every step samples one of its named placements."""

    loss: Loss = "cross_entropy"
    # Relative share of the steps by placement name; one not named weighs 1, and 0 leaves one out.
    placement_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        DistillConfig.__post_init__(self)
        for name, weight in self.placement_weights.items():
            require_weight(f"placement_weights.{name}", weight)


def require_weight(name: str, value: float) -> None:
    """Raise UserError unless a relative share is one."""
    require(0 <= value < math.inf, name, value, "a number >= 0")


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise UserError unless a setting's value is allowed."""
    if not holds:
        raise UserError(f"{name}={value} is not allowed; give {allowed}")
