"""How sure a mean is, when its values come in groups.

Tokens of one completion, and completions of one problem, are not independent: resampling them one by one
gives intervals that are far too narrow. So whole groups (problems) are resampled.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from apriel_assets.errors import UserError

_MAX_DRAWS = 4_000_000  # resampled group counts held at once


def mean_interval(
    values: Sequence[float] | np.ndarray,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return mean, lower and upper end of a percentile bootstrap interval.

    The mean is over all values, so a group with more values weighs more. With groups that all have the same
    mean (every answer right; a single problem) the interval has no width: the data show no spread, which is
    not certainty.

    Args:
        values: `[num_values]`, finite.
        groups: the group of each value, `[num_values]`; None: every value is its own.
        confidence: share of the bootstrap means inside the interval.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        UserError: no values, a value that is not finite, or a group list of another length.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise UserError(f"a mean needs a list of finite values; got shape {values.shape}")
    if groups is not None and len(groups) != len(values):
        raise UserError(f"{len(groups)} groups for {len(values)} values; give one per value")
    index = (
        np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    )
    sums, sizes = np.bincount(index, weights=values), np.bincount(index)
    means = resampled_means(sums, sizes, resamples, np.random.default_rng(seed))
    return float(values.mean()), *percentile_interval(means, confidence)


def percentile_interval(means: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return lower and upper end of the middle `confidence` of the resampled means, `[resamples]`."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def resampled_means(
    sums: np.ndarray,
    sizes: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
    times: np.ndarray | None = None,
) -> np.ndarray:
    """Return the mean of each resample, `[resamples]`.

    Args:
        sums: of each group's values, `[num_groups]`.
        sizes: of each group, `[num_groups]`.
        resamples: how many.
        rng: draws the groups.
        times: how many groups there are of each kind, where equal ones stand for each other; None: one.
    """
    times = np.ones(len(sums), dtype=int) if times is None else times
    num_groups = int(times.sum())
    chunk = max(1, _MAX_DRAWS // len(sums))
    means = []
    for start in range(0, resamples, chunk):
        # How often each group is drawn, [chunk, num_groups]: all that a mean needs to know of a resample.
        counts = rng.multinomial(num_groups, times / num_groups, size=min(chunk, resamples - start))
        means.append((counts @ sums) / (counts @ sizes))
    return np.concatenate(means)
