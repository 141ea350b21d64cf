"""The supernet: every layer holds several mixers, every step trains one placement of them.

Built from a teacher, trained by distillation from it; after pruning, trained further among the placements
that were kept. What a step did not sample gets no gradient and does not move, optimiser state included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from apriel_assets.distillation.batches import Traces
from apriel_assets.distillation.causal_lm import num_embeddings
from apriel_assets.distillation.config import MatryoshkaTrainConfig, SupernetConfig
from apriel_assets.distillation.curves import SupernetCurves, uniform_placement
from apriel_assets.distillation.mixer_outputs import AlignmentLoss
from apriel_assets.distillation.sampling import PlacementSampler, sample_named
from apriel_assets.distillation.trainer import train
from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import MixerOptions
from apriel_assets.hybrid.conversion import Init
from apriel_assets.hybrid.editing import keep_mixers
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.packing import Packing
from apriel_assets.hybrid.placement import FULL_ATTENTION, MIXERS
from apriel_assets.progress import Progress, silent


def build_supernet(
    teacher: PreTrainedModel,
    mixers: Sequence[Sequence[str]],
    *,
    options: MixerOptions | Mapping[str, Any] | None = None,
    init: Init = "mapped",
    seed: int = 0,
    calibration: Tensor | None = None,
    copy: bool = True,
) -> HybridForCausalLM:
    """Return a hybrid whose layers hold these mixers, each made from the layer's full attention.

    All-FA is active: the supernet starts as the teacher. A layer without "fa" in its list gives its attention
    up and starts with its first mixer; the supernet then has no all-FA path.

    Args:
        teacher: a causal LM of transformers.
        mixers: names per layer, first layer first.
        options: how mixers are built; None: the defaults.
        init: "mapped" from the attention's weights or "random".
        seed: of the fresh weights.
        calibration: token ids, `[batch, seq]`, on which output sizes are matched; None: random ones.
        copy: False: the supernet takes the teacher over.

    Raises:
        UserError: an unknown or repeated mixer, an empty or missing layer, attention that a mixer does not fit.
    """
    supernet = HybridForCausalLM.from_teacher(teacher, copy=copy)
    full_attention = supernet.placement
    wanted = _check_mixers(mixers, supernet.num_layers)
    for mixer in MIXERS:
        layers = [layer for layer, names in enumerate(wanted) if mixer in names]
        if layers and mixer != FULL_ATTENTION:
            supernet.convert(
                layers, mixer, options=options, init=init, seed=seed, calibration=calibration, keep=True
            )
            # Back at once: how loud the next mixer starts is measured against what is active.
            supernet.set_placement(full_attention)
    supernet.set_placement(uniform_placement(wanted, FULL_ATTENTION))
    keep_mixers(supernet, {layer: set(names) for layer, names in enumerate(wanted)})
    return supernet


def train_supernet(
    supernet: HybridForCausalLM,
    traces: Traces,
    config: SupernetConfig,
    *,
    teacher: PreTrainedModel | None = None,
    validation: Traces,
    model_name: str = "supernet",
    seed: int,
    resume_dir: Path | None = None,
    progress: Progress = silent,
) -> tuple[pa.Table, pa.Table]:
    """Train the supernet in place; return its `training` and `supernet_curves` tables.

    The active placement is afterwards what it was. With `align_steps`, the rows begin after them.

    Args:
        supernet: layers hold what may be sampled.
        traces: to distil on.
        config: what trains, how placements are sampled, where the curves have points.
        teacher: frozen. None: the supernet's own all-FA path, which needs no second copy of the weights and
            stays the teacher as long as only mixers train.
        validation: held-out traces for the curves.
        resume_dir: as for `trainer.train`; sampling and curves go on exactly, too.

    Raises:
        UserError: no teacher where full attention trains or is missing, sampling that the layers cannot
            hold, and what `trainer.train` refuses.
    """
    frozen = OwnTeacher(supernet) if teacher is None else teacher
    if teacher is None and config.trains != "mixers":
        raise UserError("trains=all moves full attention, so it needs a teacher of its own; give one")
    validation = validation.limited(config.max_tokens, config.overlong)
    validation.check_vocabulary(num_embeddings(supernet))
    if config.align_steps:
        _align(supernet, traces, config, seed=seed, resume_dir=resume_dir, progress=progress)
    curves = SupernetCurves(supernet, frozen, validation, config, model_name=model_name, seed=seed)
    training = train(
        supernet,
        traces,
        config,
        teacher=frozen,
        model_name=model_name,
        seed=seed,
        placements=PlacementSampler(supernet.mixers, config, seed).placement,
        mixer_matching=config.mixer_matching,
        recorder=curves,
        resume_dir=resume_dir,
        progress=progress,
    )
    return training, curves.table()


def train_matryoshka(
    model: HybridForCausalLM,
    traces: Traces,
    config: MatryoshkaTrainConfig,
    *,
    teacher: PreTrainedModel | None = None,
    model_name: str = "matryoshka",
    seed: int,
    resume_dir: Path | None = None,
    progress: Progress = silent,
) -> pa.Table:
    """Train a checkpoint further, each step on one of its named placements; return the `training` table.

    Raises:
        UserError: no named placements, weights of unknown ones, and what `trainer.train` refuses.
    """
    named = sample_named(model.placements, config.placement_weights, seed)
    rows = train(
        model,
        traces,
        config,
        teacher=teacher,
        model_name=model_name,
        seed=seed,
        placements=lambda step: model.placements[named(step)],
        resume_dir=resume_dir,
        progress=progress,
    )
    column = rows.schema.get_field_index("placement")
    names = pa.array([named(step) for step in range(rows.num_rows)], pa.string())
    return rows.set_column(column, rows.schema.field(column), names)


def _align(
    supernet: HybridForCausalLM,
    traces: Traces,
    config: SupernetConfig,
    *,
    seed: int,
    resume_dir: Path | None,
    progress: Progress,
) -> None:
    """Train every mixer on full attention's outputs; all-FA, or what is nearest, gives the inputs."""
    active = supernet.placement
    supernet.set_placement(uniform_placement(supernet.mixers, FULL_ATTENTION))
    try:
        train(
            supernet,
            traces,
            replace(config, steps=config.align_steps, trains="mixers"),
            seed=seed,
            alignment=AlignmentLoss(supernet),
            resume_dir=resume_dir / "align" if resume_dir else None,
            progress=progress,
        )
    finally:
        supernet.set_placement(active)


class OwnTeacher:
    """A supernet's all-FA path in the place of a teacher model: the same weights, run without dropout.

    Raises:
        UserError: a layer without full attention.
    """

    def __init__(self, supernet: HybridForCausalLM) -> None:
        if lost := [layer for layer, names in enumerate(supernet.mixers) if FULL_ATTENTION not in names]:
            raise UserError(
                f"layers {lost} hold no full attention, so the supernet needs a teacher; give one"
            )
        self._supernet = supernet
        self._placement = (FULL_ATTENTION,) * supernet.num_layers

    def final_hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """Return what the LM head reads under all-FA, `[batch, seq, hidden]`, without gradients."""
        supernet = self._supernet
        placement, was_training = supernet.placement, supernet.training
        supernet.set_placement(self._placement)
        supernet.eval()
        try:
            with torch.no_grad():
                return supernet.final_hidden_states(input_ids, attention_mask, packing=packing)
        finally:
            supernet.set_placement(placement)
            supernet.train(was_training)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self._supernet.get_output_embeddings()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self._supernet.get_input_embeddings()


def _check_mixers(mixers: Sequence[Sequence[str]], num_layers: int) -> tuple[tuple[str, ...], ...]:
    if len(mixers) != num_layers:
        raise UserError(f"mixers of {len(mixers)} layers for {num_layers}; give a list for each layer")
    for layer, names in enumerate(mixers):
        if isinstance(names, str) or not names or len(set(names)) < len(names):
            raise UserError(f"layer {layer}: mixers {names!r}; give a list of one or more, each once")
        if unknown := [name for name in names if name not in MIXERS]:
            raise UserError(f"layer {layer}: unknown mixer {unknown[0]!r}; known: {', '.join(MIXERS)}")
    return tuple(map(tuple, mixers))
