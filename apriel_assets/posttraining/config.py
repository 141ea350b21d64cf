"""What determines the weights that GRPO ends with, given a start, problems and a seed. No torch here."""

import math
from dataclasses import dataclass, field
from typing import Literal

from apriel_assets.distillation.config import Optimizer, OptimizerConfig, require, require_weight
from apriel_assets.slices import UNHASHED

AdvantageScale = Literal["std", "none"]
LossLevel = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpoConfig(OptimizerConfig):
    """GRPO: each step one named placement answers problems several times and learns from its tasks' verdicts."""

    steps: int = 60  # batches of completions, each of one placement
    trains: Literal["all", "mixers"] = "mixers"  # mixers: all-FA stays what it was, bit for bit
    optimizer: Optimizer = "adamw"
    learning_rate: float = 3e-4
    muon_learning_rate: float = 3e-4
    decay: Literal["linear", "cosine", "constant"] = "constant"
    save_every: int = field(default=10, metadata=UNHASHED)  # steps between resume points

    num_problems: int = 500  # of the train split, for each task of tasks.train
    problems: int = 16  # asked in a step
    samples: int = 8  # completions of each: the group that advantages are relative to
    temperature: float = 1.0  # of sampling, and of every log-probability in the loss
    max_new_tokens: int = 56  # completions are cut there, and judged as they stand
    updates: int = 1  # optimiser steps on each batch of completions; from the second on ratios differ from 1
    clip_low: float = 0.2  # the ratio counts down to 1 - clip_low
    clip_high: float = 0.2  # and up to 1 + clip_high
    kl_weight: float = 0.02  # of KL(policy || start), nats per token; 0: no copy of the start is kept
    scale: AdvantageScale = (
        "std"  # advantages: reward minus the group's mean, over its standard deviation or not
    )
    level: LossLevel = "token"  # all tokens count alike, or all completions do
    # Relative share of the steps by placement name; one not named weighs 1, and one without anything to train 0.
    placement_weights: dict[str, float] = field(default_factory=dict)
    # Sequences generated, or passed forward and back, at once: memory, and the last bits of sums.
    batch_size: int = field(default=64, metadata=UNHASHED)

    def __post_init__(self) -> None:
        OptimizerConfig.__post_init__(self)  # super() is lost where slots rebuild the class
        for name in ("num_problems", "problems", "max_new_tokens", "updates", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")
        require(self.samples >= 2, "samples", self.samples, "an integer >= 2: one completion has no group")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "a finite number > 0")
        require(0 < self.clip_low < 1, "clip_low", self.clip_low, "a number between 0 and 1")
        require(0 < self.clip_high < math.inf, "clip_high", self.clip_high, "a finite number > 0")
        require(0 <= self.kl_weight < math.inf, "kl_weight", self.kl_weight, "a finite number >= 0")
        for name, weight in self.placement_weights.items():
            require_weight(f"placement_weights.{name}", weight)
