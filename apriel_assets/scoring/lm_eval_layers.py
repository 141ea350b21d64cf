"""Leave-one-out on tasks of the lm-evaluation-harness, each shared layer prefix computed once.

What a task asks does not depend on the model as long as it compares log-likelihoods. So its requests are made once;
batch by batch the whole pass is kept, and for every layer only what stands above its missing mixer is computed again.
The harness then judges each layer's answers as it would judge any model's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from apriel_assets.distillation.causal_lm import lm_head
from apriel_assets.evaluation.kept_answers import KeptAnswers, request_keys
from apriel_assets.evaluation.lm_eval_adapter import accuracy_of, load_tasks, reuse_requests, run_loaded
from apriel_assets.evaluation.lm_eval_config import LmEvalTask
from apriel_assets.evaluation.log_likelihoods import (
    Answer,
    Request,
    RowBatch,
    answer_batch,
    make_rows,
    plan_batches,
)
from apriel_assets.progress import Progress, silent
from apriel_assets.scoring.prefix import capture_prefix, resume_forward

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from apriel_assets.hybrid.model import HybridForCausalLM

# Tokens at once; the activations of every layer are held.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}


def accuracies_without_layers(
    model: "HybridForCausalLM",
    tokenizer: PreTrainedTokenizerBase,
    asked: LmEvalTask,
    *,
    seed: int = 0,
    progress: Progress = silent,
    kept: KeptAnswers | None = None,
) -> tuple[float, list[float]]:
    """Return the accuracy on a task or group, and for each layer the accuracy without its mixer.

    Args:
        model: a hybrid, under its active placement.
        tokenizer: its tokenizer.
        asked: the task; requests that generate are answered anew for each layer, since texts share no activations.
        seed: of the choice of few-shot examples.
        progress: called with (batch, layer) pairs done and all.
        kept: where compared log-likelihoods are kept as they come, so that an interrupted call goes on from there.

    Raises:
        UserError: as `evaluate_lm_eval`, or the task has no accuracy.
    """
    from apriel_assets.evaluation.lm_eval_model import AprielLM

    class Answering(AprielLM):
        """Answers as the model does without one layer's mixer, `layer`, or with all (None)."""

        layer: int | None = None
        scored: Sequence[list[Answer]] = ()  # with all mixers, then without each layer's

        def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[Answer]:
            if self.layer is None:
                tokens = [self._request(*self._tokens(*request.args)) for request in requests]
                self.scored = answers_without_layers(
                    model, tokens, batch_size=asked.batch_size, progress=progress, kept=kept
                )
            return self.scored[0 if self.layer is None else self.layer + 1]

        def loglikelihood_rolling(
            self, requests: "list[Instance]", disable_tqdm: bool = False
        ) -> list[float]:
            with model.skip_mixers([] if self.layer is None else [self.layer]):
                return super().loglikelihood_rolling(requests, disable_tqdm)

        def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
            with model.skip_mixers([] if self.layer is None else [self.layer]):
                return super().generate_until(requests, disable_tqdm)

    answering = Answering(
        model, tokenizer=tokenizer, batch_size=asked.batch_size, truncation=asked.truncation, seed=seed
    )
    loaded = load_tasks(tokenizer, asked, seed=seed)
    whole = accuracy_of(run_loaded(loaded, answering, asked), asked.task)
    reuse_requests(loaded)
    without = []
    for layer in range(model.num_layers):
        answering.layer = layer
        without.append(accuracy_of(run_loaded(loaded, answering, asked), asked.task))
    return whole, without


@torch.inference_mode()
def answers_without_layers(
    model: "HybridForCausalLM",
    requests: Sequence[Request],
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
    kept: KeptAnswers | None = None,
) -> list[list[Answer]]:
    """Return each request's answer by the model, then by the model without the mixer of each layer in turn.

    L + L (L - 1) / 2 mixer evaluations a batch instead of L^2, and the same bits as whole passes give.

    Args:
        model: in eval mode.
        requests: token ids; each must fit into the model.
        batch_size: rows at once; None: by their tokens.
        progress: called with (batch, layer) pairs done and all.
        kept: of this model; batches that were answered before are taken from it.
    """
    limit = _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS["cpu"])
    batches = plan_batches(make_rows(requests), limit, batch_size, least_saved=None)
    found: list[list[Answer]] = [[(0.0, False)] * len(requests) for _ in range(model.num_layers + 1)]
    # A batch's tokens alone do not say which of them are scored.
    (asked,) = request_keys("without layers", [[[own.context, own.continuation] for own in requests]])
    keys = request_keys(asked, (batch.input_ids().tolist() for batch in batches))
    known = kept.load() if kept else {}
    for number, (key, batch) in enumerate(zip(keys, batches, strict=True)):
        answers = known.get(key)
        if answers is None:
            told = partial(_tell, progress, number, len(batches), model.num_layers)
            answers = _answered(model, batch, requests, told)
            if kept:
                kept.add(key, answers)
        for own, by_layer in zip(answers, found, strict=True):
            for position, (log_likelihood, is_greedy) in own:
                by_layer[position] = log_likelihood, is_greedy
    return found


def _answered(
    model: "HybridForCausalLM", batch: RowBatch, requests: Sequence[Request], told: Callable[[int], None]
) -> list[list[tuple[int, Answer]]]:
    """Return number and answer of a batch's requests: with all mixers, then without each layer's."""
    head = lm_head(model)
    ids = batch.input_ids().to(model.device)
    mask = torch.ones_like(ids)  # padding is on the right, where it changes nothing before it
    prefix = capture_prefix(model, ids, mask)
    found = [answer_batch(prefix.final_hidden_states, head, batch, requests)]
    for layer in range(model.num_layers):
        with model.skip_mixers([layer]):
            hidden = resume_forward(model, prefix, layer, ids, mask)
        found.append(answer_batch(hidden, head, batch, requests))
        told(layer)
    return found


def _tell(progress: Progress, batch: int, num_batches: int, num_layers: int, layer: int) -> None:
    progress(batch * num_layers + layer + 1, num_batches * num_layers)
