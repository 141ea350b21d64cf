"""What share of the device a training step uses: FLOP that the model needs over the time that it took (MFU).

Nothing is counted twice: layers that are computed again for their gradients do not make a step more useful.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import PreTrainedModel

from apriel_assets.capacity.cost import training_flops
from apriel_assets.distillation.causal_lm import decoder_layers
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import DEVICES, ModelShape
from apriel_assets.evaluation.throughput import model_shape
from apriel_assets.hybrid.placement import FULL_ATTENTION


class StepFlops:
    """Counts a student's steps."""

    def __init__(self, student: PreTrainedModel, config: DistillConfig, teacher: bool) -> None:
        """
        Args:
            student: its active placement counts.
            config: what trains.
            teacher: one of the same sizes reads every trace, too.
        """
        self._student: Any = student
        shape = _shape(student)
        num_layers = len(decoder_layers(student)) if shape else 0

        @lru_cache(maxsize=4096)
        def of(placement: tuple[str, ...] | None, tokens: int, loss_tokens: int) -> float | None:
            if shape is None:
                return None
            layers, heads = training_flops(
                shape,
                placement or (FULL_ATTENTION,) * num_layers,
                tokens,
                loss_tokens=loss_tokens,
                teacher=teacher,
                checkpointing=False,
                trains_all=config.trains == "all",
            )
            return layers + heads

        self._of = of

    def rates(
        self, lengths: Sequence[tuple[int, int]], seconds: float, num_devices: int
    ) -> dict[str, float | None]:
        """Return `flops_per_s` and `mfu` of a step.

        Args:
            lengths: tokens of each trace's prompt and completion.
            seconds: of the step.
            num_devices: that shared it.
        """
        placement = getattr(self._student, "placement", None)
        counts = [self._of(placement, prompt + completion, completion) for prompt, completion in lengths]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return {"flops_per_s": None, "mfu": None}
        rate, peak = sum(known) / seconds, peak_flops_per_s(self._student.device)
        return {"flops_per_s": rate, "mfu": None if peak is None else rate / (peak * num_devices)}


def peak_flops_per_s(device: torch.device) -> float | None:
    """Return the data sheet's dense bf16 peak of a GPU; None: another device."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((known.flops_per_s for short, known in DEVICES.items() if short in name), None)


def _shape(model: Any) -> ModelShape | None:
    """Return the model's sizes; None where its config has other names for them."""
    try:
        return (
            model_shape(model)
            if hasattr(model, "banks")
            else ModelShape.from_config(model.config.get_text_config())
        )
    except UserError:
        return None
