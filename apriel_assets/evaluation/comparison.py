"""Two models' answers to the same problems, by task and over all: rows that say what can be told and what cannot."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from apriel_assets.errors import UserError
from apriel_assets.evaluation.eval_rows import METRICS, metric_values
from apriel_assets.evaluation.paired import Difference, Pairs, holm, paired_difference

OVERALL = "all tasks"
ALPHA = 0.05
HIGHER_IS_BETTER = {metric: metric == "accuracy" for metric in METRICS}
_ROUNDING_NATS = 1e-6  # fp32 in another order: not a difference between models
_RULE_OF_THREE = 3.0  # n problems without an event leave up to 3/n of them possible, at 95%


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One metric of one task (or the mean over all): A, B and their paired difference."""

    task: str
    metric: str
    num_problems: int
    num_differing: int  # problems that the two answered differently
    a: float
    b: float
    difference: float  # a - b
    low: float  # 95% interval over problems (and over runs, if several)
    high: float
    p_value: float  # sign-flip test; of a task, adjusted for the number of tasks
    better: str | None  # "a" or "b"; None: no detectable difference
    could_hide: float  # without a detectable difference: how large one may still be

    @property
    def verdict(self) -> str:
        """The row in words."""
        if self.better is None:
            hidden = f" (one of up to {self.could_hide:.2g} may hide)" if self.could_hide else ""
            return f"no detectable difference{hidden}"
        return f"{self.better.upper()} is better"

    def as_json(self) -> dict[str, object]:
        """Return all fields and the verdict."""
        return {**asdict(self), "verdict": self.verdict}


def compare(
    runs: Sequence[tuple[pa.Table, pa.Table]],
    metrics: Iterable[str] = ("accuracy", "reverse_kl_nats"),
    *,
    confidence: float = 0.95,
) -> list[ComparisonRow]:
    """Return rows per metric: over all tasks first, then each task.

    Args:
        runs: `eval_samples` rows of A and of B, a pair for each seed (or whatever was repeated).
        metrics: of `METRICS`; one that was not measured for both is left out.
        confidence: of the intervals.

    Raises:
        UserError: the two have no problem in common.
    """
    by_task = [_common(a, b) for a, b in runs]
    names = sorted({task for tasks in by_task for task in tasks})
    if not names:
        raise UserError(
            "no problem was answered by both, so nothing can be paired; evaluate both with the same tasks and seed"
        )
    rows = []
    for metric in metrics:
        measured = {
            task: _measured([tasks[task] for tasks in by_task if task in tasks], metric) for task in names
        }
        rows += _rows({task: own for task, own in measured.items() if own}, metric, confidence)
    return rows


def compare_to(
    base: pa.Table, others: Mapping[str, pa.Table], metric: str = "accuracy", *, confidence: float = 0.95
) -> dict[str, ComparisonRow]:
    """Return, for each of several models (A), its difference over all tasks from one model (B).

    P-values are adjusted for the number of models. A model that answered none of B's problems is left out.

    Args:
        base: `eval_samples` rows of B.
        others: of each other model.
        metric: of `METRICS`.
        confidence: of the intervals.
    """
    found: dict[str, tuple[dict[str, _Task], Difference]] = {}
    for name, samples in others.items():
        pairs = {task: _measured([both], metric) for task, both in _common(samples, base).items()}
        if tasks := {task: own for task, own in pairs.items() if own}:
            found[name] = (
                tasks,
                paired_difference([own.pairs for own in tasks.values()], confidence=confidence),
            )
    adjusted = holm([difference.p_value for _, difference in found.values()])
    return {
        name: _row(OVERALL, metric, _means(tasks), difference, p_value)
        for (name, (tasks, difference)), p_value in zip(found.items(), adjusted, strict=True)
    }


def num_unpaired(runs: Sequence[tuple[pa.Table, pa.Table]]) -> int:
    """Return how many problems only one of the two answered."""
    unpaired = 0
    for a, b in runs:
        both = sum(own.num_rows for own, _ in _common(a, b).values())
        unpaired += a.num_rows + b.num_rows - 2 * both
    return unpaired


def task_pairs(a: pa.Table, b: pa.Table, metric: str) -> Pairs | None:
    """Return the pairs of two tables that hold the same problems in the same order; None: not measured in both."""
    (first, weights), (second, others) = metric_values(a, metric), metric_values(b, metric)
    # Another tokenizer splits the reference traces otherwise, and its KL per token is on another scale.
    if np.isnan(first).any() or np.isnan(second).any() or not np.array_equal(weights, others):
        return None
    differences = first - second
    if metric != "accuracy":
        differences[np.abs(differences) < _ROUNDING_NATS] = 0.0
    return Pairs(differences=differences, weights=weights)


def paired_change(new: pa.Table, old: pa.Table) -> dict[str, Difference]:
    """Return each metric's `new - old` of one task's `eval_samples`, on the problems that both have.

    Metrics that one of them lacks are left out; so are all, if they have no problem in common.
    """
    found = {}
    for own, other in _common(new, old).values():
        for metric in METRICS:
            if (pairs := task_pairs(own, other, metric)) is not None:
                found[metric] = paired_difference([[pairs]])
    return found


def _common(a: pa.Table, b: pa.Table) -> dict[str, tuple[pa.Table, pa.Table]]:
    """Return, for each task that both have, the rows of the problems that both have, in the same order."""
    first, second = _positions(a), _positions(b)
    found = {}
    for task, keys in itertools.groupby(sorted(first.keys() & second.keys()), key=lambda key: key[0]):
        shared = list(keys)
        found[task] = a.take([first[key] for key in shared]), b.take([second[key] for key in shared])
    return found


def _positions(rows: pa.Table) -> dict[tuple[str, str], int]:
    """Return the row of each task and problem."""
    columns = (rows.column(name).to_pylist() for name in ("task", "problem_id"))
    return {key: index for index, key in enumerate(zip(*columns, strict=True))}


@dataclass(frozen=True, kw_only=True)
class _Task:
    pairs: list[Pairs]
    a: float
    b: float


def _measured(runs: Sequence[tuple[pa.Table, pa.Table]], metric: str) -> _Task | None:
    pairs = [found for a, b in runs if (found := task_pairs(a, b, metric)) is not None]
    if len(pairs) < len(runs) or not runs:
        return None
    means = [
        [
            np.average(values, weights=weights)
            for values, weights in (metric_values(rows, metric) for rows in run)
        ]
        for run in runs
    ]
    a, b = np.mean(means, axis=0)
    return _Task(pairs=pairs, a=float(a), b=float(b))


def _rows(tasks: Mapping[str, _Task], metric: str, confidence: float) -> list[ComparisonRow]:
    if not tasks:
        return []
    own = {
        name: paired_difference([task.pairs], confidence=confidence, seed=index)
        for index, (name, task) in enumerate(tasks.items())
    }
    adjusted = holm([found.p_value for found in own.values()])
    whole = paired_difference([task.pairs for task in tasks.values()], confidence=confidence)
    return [
        _row(OVERALL, metric, _means(tasks), whole, whole.p_value),
        *(
            _row(name, metric, (tasks[name].a, tasks[name].b), found, p_value)
            for (name, found), p_value in zip(own.items(), adjusted, strict=True)
        ),
    ]


def _means(tasks: Mapping[str, _Task]) -> tuple[float, float]:
    a, b = (float(np.mean([getattr(task, side) for task in tasks.values()])) for side in "ab")
    return a, b


def _row(
    task: str, metric: str, values: tuple[float, float], found: Difference, p_value: float
) -> ComparisonRow:
    is_told = found.is_detected(ALPHA) and p_value < ALPHA
    a_leads = (found.value > 0) == HIGHER_IS_BETTER[metric]
    # With hardly any problem that differs, the bootstrap has nothing to resample and its interval is too narrow.
    floor = _RULE_OF_THREE / found.num_problems if metric == "accuracy" else 0.0
    return ComparisonRow(
        task=task,
        metric=metric,
        num_problems=found.num_problems,
        num_differing=found.num_differing,
        a=values[0],
        b=values[1],
        difference=found.value,
        low=found.low,
        high=found.high,
        p_value=p_value,
        better=("a" if a_leads else "b") if is_told else None,
        could_hide=0.0 if is_told else max(abs(found.low), abs(found.high), floor),
    )
