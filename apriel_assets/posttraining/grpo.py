"""Reinforcement learning with verifiable rewards: placements answer problems and learn from the verdicts.

Each step samples one named placement, has it answer a few problems several times through the decode path that
evaluates it, and takes one or a few optimiser steps on the loss of `grpo_loss.py`. Everything drawn is a function of
(seed, step), so a run that stopped goes on as if it had not.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from apriel_assets.distillation.batches import Batch, BatchOrder, Traces
from apriel_assets.distillation.finite import check_finite
from apriel_assets.distillation.lent_student import generators_kept, given_back
from apriel_assets.distillation.optimizers import (
    choose_trained,
    learning_rates,
    make_optimizers,
    set_learning_rates,
)
from apriel_assets.distillation.resume import load_state, run_identity, save_state
from apriel_assets.distillation.sampling import sample_named
from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import evaluating
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import FULL_ATTENTION
from apriel_assets.posttraining.config import GrpoConfig
from apriel_assets.posttraining.grpo_loss import Figures, Sampled, group_advantages, grpo_loss, token_weights
from apriel_assets.posttraining.rollouts import (
    Asked,
    Rollouts,
    completion_log_probs,
    micro_batches,
    sample_rollouts,
)
from apriel_assets.progress import Progress, silent
from apriel_assets.tables.schemas import to_table

TABLE = "rl_training"

_LEARNED = ("loss", "clipped_share", "grad_norm", "kl_nats", "largest_ratio_error")


def train_grpo(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    config: GrpoConfig,
    *,
    model_name: str = "release",
    seed: int,
    resume_dir: Path | None = None,
    progress: Progress = silent,
) -> pa.Table:
    """Train a checkpoint in place, each step on one of its named placements; return its `rl_training` rows.

    Args:
        model: with named placements. Its active one is afterwards what it was.
        tokenizer: the model's.
        asked: problems to learn from, with the tasks that judge them.
        config: what a step does.
        model_name: for the rows.
        seed: of problems, placements and sampling.
        resume_dir: keeps the newest state; a run that stopped goes on from there. None: nothing is kept.
        progress: called with finished and all steps, reward, KL and tokens/s.

    Raises:
        UserError: no placement to train, too few problems, several processes, a resume_dir of another run, a loss or
            gradient that is not finite (the last good state stays), or too little GPU memory.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("reinforcement learning runs in one process; give its step a launcher without others")
    # No dropout: what learns must be what sampled.
    with given_back(model, placed=True), evaluating(model), generators_kept(model.device):
        return _Run(model, tokenizer, asked, config, model_name, seed).train(resume_dir, progress)


def learning_weights(model: HybridForCausalLM, config: GrpoConfig) -> dict[str, float]:
    """Return each named placement's relative share of the steps; 0 where nothing that it runs would train.

    Raises:
        UserError: a weight of an unknown placement, or of one with nothing to train.
    """
    given = config.placement_weights
    if unknown := sorted(given.keys() - model.placements.keys()):
        raise UserError(
            f"placement_weights name {', '.join(unknown)}; placements: {', '.join(model.placements) or 'none'}"
        )
    found = {}
    for name, placement in model.placements.items():
        learns = config.trains == "all" or set(placement) != {FULL_ATTENTION}
        if not learns and given.get(name):
            raise UserError(
                f"placement_weights.{name}={given[name]:g}, but it is all full attention, of which trains=mixers trains"
                " nothing; leave it out, or set trains=all"
            )
        found[name] = given.get(name, 1.0) if learns else 0.0
    return found


class _Run:
    def __init__(
        self,
        model: HybridForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        asked: Sequence[Asked],
        config: GrpoConfig,
        model_name: str,
        seed: int,
    ) -> None:
        self.model, self.tokenizer, self.asked, self.config = model, tokenizer, asked, config
        self.model_name, self.seed = model_name, seed
        self.named = sample_named(model.placements, learning_weights(model, config), seed)
        if len(asked) < config.problems:
            raise UserError(
                f"problems={config.problems} a step, but only {len(asked)} to learn from; raise num_problems"
            )
        # Of one length, for it: else a step's problems would all be of one task.
        self.order = BatchOrder([1] * len(asked), config.problems, seed)
        torch.manual_seed(seed)
        choose_trained(model, config.trains)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.reference = _frozen_copy(model) if config.kl_weight else None
        self.optimizers = make_optimizers(model, config)
        self.peak_rates = learning_rates(self.optimizers)

    def train(self, resume_dir: Path | None, progress: Progress) -> pa.Table:
        """Run the steps that are left."""
        traces = Traces.from_problems([problem for _, problem in self.asked], self.tokenizer)
        identity = run_identity(
            self.model, self.config, traces, lambda step: self.model.placements[self.named(step)], self.seed
        )
        done = load_state(resume_dir, self.model, self.optimizers, identity=identity) if resume_dir else None
        start, tables = done or (0, {})
        rows = tables[TABLE].to_pylist() if start else []
        for step in range(start, self.config.steps):
            try:
                rows.append(self._step(step, rows[-1]["tokens"] if rows else 0))
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"out of GPU memory at step {step + 1} of {self.config.steps}; the last saved state is kept: lower"
                    f" batch_size (now {self.config.batch_size}) or max_new_tokens"
                ) from error
            finished = step + 1
            if resume_dir and (finished % self.config.save_every == 0 or finished == self.config.steps):
                kept = {TABLE: to_table(TABLE, rows)}
                save_state(resume_dir, self.model, self.optimizers, kept, step=finished, identity=identity)
            shown = {name: rows[-1][name] for name in ("reward", "tokens_per_s", "kl_nats")}
            progress(
                finished, self.config.steps, **{name: own for name, own in shown.items() if own is not None}
            )
        return to_table(TABLE, rows)

    def _step(self, step: int, tokens: int) -> dict[str, Any]:
        began = time.perf_counter()
        name, picked = self.named(step), self.order.indices(step)
        self.model.set_placement(name)
        rollouts = sample_rollouts(
            self.model,
            self.tokenizer,
            [self.asked[index] for index in picked],
            self.config,
            numbers=picked,
            seed=self.seed,
            step=step,
        )
        # Broken weights still sample tokens, all wrong alike: without rewards that differ no loss would tell.
        total = sum(own for completion in rollouts.log_probs for own in completion)
        check_finite(total, "log-probability of what was sampled", step, self.model, self.config)
        advantages, informative = group_advantages(rollouts.rewards, self.config.scale)
        rate = set_learning_rates(self.optimizers, self.peak_rates, step, self.config)
        learned: dict[str, float | None] = dict.fromkeys(_LEARNED)
        if informative.any():
            learned = self._learn(rollouts, advantages, informative, step)
        lengths = [len(completion) for completion in rollouts.traces.completions]
        return {
            "model": self.model_name,
            "placement": name,
            "step": step + 1,
            "reward": rollouts.rewards.mean().item(),
            "num_groups": len(informative),
            "num_skipped_groups": int((~informative).sum()),
            **learned,
            "learning_rate": rate,
            "completion_tokens": sum(lengths) / len(lengths),
            "finished_share": sum(rollouts.finished) / len(lengths),
            "tokens": tokens + sum(lengths),
            "tokens_per_s": sum(lengths) / (time.perf_counter() - began),
        }

    def _learn(
        self, rollouts: Rollouts, advantages: torch.Tensor, informative: torch.Tensor, step: int
    ) -> dict[str, float | None]:
        """Take the optimiser steps on one batch of completions; return what they were made of."""
        parts = self._parts(rollouts, advantages, informative)
        found = [self._update(parts, step) for _ in range(self.config.updates)]
        first = found[0]  # the only one whose samples are the policy's own
        means = {
            own: sum(figures[own] for figures in found) / len(found)
            for own in ("loss", "clipped_share", "grad_norm")
        }
        kl = None if self.reference is None else first["kl_nats"]
        return {**means, "kl_nats": kl, "largest_ratio_error": first["largest_ratio_error"]}

    def _parts(
        self, rollouts: Rollouts, advantages: torch.Tensor, informative: torch.Tensor
    ) -> list[tuple[Batch, Sampled]]:
        """Return the completions of groups that say something, in micro-batches."""
        device = self.model.device
        per_completion = advantages.flatten()
        kept = informative.repeat_interleave(advantages.shape[1]).nonzero()[:, 0].tolist()
        lengths = torch.tensor([len(rollouts.traces.completions[index]) for index in kept])
        weights = dict(zip(kept, token_weights(lengths, self.config.level).tolist(), strict=True))
        parts = []
        for indices in micro_batches(rollouts.traces, kept, self.config.batch_size):
            batch = rollouts.traces.batch(indices).to(device)
            repeats = torch.tensor([len(rollouts.log_probs[index]) for index in indices])
            sampled = [own for index in indices for own in rollouts.log_probs[index]]
            share = torch.tensor([weights[index] for index in indices])
            parts.append(
                (
                    batch,
                    Sampled(
                        torch.tensor(sampled, device=device),
                        per_completion[indices].float().repeat_interleave(repeats).to(device),
                        share.repeat_interleave(repeats).to(device),
                        self._under_start(batch),
                    ),
                )
            )
        return parts

    def _under_start(self, batch: Batch) -> torch.Tensor | None:
        if self.reference is None:
            return None
        self.reference.set_placement(self.model.placement)
        with torch.no_grad():
            return completion_log_probs(self.reference, batch, self.config.temperature)

    def _update(self, parts: Sequence[tuple[Batch, Sampled]], step: int) -> dict[str, float]:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        found: list[tuple[float, Figures]] = []
        for batch, sampled in parts:
            log_probs = completion_log_probs(self.model, batch, self.config.temperature)
            loss, figures = grpo_loss(log_probs, sampled, self.config)
            loss.backward()
            found.append((loss.item(), figures))
        total = sum(loss for loss, _ in found)
        check_finite(total, "loss", step, self.model, self.config)
        limit = self.config.grad_clip_norm or math.inf
        grad_norm = float(nn.utils.clip_grad_norm_(self.trained, limit))
        check_finite(grad_norm, "gradient", step, self.model, self.config)
        for optimizer in self.optimizers:
            optimizer.step()
        return {
            "loss": total,
            "grad_norm": grad_norm,
            "clipped_share": sum(float(own.clipped_share) for _, own in found),
            "kl_nats": sum(float(own.kl_nats) for _, own in found if own.kl_nats is not None),
            "largest_ratio_error": max(float(own.largest_ratio_error) for _, own in found),
        }


def _frozen_copy(model: HybridForCausalLM) -> HybridForCausalLM:
    """Return the model as it is now; what does not train is not copied."""
    memo: Mapping[int, Any] = {id(own): own for own in model.parameters() if not own.requires_grad}
    return deepcopy(model, dict(memo)).requires_grad_(False).eval()
