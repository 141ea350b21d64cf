"""Train a student on traces: distillation from a frozen teacher, or SFT without one.

One process on CPU, several GPUs under `accelerate launch`: the same code. The loss is the mean over the valid
tokens of the whole batch, however it is split over micro-batches and processes.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow as pa
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from apriel_assets.distillation.batch_loss import BatchLoss
from apriel_assets.distillation.batches import Batch, BatchOrder, Traces
from apriel_assets.distillation.causal_lm import CausalLM, lm_head, num_embeddings, switch_checkpointing
from apriel_assets.distillation.compiling import compiled_blocks
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.finite import check_finite
from apriel_assets.distillation.lent_student import generators_kept, given_back
from apriel_assets.distillation.losses import check_vocabularies
from apriel_assets.distillation.mixer_outputs import AlignmentLoss
from apriel_assets.distillation.optimizers import (
    choose_trained,
    learning_rates,
    make_optimizers,
    set_learning_rates,
)
from apriel_assets.distillation.out_of_memory import describe_out_of_memory
from apriel_assets.distillation.resume import load_state, run_identity, save_state
from apriel_assets.distillation.sharding import gradients_of_parts, settle, sharded_teacher, shared
from apriel_assets.distillation.step_flops import StepFlops
from apriel_assets.errors import UserError
from apriel_assets.hybrid.attention import packable
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement
from apriel_assets.progress import Progress, silent
from apriel_assets.tables.schemas import to_table

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Measures something while a model trains; its rows are saved and resumed with the run."""

    def after(self, step: int) -> None:
        """Called before the first step with 0, then after each with the number of finished ones."""
        ...

    def table(self) -> pa.Table: ...

    def restore(self, table: pa.Table) -> None: ...


def train(
    student: PreTrainedModel,
    traces: Traces,
    config: DistillConfig,
    *,
    teacher: CausalLM | None = None,
    model_name: str = "student",
    seed: int,
    placements: Callable[[int], Placement] | None = None,
    mixer_matching: float = 0.0,
    recorder: Recorder | None = None,
    alignment: AlignmentLoss | None = None,
    resume_dir: Path | None = None,
    progress: Progress = silent,
) -> pa.Table:
    """Train the student in place and return its `training` rows, one per optimiser step.

    Args:
        student: a hybrid, or any causal LM whose logits are its output embeddings of its last hidden states.
        teacher: the frozen model that the divergences compare with; None only for cross entropy.
        model_name: fills the rows' `model` column.
        placements: gives each step's placement (steps from 0) of a hybrid that holds several mixers; what a
            step does not run does not move. The active placement is restored. None: it is what trains.
        mixer_matching: weight of the active mixers' output error, see `mixer_outputs.py`; not in the rows'
            loss.
        recorder: measures along the way.
        alignment: of the student; takes the place of config.loss and needs no teacher.
        resume_dir: keeps the newest state. A run that stopped goes on from there and ends with the very
            weights of a run that did not (on CPU, bit for bit). None: nothing is kept.

    Raises:
        UserError: traces that the model or config cannot take, a resume_dir of another run, a loss or
            gradient that is not finite (the last good state stays).
    """
    if alignment is None and (teacher is None) != (config.loss == "cross_entropy"):
        raise UserError(f"loss {config.loss} {'needs a teacher' if teacher is None else 'takes no teacher'}")
    if config.activation_checkpointing and mixer_matching:
        raise UserError(
            "mixer_matching compares outputs that activation_checkpointing would compute twice; use one"
        )
    traces = traces.limited(config.max_tokens, config.overlong)
    traces.check_vocabulary(num_embeddings(student))
    models = [model for model in (student, teacher) if isinstance(model, PreTrainedModel)]
    with (
        given_back(student, placed=placements is not None, checkpointing=config.activation_checkpointing),
        generators_kept(cast(torch.device, PartialState().device)),
        packable(*models) if config.packing else nullcontext(),
        compiled_blocks(*models) if config.compile else nullcontext(),
    ):
        loss = alignment or BatchLoss(student, teacher, config, mixer_matching)
        run = _Run(loss, traces, config, placements, recorder, seed=seed, model_name=model_name)
        processes = run.accelerator.num_processes
        spread = run.shards and isinstance(teacher, nn.Module)
        with (
            shared(student, processes, sharding=config.sharding),
            sharded_teacher(cast(nn.Module, teacher), processes) if spread else nullcontext(),
        ):
            run.prepare()
            return run.train(resume_dir, progress)


class _Run:
    def __init__(
        self,
        loss: BatchLoss | AlignmentLoss,
        traces: Traces,
        config: DistillConfig,
        placements: Callable[[int], Placement] | None,
        recorder: Recorder | None,
        *,
        seed: int,
        model_name: str,
    ) -> None:
        # A step's placement leaves the other mixers without a gradient, for which processes must not wait.
        sparse = placements is not None or isinstance(loss, AlignmentLoss)
        unused = DistributedDataParallelKwargs(find_unused_parameters=sparse)
        self.accelerator = Accelerator(kwargs_handlers=[unused])
        student, teacher = loss.student, loss.teacher
        self.student, self.traces, self.config = student, traces, config
        self.placements, self.recorder = placements, recorder
        self.model_name, self.seed = model_name, seed
        if teacher is not None:
            check_vocabularies(lm_head(student), lm_head(teacher))
            traces.check_vocabulary(num_embeddings(teacher))
            if isinstance(teacher, nn.Module):
                teacher.to(self.accelerator.device).eval()
        self._moving = False  # weights are between two steps
        aligns = isinstance(loss, AlignmentLoss)  # runs every mixer: not a placement's work
        self.flops = None if aligns else StepFlops(student, config, teacher is not None)
        self.order = BatchOrder(traces.lengths(), config.batch_size, seed)
        torch.manual_seed(seed)
        choose_trained(student, config.trains)
        if config.activation_checkpointing:
            switch_checkpointing(student, on=True)
        self.shards = config.sharding and self.accelerator.num_processes > 1
        loss.to(self.accelerator.device).train()
        self.loss = loss if self.shards else self.accelerator.prepare(loss)

    def prepare(self) -> None:
        """Make the optimisers, of a student that is in its place."""
        self.optimizers = [
            self.accelerator.prepare(own) for own in make_optimizers(self.student, self.config)
        ]
        self.peak_rates = learning_rates(self.optimizers)

    def train(self, resume_dir: Path | None, progress: Progress) -> pa.Table:
        """Run the steps that are left."""
        bare = [optimizer.optimizer for optimizer in self.optimizers]
        identity = run_identity(self.student, self.config, self.traces, self.placements, self.seed)
        done = load_state(resume_dir, self.student, bare, identity=identity) if resume_dir else None
        start, tables = done if done else (0, {})
        earlier = tables.get("training", to_table("training", []))
        if self.recorder:
            self.recorder.restore(tables["recorded"]) if start else self.recorder.after(0)
        rows: list[dict] = []
        tokens = earlier.column("tokens")[-1].as_py() if start else 0
        for step in range(start, self.config.steps):
            if self.placements:
                cast(Any, self.student).set_placement(self.placements(step))
            try:
                rows.append(self._step(step, tokens))
            except torch.OutOfMemoryError as error:
                # Before anything has moved. With several processes the others may not be here to gather.
                if resume_dir and step and not self._moving and self.accelerator.num_processes == 1:
                    self._save(resume_dir, earlier, rows, step, identity)
                raise UserError(self._too_large(step)) from error
            row, finished = rows[-1], step + 1
            tokens = row["tokens"]
            if self.recorder:
                self.recorder.after(finished)
                settle(self.student)
            if resume_dir and (finished % self.config.save_every == 0 or finished == self.config.steps):
                # As dicts, the rows of a long run would take as much memory as its model.
                earlier, rows = self._save(resume_dir, earlier, rows, finished, identity), []
            progress(
                finished, self.config.steps, loss_nats=row["loss_nats"], tokens_per_s=row["tokens_per_s"]
            )
        return pa.concat_tables([earlier, to_table("training", rows)])

    def _save(
        self, directory: Path, earlier: pa.Table, rows: list[dict], finished: int, identity: dict[str, Any]
    ) -> pa.Table:
        training = pa.concat_tables([earlier, to_table("training", rows)]).combine_chunks()
        tables = {"training": training}
        if self.recorder:
            tables["recorded"] = self.recorder.table()
        bare = [optimizer.optimizer for optimizer in self.optimizers]
        is_writer = self.accelerator.is_main_process
        save_state(
            directory, self.student, bare, tables, step=finished, identity=identity, is_writer=is_writer
        )
        return training

    def _too_large(self, step: int) -> str:
        lengths = self.traces.lengths()
        parts = self.config.gradient_accumulation * self.accelerator.num_processes
        return describe_out_of_memory(
            self.student,
            self.config,
            step=step + 1,
            rows=self.config.batch_size // parts,
            tokens=max(lengths[index] for index in self.order.indices(step)),
        )

    def _step(self, step: int, tokens: int) -> dict:
        began = time.perf_counter()
        indices = self.order.indices(step)
        num_tokens = sum(len(self.traces.completions[index]) for index in indices)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self._accumulate(indices, num_tokens)
        check_finite(loss, "loss", step, self.student, self.config)
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        limit = self.config.grad_clip_norm
        norm = cast(Any, self.accelerator.clip_grad_norm_(trained, limit or math.inf))
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        check_finite(grad_norm, "gradient", step, self.student, self.config)
        rate = set_learning_rates(self.optimizers, self.peak_rates, step, self.config)
        self._moving = True
        with gradients_of_parts(self.student):
            for optimizer in self.optimizers:
                optimizer.step()
        self._moving = False
        pairs = [(len(self.traces.prompts[index]), len(self.traces.completions[index])) for index in indices]
        seconds = time.perf_counter() - began
        return {
            "model": self.model_name,
            "step": step + 1,
            "loss_nats": loss,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "tokens": tokens + num_tokens,
            "tokens_per_s": sum(map(sum, pairs)) / seconds,
            **(self.flops.rates(pairs, seconds, self.accelerator.num_processes) if self.flops else {}),
        }

    def _accumulate(self, indices: list[int], num_tokens: int) -> float:
        """Add up the micro-batches' gradients; return the whole batch's mean loss, nats per token."""
        accelerator = self.accelerator
        batches = list(self._micro_batches(indices))
        total = torch.zeros((), device=accelerator.device)
        learns = self._learns()
        for position, batch in enumerate(batches):
            last = position == len(batches) - 1
            alone = not last and not self.shards  # what is sharded adds up as it arises
            with torch.set_grad_enabled(learns), accelerator.no_sync(self.loss) if alone else nullcontext():
                loss, minimised = self.loss(batch.to(accelerator.device), num_tokens)
                # Wrappers average gradients over processes; the normaliser already counts every process's
                # tokens.
                if learns:
                    accelerator.backward(minimised * accelerator.num_processes)
            total += loss.detach()
        settle(self.student)
        return float(cast(Tensor, accelerator.reduce(total)))

    def _learns(self) -> bool:
        """Tell whether the active placement runs anything that trains: all-FA does not if only mixers do."""
        if self.placements is None or self.config.trains == "all":
            return True
        return any(mixer != FULL_ATTENTION for mixer in cast(Any, self.student).placement)

    def _micro_batches(self, indices: list[int]) -> Iterator[Batch]:
        """Yield this process's part of the batch, in parts of similar length."""
        num_processes = self.accelerator.num_processes
        parts = self.config.gradient_accumulation * num_processes
        if self.config.batch_size % parts:
            raise UserError(
                f"batch_size={self.config.batch_size} cannot be split over {num_processes} processes with"
                f" {self.config.gradient_accumulation} micro-batches each; give a multiple of {parts}"
            )
        size = self.config.batch_size // parts
        for part in range(self.accelerator.process_index, parts, num_processes):
            batch = self.traces.batch(indices[part * size : (part + 1) * size])
            yield batch.packed() if self.config.packing else batch
