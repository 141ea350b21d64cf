"""Leave-one-out importance: what the model loses when one layer's mixer adds nothing.

The pass without layer i's mixer equals the whole model's pass below layer i. Those activations are computed once and
reused, which about halves the work at any depth.
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
from apriel_assets.evaluation.accuracy import answer_problems
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.generation import evaluating
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
) -> pa.Table:
    """Return the `layer_scores` table, one row per layer; rank 0 is the least important.

    `kl_nats` is always measured: KL(model without the mixer || model), mean over the completion tokens of the
    problems' reference traces. It is also the importance, unless the metric is `accuracy` (generated, on the same
    problems) or `lm_eval`: then importance is the accuracy lost, and ties are broken by the divergence.

    Args:
        model: the teacher as a hybrid, or any hybrid.
        tokenizer: its tokenizer.
        problems: with reference traces, held out from training.
        config: metric and number of problems.
        tasks: the problems' tasks; their verifiers judge, for metric `accuracy`.
        progress: called with scored and all (batch, layer) pairs, then with measured and all accuracies.

    Raises:
        UserError: no problems; an unknown or unreachable lm-eval task.
    """
    chosen = spread_choice(problems, config.problems)
    traces = Traces.from_problems(chosen, tokenizer)
    with evaluating(model), torch.inference_mode():
        kl_nats = layer_divergences(model, traces, config.batch_size, progress)
    measure = _accuracy_measure(model, tokenizer, chosen, tasks, config)
    accuracies = [_without(model, layer, measure) for layer in range(model.num_layers)] if measure else None
    base = measure() if measure else None
    rows = []
    for layer, divergence in enumerate(kl_nats):
        row = {"layer": layer, "metric": config.metric, "importance": divergence, "kl_nats": divergence}
        if accuracies is not None and base is not None:
            row |= {"accuracy": accuracies[layer], "importance": base - accuracies[layer]}
        rows.append(row)
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["importance"], rows[i]["kl_nats"], i))
    ranks = {layer: rank for rank, layer in enumerate(order)}
    return to_table("layer_scores", [{**row, "rank": ranks[row["layer"]]} for row in rows])


def layer_divergences(
    model: "HybridForCausalLM", traces: Traces, batch_size: int, progress: Progress = silent
) -> list[float]:
    """Return for each layer KL(model without its mixer || model), mean over completion tokens, nats."""
    sums = [0.0] * model.num_layers
    tokens = 0
    batches = list(length_sorted_batches(traces, batch_size))
    for number, indices in enumerate(batches):
        batch = traces.batch(indices).to(model.device)
        prefix = capture_prefix(model, batch.input_ids, batch.attention_mask)
        reference = TeacherHead(prefix.final_hidden_states[batch.mask], lm_head(model))
        tokens += len(reference.hidden_states)
        for layer in range(model.num_layers):
            with model.skip_mixers([layer]):
                hidden = resume_forward(model, prefix, layer, batch.input_ids, batch.attention_mask)
            reverse, _, _ = token_divergences(hidden[batch.mask], lm_head(model), reference)
            sums[layer] += float(reverse.double().sum())
            progress(number * len(sums) + layer + 1, len(batches) * len(sums))
    return [total / tokens for total in sums]


def spread_choice(problems: Sequence[Problem], num: int | None) -> list[Problem]:
    """Return `num` of the problems, evenly spaced, so that tasks that stand one after another keep their shares."""
    if num is None or num >= len(problems):
        return list(problems)
    return [problems[index * len(problems) // num] for index in range(num)]


def _accuracy_measure(
    model: "HybridForCausalLM",
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    tasks: Sequence[TaskSpec],
    config: LooConfig,
) -> Callable[[], float] | None:
    if config.metric == "lm_eval":
        from apriel_assets.evaluation import lm_eval_adapter  # an optional dependency, heavy to import

        return partial(
            lm_eval_adapter.task_accuracy, model, tokenizer, config.lm_eval_task, limit=config.lm_eval_limit
        )
    if config.metric == "accuracy":
        return partial(_generated_accuracy, model, tokenizer, problems, tasks)
    return None


def _generated_accuracy(
    model: "HybridForCausalLM",
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    tasks: Sequence[TaskSpec],
) -> float:
    verdicts: list[bool] = []
    for spec in tasks:
        own = [problem for problem in problems if problem.task == spec.task]
        verdicts += answer_problems(model, tokenizer, spec, own, EvalConfig()) if own else []
    return sum(verdicts) / len(verdicts)


def _without(model: "HybridForCausalLM", layer: int, measure: Callable[[], float]) -> float:
    with model.skip_mixers([layer]):
        return measure()
