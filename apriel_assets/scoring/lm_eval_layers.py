"""Leave-one-out on tasks of the lm-evaluation-harness, each shared layer prefix computed once.

What a task asks does not depend on the model as long as it compares log-likelihoods. So its requests are made once;
batch by batch the whole pass is kept, and for every layer only what stands above its missing mixer is computed again.
The harness then judges each layer's answers as it would judge any model's.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from apriel_assets.distillation.causal_lm import lm_head
from apriel_assets.evaluation.lm_eval_adapter import accuracy_of, load_tasks, reuse_requests, run_loaded
from apriel_assets.evaluation.lm_eval_config import LmEvalTask
from apriel_assets.evaluation.log_likelihoods import Answer, Request, answer_batch, make_rows, plan_batches
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
) -> tuple[float, list[float]]:
    """Return the accuracy on a task or group, and for each layer the accuracy without its mixer.

    Args:
        model: a hybrid, under its active placement.
        tokenizer: its tokenizer.
        asked: the task; requests that generate are answered anew for each layer, since texts share no activations.
        seed: of the choice of few-shot examples.
        progress: called with (batch, layer) pairs done and all.

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
                    model, tokens, batch_size=asked.batch_size, progress=progress
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
) -> list[list[Answer]]:
    """Return each request's answer by the model, then by the model without the mixer of each layer in turn.

    L + L (L - 1) / 2 mixer evaluations a batch instead of L^2, and the same bits as whole passes give.

    Args:
        model: in eval mode.
        requests: token ids; each must fit into the model.
        batch_size: rows at once; None: by their tokens.
        progress: called with (batch, layer) pairs done and all.
    """
    limit = _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS["cpu"])
    batches = plan_batches(make_rows(requests), limit, batch_size, least_saved=None)
    found: list[list[Answer]] = [[(0.0, False)] * len(requests) for _ in range(model.num_layers + 1)]
    head = lm_head(model)
    for number, batch in enumerate(batches):
        ids = batch.input_ids().to(model.device)
        mask = torch.ones_like(ids)  # padding is on the right, where it changes nothing before it
        prefix = capture_prefix(model, ids, mask)
        for position, answer in answer_batch(prefix.final_hidden_states, head, batch, requests):
            found[0][position] = answer
        for layer in range(model.num_layers):
            with model.skip_mixers([layer]):
                hidden = resume_forward(model, prefix, layer, ids, mask)
            for position, answer in answer_batch(hidden, head, batch, requests):
                found[layer + 1][position] = answer
            progress(number * model.num_layers + layer + 1, len(batches) * model.num_layers)
    return found
