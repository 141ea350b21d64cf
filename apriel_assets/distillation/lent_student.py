"""A student is lent to training: how it comes back, but for its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from apriel_assets.distillation.causal_lm import switch_checkpointing


@contextmanager
def given_back(student: PreTrainedModel, *, placed: bool, checkpointing: bool = False) -> Iterator[None]:
    """Give back modes, flags and, where steps have placements of their own, the active one."""
    requires_grad = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    was_training, active = student.training, getattr(student, "placement", None)
    try:
        yield
    finally:
        if placed:
            cast(Any, student).set_placement(active)
        student.train(was_training)
        if checkpointing:
            switch_checkpointing(student, on=False)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(requires_grad[name])
            parameter.grad = None


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Give back the states of the random generators of the CPU and of one device.

    Not of every GPU that is there, torch's default: that would start a context on each, in every process.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
