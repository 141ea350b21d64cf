"""The state of a training run on disk: everything needed to go on as if it had never stopped.

A state is a directory `step-<n>` of safetensors, Parquet and JSON files, never pickle. It is written under
another name, flushed, then renamed: it is either whole or not there. The newest one counts; older ones are
removed after. `state.json` has the hash of every file: a state that was damaged later is left aside.
"""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from apriel_assets.distillation.batches import Traces
from apriel_assets.distillation.config import OptimizerConfig
from apriel_assets.distillation.sharding import own_part, part_of, whole
from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import Placement
from apriel_assets.saved_states import HEADER, PREFIX, STATE_FORMAT, STATE_SEAL, state_problem
from apriel_assets.seals import file_facts, sealed
from apriel_assets.slices import hashed_values

logger = logging.getLogger(__name__)


def run_identity(
    student: nn.Module,
    config: OptimizerConfig,
    traces: Traces,
    placements: Callable[[int], Placement] | None,
    seed: int,
) -> dict[str, Any]:
    """Return what a training run is made of; what a state does not depend on is left out."""
    shapes = {name: list(parameter.shape) for name, parameter in student.named_parameters()}
    hashed = hashed_values({"config": config})["config"]
    identity = {"config": hashed, "seed": seed, "traces": traces.digest(), "student": shapes}
    if placements is None:
        return identity
    sampled = [placements(step) for step in range(config.steps)]
    return identity | {"placements": hashlib.sha256(json.dumps(sampled).encode()).hexdigest()}


def save_state(
    directory: Path,
    student: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    tables: Mapping[str, pa.Table],
    *,
    step: int,
    identity: dict[str, Any],
    is_writer: bool = True,
) -> None:
    """Write the state after `step` steps and remove older ones.

    Args:
        directory: of this run's states; made if missing.
        tables: the rows so far, by table name.
        identity: what the run is made of (config, seed, traces); a resume must match it.
        is_writer: one process of a distributed run writes; the others only help to gather.
    """
    weights = _on_writer(_tensors(student).items(), is_writer)
    states = _on_writer(_optimizer_tensors(student, optimizers), is_writer)
    states["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["rng.cuda"] = torch.cuda.get_rng_state()
    if not is_writer:
        return
    target = directory / f"{PREFIX}{step:08d}"
    directory.mkdir(parents=True, exist_ok=True)
    # A name of its own: where locks do not reach from machine to machine, another may write the same state.
    draft = directory / f"draft-{step:08d}-{uuid.uuid4().hex[:8]}"
    draft.mkdir()
    save_file(weights, draft / "student.safetensors")
    save_file(states, draft / "optimizer.safetensors")
    for name, table in tables.items():
        pq.write_table(table, draft / f"{name}.parquet")
    header = {"format": STATE_FORMAT, "step": step, "identity": identity}
    header["files"] = file_facts(draft, draft.iterdir())
    (draft / HEADER).write_text(json.dumps(sealed(header, STATE_SEAL), indent=1))
    for path in (*draft.iterdir(), draft):
        _flush(path)
    older = [path for path in directory.iterdir() if path != draft]
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)
    _flush(directory)
    for path in older:
        if path != target and path.name.startswith((PREFIX, "draft-")):
            shutil.rmtree(path, ignore_errors=True)


def load_state(
    directory: Path,
    student: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    identity: dict[str, Any],
) -> tuple[int, dict[str, pa.Table]] | None:
    """Load the newest whole state into student, optimisers and random number generators.

    Returns:
        The number of finished steps and the tables so far, by name; None if there is no state.

    Raises:
        UserError: the state belongs to another run.
    """
    newest = _newest_whole(directory)
    if newest is None:
        return None
    header = json.loads((newest / HEADER).read_text())
    # Through JSON, as the saved one went: tuples are lists there.
    if different := _differences(header["identity"], json.loads(json.dumps(identity))):
        raise UserError(
            f"{newest} holds a run with another {', '.join(different)}; remove {directory} to start over"
        )
    weights = load_file(newest / "student.safetensors")
    tensors = _tensors(student)
    if weights.keys() != tensors.keys():
        raise UserError(f"{newest} holds another model's weights; remove {directory} to start over")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            own.copy_(part_of(weights[name].to(own.device), tensor))
    saved = load_file(newest / "optimizer.safetensors")
    torch.set_rng_state(saved.pop("rng.cpu"))
    if "rng.cuda" in saved:
        torch.cuda.set_rng_state(saved.pop("rng.cuda"))
    _load_optimizers(student, optimizers, saved)
    return header["step"], {path.stem: pq.read_table(path) for path in newest.glob("*.parquet")}


def _tensors(student: nn.Module) -> dict[str, Tensor]:
    # keep_vars=False detaches; tied weights appear once, under their first name.
    seen, tensors = set(), {}
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def _optimizer_tensors(
    student: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in student.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(own_part(parameter), {}).items():
                yield f"{name}/{key}", whole(value, parameter) if value.ndim else value


def _load_optimizers(
    student: nn.Module, optimizers: Sequence[torch.optim.Optimizer], saved: dict[str, Tensor]
) -> None:
    parameters = dict(student.named_parameters())
    for full_name, value in saved.items():
        name, _, key = full_name.rpartition("/")
        parameter, part = parameters[name], own_part(parameters[name])
        owner = next(
            optimizer
            for optimizer in optimizers
            if any(part is other for group in optimizer.param_groups for other in group["params"])
        )
        # AdamW keeps its step count on CPU, as a scalar.
        owner.state[part][key] = part_of(value.to(part.device), parameter) if value.ndim else value


def _on_writer(tensors: Iterable[tuple[str, Tensor]], is_writer: bool) -> dict[str, Tensor]:
    """Gather sharded tensors one by one; only who writes keeps them, on the CPU, in memory of its own."""
    kept = {}
    for name, tensor in tensors:
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_writer:
            kept[name] = gathered.detach().to("cpu", copy=True).contiguous()
    return kept


def _differences(saved: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    return sorted(key for key in saved.keys() | mine.keys() if saved.get(key) != mine.get(key))


def _newest_whole(directory: Path) -> Path | None:
    for path in sorted(directory.glob(f"{PREFIX}*"), reverse=True):
        if (problem := state_problem(path)) is None:
            return path
        logger.warning("%s is damaged (%s): training goes on without it", path, problem)
    return None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
