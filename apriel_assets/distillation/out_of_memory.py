"""What to say when a training step does not fit: what it was expected to need, and which setting to lower."""

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from apriel_assets.distillation.config import DistillConfig
from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import FULL_ATTENTION


def describe_out_of_memory(
    student: PreTrainedModel, config: DistillConfig, *, step: int, rows: int, tokens: int
) -> str:
    """Return one line for a step that ran out of GPU memory.

    Args:
        student: what was trained.
        config: of the run.
        step: number of the step, from 1.
        rows: sequences of a micro-batch on one process.
        tokens: of the longest sequence.
    """
    total = torch.cuda.get_device_properties(student.device).total_memory / 2**30
    expected = _expected_gib(student, config, rows * tokens)
    needs = "" if expected is None else f", expected to need {expected:.1f} GiB,"
    # Those first after which the run goes on from the saved state.
    ways = [] if config.activation_checkpointing else ["set activation_checkpointing: true"]
    if rows > 1:
        ways.append(f"raise gradient_accumulation (now {config.gradient_accumulation})")
    ways.append("or lower max_tokens")
    return (
        f"out of GPU memory at step {step} of {config.steps}: micro-batches of {rows} sequences of up to {tokens}"
        f" tokens{needs} do not fit into {total:.1f} GiB; {', '.join(ways).removeprefix('or ')}"
    )


def _expected_gib(student: PreTrainedModel, config: DistillConfig, tokens: int) -> float | None:
    """Return what the capacity formulas say, or None where they do not know the architecture."""
    from apriel_assets.capacity.memory import Precision, training_memory
    from apriel_assets.evaluation.roofline import ModelShape

    held = getattr(student, "mixers", ((FULL_ATTENTION,),) * cast(Any, student.config).num_hidden_layers)
    size = student.dtype.itemsize
    try:
        return (
            training_memory(
                ModelShape.from_config(student.config.get_text_config()),
                held,
                tokens=tokens,
                checkpointing=config.activation_checkpointing,
                optimizer=config.optimizer,
                trains=config.trains,
                teacher=config.loss != "cross_entropy",
                # A rounded weight beside its fp32 copy; gradients as the weights are.
                precision=Precision(kept=4 if size == 4 else 4 + size, gradient=size, working=size),
            ).total
            / 2**30
        )
    except UserError:
        return None
