"""Score placements of a supernet on the teacher's stored completions: forward passes alone, no generation.

Every estimator comes out of the same pass (`estimators`). Placements that share a prefix of layers share its
activations (`prefix_walk`), and finished scores are kept (`memo`), so that a re-run, a wider beam or a further
budget pays only for what is new. A score is a function of its placement alone: neither order nor company
changes a bit of it.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.distillation.batches import Batch
from apriel_assets.distillation.causal_lm import final_hidden_states, lm_head
from apriel_assets.distillation.losses import TeacherHead
from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import evaluating
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement, check_placement
from apriel_assets.progress import Progress, silent
from apriel_assets.scoring.completion_figures import token_figures
from apriel_assets.scoring.config import EstimatorConfig
from apriel_assets.scoring.estimators import ESTIMATORS, Array, estimate_all, problem_draws
from apriel_assets.scoring.memo import Figures, ScoreMemo
from apriel_assets.scoring.prefix_walk import Step, layer_evaluations, plan_walk, walk
from apriel_assets.scoring.rating import PlacementScore, rate, warn_of_unreliable
from apriel_assets.scoring.stored import CompletionSet
from apriel_assets.scoring.teacher_check import check_calibration, check_vocabulary, weights_digest

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

_SCORES_REVISION = 1  # raise it when an estimator changes what it returns: kept scores are then made anew
_FLUSH_SECONDS = 15.0  # scores at risk if the run is cut
_SMALLEST_CHUNK = 32  # placements walked together: fewer share too little


@dataclass(slots=True)
class LayerEvaluations:
    """Decoder layers computed, one unit = one layer on one batch; the teacher's pass is in both."""

    done: int = 0
    alone: int = 0  # had each placement been scored by whole passes


class PlacementScorer:
    """Scores placements of one supernet on one store."""

    def __init__(
        self,
        supernet: "HybridForCausalLM",
        completions: pa.Table,
        config: EstimatorConfig,
        *,
        memo: ScoreMemo | None = None,
        teacher: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        supernet_version: str | None = None,
        seed: int = 0,
    ) -> None:
        """Pass the completions through the teacher: its weights must come out as 1.

        Holds the teacher's final hidden states of all completion tokens in host memory: tokens x hidden size.

        Args:
            supernet: holds the mixers; its all-FA placement is the teacher unless one is given.
            completions: the store.
            config: estimators and their settings.
            memo: finished scores; None: none are kept.
            teacher: where the supernet's shared weights were trained too, so that its all-FA path is not it.
            tokenizer: the supernet's, to check the store's against; None: not checked.
            supernet_version: names the weights in the memo; None: their SHA-256.
            seed: of the bootstrap.

        Raises:
            UserError: a store without a correct completion, of another teacher, tokenizer or temperature; a
                supernet in which a layer holds no full attention, without a teacher.
        """
        self._model, self._config, self._memo = supernet, config, memo
        self._set = CompletionSet(completions, config.problems, tokenizer)
        check_vocabulary(supernet, self._set.traces)
        self._batches = list(self._set.batches(config.batch_size))
        self._draws = problem_draws(self._set.stored.num_problems, config.resamples, seed)
        self.layer_evaluations = LayerEvaluations()
        self._head = lm_head(teacher or supernet)
        self._teacher_states = self._teacher_pass(teacher)
        self._scope = self._make_scope(supernet_version, teacher, seed) if memo else ""

    @property
    def num_completions(self) -> int:
        return len(self._set)

    def score(self, placements: Sequence[Placement], progress: Progress = silent) -> list[PlacementScore]:
        """Return a score per placement, in the order given.

        Args:
            placements: any number, repeated ones cost nothing.
            progress: called with finished and all (placement, batch) pairs of what is not in the memo.

        Raises:
            UserError: a placement of the wrong length, or with a mixer that its layer does not hold.
        """
        model = self._model
        wanted = [check_placement(placement, model.num_layers, model.mixers) for placement in placements]
        known = dict(self._memo.load(self._scope)) if self._memo else {}
        known = {placement: figures for placement, figures in known.items() if _is_whole(figures)}
        fresh = sorted(set(wanted) - known.keys())
        for found in self._score_chunks(fresh, progress):
            known.update(found)
            if self._memo:
                self._memo.add(self._scope, found)
        scores = [rate(placement, known[placement], self._config) for placement in wanted]
        warn_of_unreliable(scores, self._config)
        return scores

    def _score_chunks(self, fresh: list[Placement], progress: Progress) -> Iterator[dict[Placement, Figures]]:
        """Walk neighbours together, as many at a time as take a few seconds."""
        size, start = _SMALLEST_CHUNK, 0
        while start < len(fresh):
            steps = plan_walk(fresh[start : start + size])
            began = time.perf_counter()
            yield self._score_walk(steps, start, len(fresh), progress)
            seconds = max(time.perf_counter() - began, 1e-6)
            start += size
            size = max(_SMALLEST_CHUNK, min(2 * size, int(size * _FLUSH_SECONDS / seconds)))

    @torch.inference_mode()
    def _score_walk(
        self, steps: list[Step], before: int, total: int, progress: Progress
    ) -> dict[Placement, Figures]:
        sums = np.zeros((len(steps), 3, len(self._set.traces)))
        num_batches, began = len(self._batches), time.perf_counter()
        with evaluating(self._model):
            for number, indices in enumerate(self._batches):
                batch = self._set.traces.batch(indices).to(self._model.device)
                for step, hidden in enumerate(walk(self._model, steps, batch)):
                    sums[step][:, indices] = self._sums(hidden, batch, number)
                done = before * num_batches + (number + 1) * len(steps)
                speed = (number + 1) / num_batches * len(steps) / (time.perf_counter() - began)
                progress(done, total * num_batches, placements_per_s=speed)
        self.layer_evaluations.done += layer_evaluations(steps) * num_batches
        self.layer_evaluations.alone += len(steps) * self._model.num_layers * num_batches
        return {step.placement: self._figures(*own) for step, own in zip(steps, sums, strict=True)}

    def _sums(self, hidden: Tensor, batch: Batch, number: int) -> Array:
        states = self._teacher_states[number].to(hidden.device)
        head = TeacherHead(states, self._head)
        found = token_figures(hidden[batch.mask], lm_head(self._model), batch.targets[batch.mask], head)
        return found.sums(batch).numpy()

    def _figures(self, log_q: Array, kl: Array, num_top: Array) -> Figures:
        config, stored = self._config, self._set.stored
        estimates = estimate_all(
            stored,
            self._set.expand(log_q, kl, num_top),
            self._draws,
            clip=config.clip,
            confidence=config.confidence,
        )
        figures: Figures = {}
        for name, estimate in estimates.items():
            figures |= {
                name: estimate.value,
                f"{name}_low": estimate.low,
                f"{name}_high": estimate.high,
            }
        return figures | {
            "ess": figures["ess_share"] * len(self._set),
            "num_completions": len(self._set),
            "num_problems": stored.num_problems,
        }

    @torch.inference_mode()
    def _teacher_pass(self, teacher: PreTrainedModel | None) -> list[Tensor]:
        """Return the teacher's final hidden states per batch, `[tokens, hidden]`, once its weights are 1."""
        model = self._model if teacher is None else teacher
        states, recomputed, stored = [], [], []
        placement = self._model.placement
        try:
            if teacher is None:
                _activate_full_attention(self._model)
            with evaluating(model):
                for indices in self._batches:
                    batch = self._set.traces.batch(indices).to(model.device)
                    # No mask, as in `walk`.
                    hidden = final_hidden_states(model, batch.input_ids)[batch.mask]
                    targets = batch.targets[batch.mask]
                    log_p = token_figures(hidden, self._head, targets, TeacherHead(hidden, self._head)).log_q
                    recomputed.append(log_p.double().cpu().numpy())
                    stored += [self._set.token_log_probs[index] for index in indices]
                    states.append(hidden.cpu())
        finally:
            self._model.set_placement(placement)
        tolerance = self._config.tolerance_nats
        check_calibration(np.concatenate(recomputed), np.concatenate(stored), tolerance)
        self.layer_evaluations.done += self._model.num_layers * len(self._batches)
        self.layer_evaluations.alone += self._model.num_layers * len(self._batches)
        return states

    def _make_scope(self, version: str | None, teacher: PreTrainedModel | None, seed: int) -> str:
        settings = asdict(self._config)
        # These choose among the figures, or check, or set the speed; they change none.
        for name in ("estimator", "ess_floor", "tolerance_nats", "batch_size"):
            del settings[name]
        parts = [_SCORES_REVISION, version or weights_digest(self._model), self._set.digest(), settings, seed]
        parts.append(None if teacher is None else weights_digest(teacher))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _activate_full_attention(supernet: "HybridForCausalLM") -> None:
    lacking = [layer for layer, held in enumerate(supernet.mixers) if FULL_ATTENTION not in held]
    if lacking:
        raise UserError(
            f"layers {lacking} hold no full attention, so the supernet has no teacher in it; give the teacher"
        )
    supernet.set_placement((FULL_ATTENTION,) * supernet.num_layers)


def _is_whole(figures: Figures) -> bool:
    """Whether a memo's entry has what this code reads; another version's may not."""
    names = {name + end for name in ESTIMATORS for end in ("", "_low", "_high")}
    return names | {"ess", "num_completions", "num_problems"} <= figures.keys()
