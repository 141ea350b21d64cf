"""Dynamic importance (MMR): swap one more layer, distil a few steps, record the loss. Low means easy.

Static scores look at one missing layer in an intact model. A probe looks at the student as it is now, with
the layers already replaced, and at how much of the damage a little training repairs.

Where only the new mixer learns, all candidates advance together, step by step: they share the batch, the
teacher's pass and the student's pass below their layer, and memory holds one batch however many the steps.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import nn

from apriel_assets.distillation.batches import Batch, BatchOrder, Traces
from apriel_assets.distillation.causal_lm import lm_head, num_embeddings
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.losses import TeacherHead, check_vocabularies, token_loss
from apriel_assets.distillation.optimizers import make_optimizers
from apriel_assets.distillation.trainer import train
from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import evaluating
from apriel_assets.hybrid.config import MixerOptions
from apriel_assets.hybrid.conversion import Init
from apriel_assets.hybrid.editing import keep_mixers
from apriel_assets.hybrid.placement import FULL_ATTENTION, check_layers, replace_layers
from apriel_assets.progress import Progress, silent
from apriel_assets.scoring.config import ProbeConfig
from apriel_assets.scoring.prefix import Prefix, capture_prefix, resume_forward
from apriel_assets.tables.schemas import to_table

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

_GRAD_CLIP_NORM = 1.0


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
    options: MixerOptions | Mapping[str, Any] | None = None,
    init: Init = "mapped",
    seed: int = 0,
    progress: Progress = silent,
) -> pa.Table:
    """Return the `probes` table, a row per candidate; rank 0 had the lowest loss, ties go to the lower layer.

    All candidates see the same batches, at a constant learning rate, with reverse KL from the teacher. The
    student ends bit for bit as it came.

    Args:
        student: the checkpoint that the next step starts from.
        teacher: the original model, on the student's device.
        candidates: layers to try; full attention is active there.
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
        UserError: no candidates or not of full attention, other vocabularies, a loss that is not finite.
    """
    layers = _check_candidates(student, candidates, mixer, step)
    check_vocabularies(lm_head(student), lm_head(teacher))
    traces.check_vocabulary(num_embeddings(student))
    losses: dict[int, list[float]] = {layer: [] for layer in layers}

    def record(layer: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"probe of layer {layer} for {step}: loss is {loss} at step {len(losses[layer]) + 1};"
                " lower probe.learning_rate or probe.muon_learning_rate"
            )
        losses[layer].append(loss)
        progress(sum(map(len, losses.values())), len(layers) * steps, loss_nats=loss)

    with evaluating(student), evaluating(teacher), _restored(student):
        student.convert(layers, mixer, options=options, init=init, seed=seed, keep=True)
        probes = _Probes(student, teacher, layers, mixer, traces, _settings(config, steps), seed, record)
        if config.trains == "swapped":
            probes.train_together()
        else:
            probes.train_in_turn()
    return _ranked(losses, config, step)


@dataclass(frozen=True)
class _Probes:
    student: "HybridForCausalLM"  # holds the new mixer in every candidate layer, beside full attention
    teacher: "HybridForCausalLM"
    layers: tuple[int, ...]
    mixer: str
    traces: Traces
    settings: DistillConfig
    seed: int
    record: Callable[[int, float], None]  # layer, loss of one step in nats per token

    def activate(self, layer: int | None) -> None:
        """Let this candidate run its new mixer, all others full attention."""
        plain = replace_layers(self.student.placement, self.layers, FULL_ATTENTION)
        swapped = [] if layer is None else [layer]
        self.student.set_placement(replace_layers(plain, swapped, self.mixer))

    def train_together(self) -> None:
        """Train every candidate's mixer by itself, all on one batch before the next."""
        student = self.student
        order = BatchOrder(self.traces.lengths(), self.settings.batch_size, self.seed)
        mixers = {layer: student.banks[layer].mixers[self.mixer] for layer in self.layers}
        student.requires_grad_(False)
        optimizers = {layer: _mixer_optimizers(student, mixers[layer], self.settings) for layer in mixers}
        for number in range(self.settings.steps):
            batch = self.traces.batch(order.indices(number)).to(student.device)
            self.activate(None)
            with torch.no_grad():
                hidden = self.teacher.final_hidden_states(batch.input_ids, batch.attention_mask)
                prefix = capture_prefix(student, batch.input_ids, batch.attention_mask)
            reference = TeacherHead(hidden, lm_head(self.teacher))
            for layer in self.layers:
                self.activate(layer)
                with _training(mixers[layer]):
                    self.record(layer, _step(student, reference, prefix, layer, batch, optimizers[layer]))

    def train_in_turn(self) -> None:
        """Distil the whole student once for every candidate, from the same start."""
        start = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        try:
            for layer in self.layers:
                self.student.load_state_dict(start)
                self.activate(layer)
                train(
                    self.student,
                    self.traces,
                    self.settings,
                    teacher=self.teacher,
                    seed=self.seed,
                    progress=self._report(layer),
                )
        finally:
            self.student.load_state_dict(start)

    def _report(self, layer: int) -> Progress:
        def report(done: int, total: int, **figures: float) -> None:
            self.record(layer, figures["loss_nats"])

        return report


def _step(
    student: "HybridForCausalLM",
    teacher: TeacherHead,
    prefix: Prefix,
    layer: int,
    batch: Batch,
    optimizers: list[torch.optim.Optimizer],
) -> float:
    hidden = resume_forward(student, prefix, layer, batch.input_ids, batch.attention_mask)
    loss = token_loss(hidden, lm_head(student), batch.mask, teacher=teacher)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, _GRAD_CLIP_NORM)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


@contextmanager
def _training(mixer: nn.Module) -> Iterator[None]:
    mixer.requires_grad_(True)
    try:
        yield
    finally:
        mixer.requires_grad_(False)


def _mixer_optimizers(
    student: "HybridForCausalLM", mixer: nn.Module, settings: DistillConfig
) -> list[torch.optim.Optimizer]:
    with _training(mixer):
        return make_optimizers(student, settings)


@contextmanager
def _restored(student: "HybridForCausalLM") -> Iterator[None]:
    """Afterwards the student holds the mixers, placement and flags that it came with."""
    placement, held = student.placement, dict(enumerate(map(set, student.mixers)))
    requires_grad = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    try:
        yield
    finally:
        student.set_placement(placement)
        keep_mixers(student, held)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(requires_grad[name])
            parameter.grad = None


def _check_candidates(
    student: "HybridForCausalLM", candidates: Sequence[int], mixer: str, step: str
) -> tuple[int, ...]:
    layers = check_layers(candidates, student.num_layers)
    if not layers:
        raise UserError(f"no layer is left to probe for {step}; shorten the schedule or keep fewer layers")
    if swapped := [layer for layer in layers if student.placement[layer] != FULL_ATTENTION]:
        raise UserError(f"layers {swapped} were swapped already; probe layers whose attention is still full")
    if holding := [layer for layer in layers if mixer in student.mixers[layer]]:
        raise UserError(
            f"layers {holding} hold a {mixer} mixer already; a probe would overwrite it: prune first"
        )
    return layers


def _settings(config: ProbeConfig, steps: int) -> DistillConfig:
    return DistillConfig(
        steps=steps,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        muon_learning_rate=config.muon_learning_rate,
        warmup_fraction=0.0,
        decay="constant",
        grad_clip_norm=_GRAD_CLIP_NORM,
    )


def _ranked(losses: dict[int, list[float]], config: ProbeConfig, step: str) -> pa.Table:
    tails = {
        layer: seen[-max(1, round(config.tail_fraction * len(seen))) :] for layer, seen in losses.items()
    }
    means = {layer: sum(tail) / len(tail) for layer, tail in tails.items()}
    ranks = {layer: rank for rank, layer in enumerate(sorted(means, key=lambda layer: (means[layer], layer)))}
    rows = [
        {
            "step": step,
            "layer": layer,
            "loss_nats": means[layer],
            "first_loss_nats": seen[0],
            "steps": len(seen),
            "rank": ranks[layer],
        }
        for layer, seen in losses.items()
    ]
    return to_table("probes", rows)
