"""Dynamic importance (MMR): swap one more layer, distil a few steps, record the loss. Low means easy to replace.

Static scores look at one missing layer in an intact model. A probe looks at the student as it is now, with the layers
already replaced, and at how much of the damage a little training repairs.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor

from apriel_assets.distillation.batches import Batch, BatchOrder, Traces
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.losses import TeacherHead, token_loss
from apriel_assets.distillation.optimizers import make_optimizers
from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import MixerOptions
from apriel_assets.hybrid.conversion import Init
from apriel_assets.progress import Progress, silent
from apriel_assets.scoring.config import ProbeConfig
from apriel_assets.scoring.prefix import capture_prefix, resumed_at
from apriel_assets.tables.schemas import to_table

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM


@dataclass(frozen=True)
class _PreparedBatch:
    """One step's traces, with what every candidate shares."""

    batch: Batch
    teacher_hidden_states: Tensor  # of the counted tokens, `[tokens, hidden]`
    layer_inputs: tuple[Tensor, ...]  # of the student before any swap, per layer `[batch, seq, hidden]`


def probe_layers(
    student: "HybridForCausalLM",
    teacher: "HybridForCausalLM",
    candidates: Sequence[int],
    mixer: str,
    traces: Traces,
    config: ProbeConfig,
    *,
    steps: int,
    step: str,
    options: MixerOptions | None = None,
    init: Init = "mapped",
    seed: int = 0,
    progress: Progress = silent,
) -> pa.Table:
    """Return the `probes` table, one row per candidate; rank 0 had the lowest loss.

    All candidates see the same batches. The student ends bit for bit as it came. With `trains: swapped` (only the new
    mixer learns) the layers below it do not change, so their activations are computed once for all candidates.

    Args:
        student: the checkpoint that the next step starts from.
        teacher: the original model.
        candidates: layers to try, each with full attention.
        mixer: what they are swapped to.
        traces: to distil on.
        config: what trains, with which optimiser.
        steps: distillation steps of each probe.
        step: goes into the rows, e.g. "h7".
        options: how the mixer is built.
        init: how it starts.
        seed: of the batches and the fresh weights.
        progress: called with done and all (candidate, step) pairs.

    Raises:
        UserError: no candidates, or a loss that is not finite.
    """
    if not candidates:
        raise UserError(f"no layer is left to probe for {step}; shorten the schedule or keep fewer layers")
    prepared = _prepare(student, teacher, traces, config.batch_size, steps, seed)
    rows = []
    for number, layer in enumerate(candidates):
        losses = []
        with _swapped(student, layer, mixer, options, init, seed, config) as optimizers:
            for shared in prepared:
                losses.append(_step(student, teacher, layer, shared, optimizers, config))
                if not math.isfinite(losses[-1]):
                    raise UserError(f"probe of layer {layer} for {step}: loss is {losses[-1]}; lower probe.learning_rate")
                progress(number * steps + len(losses), len(candidates) * steps, loss_nats=losses[-1])
        tail = losses[-max(1, round(config.tail_fraction * steps)) :]
        rows.append(
            {
                "step": step,
                "layer": layer,
                "loss_nats": sum(tail) / len(tail),
                "first_loss_nats": losses[0],
                "steps": steps,
            }
        )
    order = sorted(rows, key=lambda row: (row["loss_nats"], row["layer"]))
    ranks = {row["layer"]: rank for rank, row in enumerate(order)}
    return to_table("probes", [{**row, "rank": ranks[row["layer"]]} for row in rows])


def _prepare(
    student: "HybridForCausalLM",
    teacher: "HybridForCausalLM",
    traces: Traces,
    batch_size: int,
    steps: int,
    seed: int,
) -> list[_PreparedBatch]:
    order = BatchOrder(traces.lengths(), batch_size, seed)
    prepared = []
    with torch.no_grad():
        for step in range(steps):
            batch = traces.batch(order.indices(step)).to(student.device)
            hidden = teacher.final_hidden_states(batch.input_ids, batch.attention_mask)
            prefix = capture_prefix(student, batch.input_ids, batch.attention_mask)
            prepared.append(_PreparedBatch(batch, hidden, prefix.layer_inputs))
    return prepared


@contextmanager
def _swapped(
    student: "HybridForCausalLM",
    layer: int,
    mixer: str,
    options: MixerOptions | None,
    init: Init,
    seed: int,
    config: ProbeConfig,
) -> Iterator[list[torch.optim.Optimizer]]:
    """Give one layer the mixer and yield optimisers of what trains; afterwards the student is as it was."""
    placement, training = student.placement, student.training
    requires_grad = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    everything = copy.deepcopy(student.state_dict()) if config.trains == "all" else None
    student.convert([layer], mixer, options=options, init=init, seed=seed, keep=True)
    try:
        swapped = {id(parameter) for parameter in student.banks[layer].mixers[mixer].parameters()}
        for parameter in student.parameters():
            parameter.requires_grad_(config.trains == "all" or id(parameter) in swapped)
        settings = DistillConfig(
            optimizer=config.optimizer,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
        )
        yield make_optimizers(student.train(), settings)
    finally:
        student.banks[layer].drop(mixer)
        student.set_placement(placement)
        student.config.set_mixer_options(layer, student.banks[layer].options)
        if everything is not None:
            student.load_state_dict(everything)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(requires_grad[name])
            parameter.grad = None
        student.train(training)


def _step(
    student: "HybridForCausalLM",
    teacher: "HybridForCausalLM",
    layer: int,
    shared: _PreparedBatch,
    optimizers: list[torch.optim.Optimizer],
    config: ProbeConfig,
) -> float:
    batch = shared.batch
    if config.trains == "all":
        hidden = student.final_hidden_states(batch.input_ids, batch.attention_mask)
    else:
        with resumed_at(student, layer, shared.layer_inputs[layer]):
            hidden = student.final_hidden_states(batch.input_ids, batch.attention_mask)
    reference = TeacherHead(shared.teacher_hidden_states, teacher.lm_head)
    loss = token_loss(hidden, student.lm_head, batch.mask, teacher=reference)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()
