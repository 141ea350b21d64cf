"""Leave-one-out importance: what the model loses when one layer's mixer adds nothing.

The pass without layer i's mixer equals the whole model's pass below layer i. Those activations are computed
once and reused, batch by batch, which about halves the work: L (L + 1) / 2 mixer evaluations instead of L^2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from apriel_assets.distillation.batches import Traces, length_sorted_batches
from apriel_assets.distillation.causal_lm import lm_head
from apriel_assets.distillation.losses import TeacherHead, token_divergences
from apriel_assets.errors import UserError
from apriel_assets.evaluation.accuracy import answer_problems
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.generation import evaluating
from apriel_assets.evaluation.kept_answers import KeptAnswers
from apriel_assets.evaluation.tasks.problems import Problem
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.progress import Progress, silent
from apriel_assets.scoring.config import LooConfig
from apriel_assets.scoring.prefix import capture_prefix, resume_forward
from apriel_assets.tables.schemas import to_table

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM


def score_layers(
    model: "HybridForCausalLM",
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    config: LooConfig,
    *,
    tasks: Sequence[TaskSpec] = (),
    progress: Progress = silent,
    kept: KeptAnswers | None = None,
) -> pa.Table:
    """Return the `layer_scores` table, one row per layer; rank 0 is the least important.

    The divergences are always measured, as means over the completion tokens of the problems' reference
    traces. `kl_nats`, KL(model without the mixer || model), is also the importance, unless the metric is
    `accuracy` (of greedy completions of the same problems) or `lm_eval`: then importance is the accuracy
    lost. Ties are broken by the divergence, then by the layer's index.

    Args:
        model: the teacher as a hybrid, or any hybrid.
        tokenizer: its tokenizer.
        problems: with reference traces, held out from training.
        config: metric and number of problems.
        tasks: the problems' tasks; their verifiers judge, for metric `accuracy`.
        progress: called with scored and all (batch, layer) pairs, then with measured and all accuracies.
        kept: where answers to an lm-eval task are kept for a call that goes on; None: they are not.

    Raises:
        UserError: no problems; an unknown or unreachable lm-eval task.
    """
    chosen = spread_choice(problems, config.problems)
    traces = Traces.from_problems(chosen, tokenizer)
    rows: list[dict] = [
        {
            "layer": layer,
            "metric": config.metric,
            "importance": reverse,
            "kl_nats": reverse,
            "forward_kl_nats": forward,
        }
        for layer, (reverse, forward) in enumerate(
            layer_divergences(model, traces, config.batch_size, progress)
        )
    ]
    if accuracies := _accuracies(model, tokenizer, chosen, tasks, config, progress, kept):
        whole, without = accuracies
        for row, accuracy in zip(rows, without, strict=True):
            row |= {"accuracy": accuracy, "importance": whole - accuracy}
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["importance"], rows[i]["kl_nats"], i))
    ranks = {layer: rank for rank, layer in enumerate(order)}
    return to_table("layer_scores", [{**row, "rank": ranks[row["layer"]]} for row in rows])


def layer_divergences(
    model: "HybridForCausalLM", traces: Traces, batch_size: int, progress: Progress = silent
) -> list[tuple[float, float]]:
    """Return for each layer the KL between the model without its mixer (w) and the model (m).

    Returns:
        (KL(w || m), KL(m || w)) per layer, means over completion tokens, nats.
    """
    sums = torch.zeros(model.num_layers, 2, dtype=torch.float64)
    tokens = 0
    batches = list(length_sorted_batches(traces, batch_size))
    with evaluating(model), torch.inference_mode():
        for number, indices in enumerate(batches):
            batch = traces.batch(indices).to(model.device)
            prefix = capture_prefix(model, batch.input_ids, batch.attention_mask)
            reference = TeacherHead(prefix.final_hidden_states[batch.mask], lm_head(model))
            tokens += len(reference.hidden_states)
            for layer in range(model.num_layers):
                with model.skip_mixers([layer]):
                    hidden = resume_forward(model, prefix, layer, batch.input_ids, batch.attention_mask)
                reverse, forward, _ = token_divergences(hidden[batch.mask], lm_head(model), reference)
                sums[layer] += torch.stack([reverse, forward]).double().sum(1).cpu()
                progress(number * len(sums) + layer + 1, len(batches) * len(sums))
    return [(reverse, forward) for reverse, forward in (sums / tokens).tolist()]


def spread_choice(problems: Sequence[Problem], num: int | None) -> list[Problem]:
    """Return `num` of the problems, evenly spaced: tasks that stand one after another keep their shares."""
    if num is None or num >= len(problems):
        return list(problems)
    return [problems[index * len(problems) // num] for index in range(num)]


def _accuracies(
    model: "HybridForCausalLM",
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    tasks: Sequence[TaskSpec],
    config: LooConfig,
    progress: Progress,
    kept: KeptAnswers | None,
) -> tuple[float, list[float]] | None:
    """Return the accuracy of the model, and without the mixer of each layer; None: the metric is the divergence."""
    if config.metric == "lm_eval":
        from apriel_assets.scoring.lm_eval_layers import accuracies_without_layers  # an optional dependency

        return accuracies_without_layers(model, tokenizer, config.asked, progress=progress, kept=kept)
    if config.metric == "accuracy":
        measure = partial(_generated_accuracy, model, tokenizer, problems, tasks)
        whole, without = measure(), []
        for layer in range(model.num_layers):
            without.append(_without(model, layer, measure))
            progress(layer + 1, model.num_layers, accuracy=without[-1])
        return whole, without
    return None


def _generated_accuracy(
    model: "HybridForCausalLM",
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    tasks: Sequence[TaskSpec],
) -> float:
    if strangers := {problem.task for problem in problems} - {spec.task for spec in tasks}:
        raise UserError(
            f"metric accuracy needs the specs of the problems' tasks; {sorted(strangers)} have none"
        )
    verdicts: list[bool] = []
    for spec in tasks:
        own = [problem for problem in problems if problem.task == spec.task]
        verdicts += answer_problems(model, tokenizer, spec, own, EvalConfig()) if own else []
    return sum(verdicts) / len(verdicts)


def _without(model: "HybridForCausalLM", layer: int, measure: Callable[[], float]) -> float:
    with model.skip_mixers([layer]):
        return measure()
