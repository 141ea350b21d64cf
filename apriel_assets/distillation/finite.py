"""A loss or gradient that is no number ends a run before it reaches the weights."""

import math
from typing import Any

from apriel_assets.distillation.config import OptimizerConfig
from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import layer_map


def check_finite(value: float, what: str, step: int, student: Any, config: OptimizerConfig) -> None:
    """Check a figure of a step (from 0).

    Raises:
        UserError: it is NaN or infinite; names the mixers that ran.
    """
    if not math.isfinite(value):
        placement = getattr(student, "placement", None)
        ran = f" with layers {layer_map(placement, len(placement))}" if placement else ""
        raise UserError(
            f"{what} is {value} at step {step + 1} of {config.steps}{ran}; the last saved state is kept:"
            " lower learning_rate or muon_learning_rate, or set grad_clip_norm"
        )
