"""How builders read the models and traces that other assets made."""

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from apriel_assets.assets.asset_plan import Job
from apriel_assets.hybrid.specs import TeacherSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from apriel_assets.distillation.batches import Traces
    from apriel_assets.hybrid.model import HybridForCausalLM

CHECKPOINT = "checkpoint"
TRAIN_TRACES, VALIDATION_TRACES = "train.parquet", "validation.parquet"
TEACHER = "teacher.json"


def _quiet_transformers() -> None:
    # Its own bars would tear ours, and a step's log has better lines.
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_teacher_model(job: Job) -> "tuple[HybridForCausalLM, PreTrainedTokenizerBase]":
    """Return the teacher as an all-FA hybrid, and its tokenizer. Shared in the process: do not change it."""
    return _teacher(job.input("teacher").path)


def load_checkpoint(job: Job, asset: str) -> "HybridForCausalLM":
    """Return a fresh copy of the hybrid that an asset made; the caller may change it."""
    if asset == "teacher":
        teacher, _ = load_teacher_model(job)
        return type(teacher).from_teacher(teacher.backbone, copy=True)
    return _read_checkpoint(job.input(asset).path)


def load_model_once(job: Job, asset: str) -> "HybridForCausalLM":
    """Return the hybrid that an asset made; shared within the process: do not change it."""
    if asset == "teacher":
        return load_teacher_model(job)[0]
    return _checkpoint(job.input(asset).path)


def working_device() -> "torch.device":
    """Return where a step's models are: the first GPU that this process of it may use, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device(
        "cuda", int(os.environ.get("LOCAL_RANK", 0))
    )  # set under accelerate, one process a GPU


def teacher_spec(path: Path) -> TeacherSpec:
    """Return where the teacher asset says the weights are."""
    return TeacherSpec(**json.loads((path / TEACHER).read_text())["load_from"])


# One of each: an eval needs the teacher and one student, and a large model must not stay longer than that.
@functools.lru_cache(maxsize=1)
def _teacher(path: Path) -> "tuple[HybridForCausalLM, Any]":
    from apriel_assets.hybrid.model import HybridForCausalLM
    from apriel_assets.hybrid.teacher import load_teacher

    _quiet_transformers()
    model, tokenizer = load_teacher(teacher_spec(path))
    model.to(working_device())  # type: ignore[arg-type]  transformers' own annotation
    return HybridForCausalLM.from_teacher(model, copy=False).eval(), tokenizer


@functools.lru_cache(maxsize=1)
def _checkpoint(path: Path) -> "HybridForCausalLM":
    return _read_checkpoint(path).eval()


def _read_checkpoint(path: Path) -> "HybridForCausalLM":
    from apriel_assets.hybrid.model import HybridForCausalLM

    _quiet_transformers()
    return HybridForCausalLM.from_pretrained(path / CHECKPOINT).to(working_device())


def problems_of(rows: pa.Table) -> list[Any]:
    """Return the rows of a traces artifact as problems."""
    from apriel_assets.evaluation.tasks.problems import Problem

    return [Problem(**row) for row in rows.to_pylist()]


def train_traces(job: Job, tokenizer: Any) -> "Traces":
    """Return the traces to train on."""
    return _traces(job, tokenizer, TRAIN_TRACES)


def validation_traces(job: Job, tokenizer: Any) -> "Traces":
    """Return the held-out traces."""
    return _traces(job, tokenizer, VALIDATION_TRACES)


def _traces(job: Job, tokenizer: Any, file: str) -> "Traces":
    from apriel_assets.distillation.batches import Traces

    return Traces.from_problems(problems_of(pq.read_table(job.input("traces").path / file)), tokenizer)
