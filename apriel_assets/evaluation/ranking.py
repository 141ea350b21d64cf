"""Which places of a ranking the data support: a model is placed only against those that it can be told from.

With twelve models there are 66 pairs, and one in twenty of equals would look different by chance. So all pairs are
tested together: a difference counts if it is larger than the largest that chance gives anywhere among them.
"""

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

_FLIPS = 5000
_MAX_CELLS = 8_000_000  # of the statistics held at once, flips x pairs


@dataclass(frozen=True, kw_only=True)
class Place:
    """Best and worst place that a model may have, 1 = first; the same number: it is told from all others."""

    best: int
    worst: int


def accuracy_places(samples: pa.Table, *, alpha: float = 0.05, seed: int = 0) -> dict[str, Place]:
    """Return each model's places by mean accuracy over tasks.

    Models that were asked other problems than most were cannot be compared and are left out; with fewer than two
    left, nobody has a place.

    Args:
        samples: `eval_samples` rows of all models.
        alpha: chance that any two equal models are told apart.
        seed: of the sign flips.

    Source: Westfall and Young, "Resampling-Based Multiple Testing" (1993), single-step maxT.
    """
    models, parts = _accuracy_parts(samples)
    if len(models) < 2:
        return {}
    pairs = np.array(list(itertools.combinations(range(len(models)), 2)))
    differences = parts[:, pairs[:, 0]] - parts[:, pairs[:, 1]]  # [problems, pairs]
    scale = np.sqrt(np.square(differences).sum(0))
    scale[scale == 0] = 1.0  # the same answers to every problem: the statistic is 0
    differences /= scale  # a sign flip leaves this scale as it is
    seen = differences.sum(0)
    threshold = np.quantile(_largest_by_chance(differences, seed), 1 - alpha, method="higher")
    better, worse = np.zeros(len(models), int), np.zeros(len(models), int)
    # At the quantile itself chance still comes too often, and sums differ in their last bits.
    for (one, other), value in zip(pairs, seen, strict=True):
        if abs(value) > threshold * (1 + 1e-9):
            ahead, behind = (one, other) if value > 0 else (other, one)
            better[behind] += 1
            worse[ahead] += 1
    return {
        model: Place(best=int(better[index]) + 1, worst=len(models) - int(worse[index]))
        for index, model in enumerate(models)
    }


def _accuracy_parts(samples: pa.Table) -> tuple[list[str], np.ndarray]:
    """Return the models, and each problem's part of their mean accuracy, `[problems, models]`."""
    verdicts: dict[str, dict[tuple[str, str], bool]] = {}
    columns = (samples.column(name).to_pylist() for name in ("model", "task", "problem_id", "correct"))
    for model, task, problem, correct in zip(*columns, strict=True):
        verdicts.setdefault(model, {})[task, problem] = correct
    if not verdicts:
        return [], np.zeros((0, 0))
    asked = Counter(frozenset(own) for own in verdicts.values())
    problems = sorted(max(asked, key=lambda one: (asked[one], len(one))))
    models = [model for model, own in verdicts.items() if own.keys() == set(problems)]
    sizes = Counter(task for task, _ in problems)
    weights = np.array([1 / sizes[task] / len(sizes) for task, _ in problems])
    correct = np.array(
        [[verdicts[model][problem] for model in models] for problem in problems], dtype=np.float64
    )
    return models, correct * weights[:, None]


def _largest_by_chance(differences: np.ndarray, seed: int) -> np.ndarray:
    """Return the largest statistic of any pair when every problem's sign is a coin's, `[flips]`."""
    rng = np.random.default_rng(seed)
    num_problems, num_pairs = differences.shape
    chunk = max(1, _MAX_CELLS // max(num_problems, num_pairs))
    largest = []
    for start in range(0, _FLIPS, chunk):
        # One coin a problem for all pairs: what the models share stays shared.
        signs = rng.integers(0, 2, (min(chunk, _FLIPS - start), num_problems), dtype=np.int8) * 2.0 - 1
        largest.append(np.abs(signs @ differences).max(1))
    return np.concatenate(largest)
