"""Do two models differ, asked the same problems? The difference, how sure it is, and whether chance alone would do it.

Paired, because most of the spread is between easy and hard problems, and that is the same for both. Two looks at it
must agree before a difference is called one: a bootstrap interval over problems, which is too narrow when few problems
differ, and a sign-flip test, which is exact then.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apriel_assets.errors import UserError
from apriel_assets.evaluation.bootstrap import percentile_interval, resampled_means
from apriel_assets.evaluation.change import Measured

RESAMPLES, FLIPS = 4000, 20_000
_EXACT = 13  # differing problems up to which all 2^n sign patterns are tried, not a sample of them
_MAX_DRAWS = 4_000_000  # sign flips held at once


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """One task's problems as answered by two runs: values of A minus values of B.

    Attributes:
        differences: `[num_problems]`, finite.
        weights: `[num_problems]`, positive: how much a problem counts within its task.
    """

    differences: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        if (
            self.differences.ndim != 1
            or self.differences.shape != self.weights.shape
            or not len(self.weights)
        ):
            raise UserError(
                f"differences {self.differences.shape} and weights {self.weights.shape} must be two lists of the "
                "same length, with at least one problem"
            )
        if not np.isfinite(self.differences).all() or not (self.weights > 0).all():
            raise UserError("a paired difference needs finite values and positive weights")

    @property
    def shares(self) -> np.ndarray:
        """Each problem's part of the mean difference, `[num_problems]`."""
        return self.differences * self.weights / self.weights.sum()


@dataclass(frozen=True, kw_only=True)
class Difference(Measured):
    """A - B: mean, 95% interval, and how often chance alone gives one as large."""

    p_value: float  # two-sided
    num_problems: int
    num_differing: int  # problems that the two answered differently

    def is_detected(self, alpha: float = 0.05) -> bool:
        """Return whether the interval leaves out zero and the test agrees."""
        return self.p_value < alpha and (self.low > 0 or self.high < 0)


def paired_difference(
    tasks: Sequence[Sequence[Pairs]],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    flips: int = FLIPS,
    seed: int = 0,
) -> Difference:
    """Return the difference, mean over tasks of the mean over runs.

    With one run a task, the interval is over problems. With several (seeds of training, say), runs are resampled too,
    so it also says what another seed might give; the test is about the runs at hand.

    Args:
        tasks: for each task, its runs.
        confidence: of the interval.
        resamples: bootstrap resamples.
        flips: random sign patterns of the test, where there are too many to try all.
        seed: of both.

    Raises:
        UserError: no task, or a task without a run.

    Source: Koehn, "Statistical significance tests for machine translation evaluation" (2004), the paired bootstrap;
    Fisher, "The Design of Experiments" (1935), section 21, the sign-flip test. Over one task's verdicts the test is
    McNemar's in its exact form.
    """
    if not tasks or not all(tasks):
        raise UserError("a comparison needs at least one task with problems that both models answered")
    means = np.mean([_resampled(runs, resamples, [seed, index]) for index, runs in enumerate(tasks)], axis=0)
    low, high = percentile_interval(means, confidence)
    shares = np.concatenate([_shares(runs) / len(tasks) for runs in tasks])
    everything = [pairs for runs in tasks for pairs in runs]
    return Difference(
        value=float(shares.sum()),
        low=low,
        high=high,
        p_value=sign_flip_p_value(shares, flips=flips, seed=seed),
        num_problems=sum(len(pairs.differences) for pairs in everything),
        num_differing=sum(int(np.count_nonzero(pairs.differences)) for pairs in everything),
    )


def sign_flip_p_value(shares: np.ndarray, *, flips: int = FLIPS, seed: int = 0) -> float:
    """Return how often the sum of `shares`, `[n]`, is as far from zero when each one's sign is a coin's.

    If the two models were as good as each other, each problem could as well have come out the other way round.
    """
    shares = shares[shares != 0]
    # Sums in another order differ in their last bits: a pattern that ties with what was seen must count.
    least = abs(shares.sum()) - 1e-9 * np.abs(shares).sum()
    if len(shares) <= _EXACT:
        patterns = np.array(list(itertools.product((-1.0, 1.0), repeat=len(shares))))
        return float(np.mean(np.abs(patterns @ shares) >= least)) if len(shares) else 1.0
    rng = np.random.default_rng(seed)
    chunk = max(1, _MAX_DRAWS // len(shares))
    as_far = 0
    for start in range(0, flips, chunk):
        signs = rng.integers(0, 2, (min(chunk, flips - start), len(shares)), dtype=np.int8) * 2.0 - 1
        as_far += int(np.count_nonzero(np.abs(signs @ shares) >= least))
    return (as_far + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that may each be held against alpha although several were looked at.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _resampled(runs: Sequence[Pairs], resamples: int, seed: list[int]) -> np.ndarray:
    """Return the task's mean difference in each resample, `[resamples]`."""
    if len(runs) == 1:
        # Verdicts differ by -1, 0 or 1: drawing how many of each is twenty times as fast as drawing problems.
        (run,) = runs
        (sums, sizes), times = np.unique(
            np.stack([run.differences * run.weights, run.weights]), axis=1, return_counts=True
        )
        return resampled_means(sums, sizes, resamples, np.random.default_rng(seed), times)
    # The same draws for every run: runs that answered the same problems then share the resampled problems.
    means = np.stack(
        [
            resampled_means(
                run.differences * run.weights, run.weights, resamples, np.random.default_rng(seed)
            )
            for run in runs
        ]
    )
    chosen = np.random.default_rng([*seed, 1]).multinomial(
        len(runs), np.full(len(runs), 1 / len(runs)), size=resamples
    )
    return (chosen * means.T).sum(1) / len(runs)


def _shares(runs: Sequence[Pairs]) -> np.ndarray:
    """Return each problem's part of the task's mean difference; runs of one length share their coins."""
    parts = [run.shares / len(runs) for run in runs]
    return np.sum(parts, axis=0) if len({len(part) for part in parts}) == 1 else np.concatenate(parts)
