"""The proxy audit: does an estimator order placements as real generation does?

Placements from all full attention to fully replaced are scored and made to generate; each estimator is then
held against the generated accuracy. A search that trusts an estimator should show this table beside its result.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, get_args

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.evaluation.accuracy import answer_tasks
from apriel_assets.evaluation.bootstrap import mean_interval
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.tasks.problems import make_problems
from apriel_assets.evaluation.tasks.specs import Split, TaskSpec
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement, check_placement
from apriel_assets.progress import Progress, silent
from apriel_assets.scoring.config import EstimatorName
from apriel_assets.scoring.estimators import Array
from apriel_assets.scoring.rating import PlacementScore
from apriel_assets.tables.schemas import to_table

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

# Estimates of the accuracy itself; the others are in units of their own, where a bias means nothing.
_ACCURACY_ESTIMATORS = ("ois", "ois_clipped", "snis")
_RESAMPLES = 2000
_MAX_DRAWS_PER_PLACEMENT = 50


@dataclass(frozen=True, slots=True)
class GeneratedAccuracy:
    """What a placement's own greedy completions were worth."""

    accuracy: float
    low: float  # lower end of the bootstrap interval over problems
    high: float
    num_problems: int


def audit_placements(
    num: int,
    mixers: Sequence[Collection[str]],
    *,
    layer_ranking: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Placement]:
    """Return distinct placements spread evenly from all full attention to fully replaced.

    Half of them replace the least important layers first, half random ones; the mixers come one kind at a time
    and mixed, in turn.

    Args:
        num: how many, at least 2.
        mixers: those that each layer holds, full attention among them.
        layer_ranking: layers, least important first; None: all replaced layers are random.
        seed: of the random choices.

    Raises:
        UserError: fewer than 2 asked for, or more than the layers can tell apart.
    """
    if num < 2:
        raise UserError(f"an audit of {num} placements shows nothing; give at least 2, better 24")
    rng, num_layers = Random(f"audit/{seed}"), len(mixers)
    kinds = sorted({mixer for held in mixers for mixer in held} - {FULL_ATTENTION})
    found: dict[Placement, None] = {}
    for index in range(num):
        replaced = round(index * num_layers / (num - 1))
        for attempt in range(_MAX_DRAWS_PER_PLACEMENT):
            order = list(range(num_layers))
            rng.shuffle(order)
            if layer_ranking is not None and index % 2 and not attempt:
                order = list(layer_ranking)
            kind = [*kinds, None][index % (len(kinds) + 1)] if not attempt else None
            placement = _replaced(order[:replaced], mixers, kind, rng)
            if placement not in found:
                found[placement] = None
                break
            # Nothing new with so many layers: one replaced layer more, or one less, is as good.
            replaced = min(num_layers, max(0, replaced + rng.choice((-1, 0, 1))))
    if len(found) < num:
        raise UserError(
            f"these layers and mixers give only {len(found)} audit placements, {num} asked for; ask for fewer"
        )
    return list(found)


def generated_accuracies(
    supernet: "HybridForCausalLM",
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[TaskSpec],
    placements: Sequence[Placement],
    config: EvalConfig,
    *,
    split: Split = "validation",
    seed: int,
    exclude: Collection[str] = (),
    progress: Progress = silent,
) -> list[GeneratedAccuracy]:
    """Return each placement's accuracy over the same problems, generated for real, greedily.

    Args:
        supernet: holds the mixers; its active placement is put back at the end.
        tokenizer: the supernet's.
        tasks: whose problems are put; their mean is over problems, so tasks weigh alike.
        placements: what generates.
        config: `num_problems` is per task.
        split: `validation` is the store's: take another seed than its own.
        seed: of the problem draw and of the bootstrap.
        exclude: ids of problems not to put, such as the store's own.
        progress: called with finished and all placements.

    Raises:
        UserError: too few problems, or a placement that the supernet does not hold.
    """
    problems = {
        task.task: _unseen_problems(task, split, config.num_problems, seed, exclude) for task in tasks
    }
    checked = [check_placement(p, supernet.num_layers, supernet.mixers) for p in placements]
    draws = {"confidence": config.confidence, "resamples": config.resamples, "seed": seed}
    before, found = supernet.placement, []
    try:
        for placement in checked:
            supernet.set_placement(placement)
            asked = [(task, problems[task.task]) for task in tasks]
            correct = answer_tasks(supernet, tokenizer, asked, config)
            found.append(GeneratedAccuracy(*mean_interval(correct, **draws), len(correct)))
            progress(len(found), len(checked), accuracy=found[-1].accuracy)
    finally:
        supernet.set_placement(before)
    return found


def audit_rows(
    scores: Sequence[PlacementScore],
    generated: Sequence[GeneratedAccuracy],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> pa.Table:
    """Return the `audit` table: each estimator against generated accuracy, all turned so that higher is better.

    A correlation is null where one side does not vary. The Spearman interval resamples placements.

    Raises:
        UserError: fewer than 3 placements, or lists of different lengths.
    """
    if len(scores) != len(generated) or len(scores) < 3:
        raise UserError(
            f"an audit needs at least 3 placements, scored and generated; got {len(scores)} and {len(generated)}"
        )
    accuracy = np.array([own.accuracy for own in generated])
    # Row 0 is the placements themselves.
    draws = np.random.default_rng(seed).integers(len(accuracy), size=(_RESAMPLES, len(accuracy)))
    draws = np.concatenate([np.arange(len(accuracy))[None], draws])
    accuracy_ranks = average_ranks(accuracy[draws])
    tail = 50 * (1 - confidence)
    rows = []
    for name in get_args(EstimatorName):
        estimates = np.array([score.estimate(name) for score in scores])
        spearman = correlation(average_ranks(estimates[draws]), accuracy_ranks)
        low, high = (
            np.nanpercentile(spearman, [tail, 100 - tail]) if np.isfinite(spearman[0]) else (np.nan,) * 2
        )
        figures = {
            "pearson": correlation(estimates, accuracy),
            "spearman": spearman[0],
            "spearman_low": low,
            "spearman_high": high,
            "bias": (estimates - accuracy).mean() if name in _ACCURACY_ESTIMATORS else np.nan,
        }
        known = {key: float(value) if np.isfinite(value) else None for key, value in figures.items()}
        rows.append({"estimator": name, **known, "num_placements": len(accuracy)})
    return to_table("audit", rows)


def audit_points(scores: Sequence[PlacementScore], generated: Sequence[GeneratedAccuracy]) -> pa.Table:
    """Return the `audit_points` table: one row per placement and estimator, higher = better."""
    rows = [
        {
            "placement": score.placement,
            "estimator": name,
            "estimate": score.estimate(name),
            "generated_accuracy": own.accuracy,
            "generated_low": own.low,
            "generated_high": own.high,
            "num_problems": own.num_problems,
        }
        for score, own in zip(scores, generated, strict=True)
        for name in get_args(EstimatorName)
    ]
    return to_table("audit_points", rows)


def correlation(first: Array, second: Array) -> Array:
    """Return Pearson's correlation of two `[..., n]`, `[...]`; NaN where one side is constant."""
    a = first - first.mean(-1, keepdims=True)
    b = second - second.mean(-1, keepdims=True)
    constant = (np.ptp(first, axis=-1) == 0) | (np.ptp(second, axis=-1) == 0)
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.where(constant, np.nan, (a * b).sum(-1) / np.where(constant | (size == 0), 1, size))


def average_ranks(values: Array) -> Array:
    """Return ranks from 0 within the last axis of `[..., n]`; equal values share the mean of theirs."""
    less = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return less + (equal - 1) / 2


def _replaced(
    layers: Sequence[int], mixers: Sequence[Collection[str]], kind: str | None, rng: Random
) -> Placement:
    """Return full attention but for these layers: of one kind where they hold it, else of a random one."""
    placement = [FULL_ATTENTION] * len(mixers)
    for layer in layers:
        held = sorted(set(mixers[layer]) - {FULL_ATTENTION})
        if held:
            placement[layer] = kind if kind in held else rng.choice(held)
    return tuple(placement)


def _unseen_problems(task: TaskSpec, split: Split, num: int, seed: int, exclude: Collection[str]) -> list:
    excluded, asked = set(exclude), num
    while True:
        # A smaller number gives the beginning of a larger one, so this grows one list.
        drawn = make_problems(task, split, asked, seed)
        unseen = [problem for problem in drawn if problem.problem_id not in excluded][:num]
        if len(unseen) == num:
            return unseen
        asked += num - len(unseen)
