"""What a placement's log-probabilities of the teacher's completions say about its quality.

The teacher p sampled N completions x and each got a verdict c. A placement q gives each the importance weight
w = q(x) / p(x). Every estimator is a ratio of sums over completions, so one set of per-problem sums gives
the estimates and, resampled by whole problems, their intervals:

    ois          sum w c / N              unbiased for the accuracy of q's own samples; heavy tails
    ois_clipped  sum min(w, clip) c / N   bounded variance, biased downwards
    snis         sum w c / sum w          normalises away how improbable the store is under q: not to be trusted
                                          under a small ESS, where it returns "correct" for any q
    ess          (sum w)^2 / sum w^2      in completions, 1 to N; as an estimator: its share of N
    reverse_kl   KL(q || p) per token, on the stored prefixes
    log_q        log q per stored token
    exact_match  share of the correct completions whose every token is q's likeliest
    token_match  share of the stored tokens that are q's likeliest

All in fp64. Sums of weights stay in log space: exact at log-weights of +-5000, where exp() is 0 or inf.

Source: Kong, Liu and Wong, "Sequential Imputations and Bayesian Missing Data Problems", JASA 89 (1994), for
ESS; Ionides, "Truncated Importance Sampling", JCGS 17 (2008), for clipping.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apriel_assets.errors import UserError

Array = NDArray[np.float64]

ESTIMATORS = ("ois", "ois_clipped", "snis", "ess_share", "reverse_kl", "log_q", "exact_match", "token_match")

# Under this, a sum of shifted weights has lost terms to underflow and is taken again with a shift of its own.
_SMALLEST_SUM = 1e-250
_LARGEST_LOG = float(np.log(np.finfo(np.float64).max))


@dataclass(frozen=True, slots=True)
class StoredCompletions:
    """What the store knows of each completion, all `[N]`."""

    log_p: Array  # teacher's log-probability, summed over its tokens, nats
    correct: Array  # verdict, 0 or 1
    num_tokens: Array
    problem: NDArray[np.int64]  # 0 to num_problems - 1

    @property
    def num_problems(self) -> int:
        return int(self.problem.max()) + 1


@dataclass(frozen=True, slots=True)
class PlacementFigures:
    """What one forward pass tells of each completion, all `[N]`."""

    log_q: Array  # placement's log-probability, summed over its tokens, nats
    kl: Array  # KL(placement || teacher), summed over its positions, nats
    num_top: Array  # tokens that are the placement's likeliest


@dataclass(frozen=True, slots=True)
class Estimate:
    """One estimator's value with its bootstrap interval."""

    value: float
    low: float
    high: float


def problem_draws(num_problems: int, resamples: int, seed: int) -> Array:
    """Return how often each problem is drawn in each resample, `[1 + resamples, num_problems]`.

    Row 0 is the data themselves. The same draws serve every placement, so that two can be compared.
    """
    rng = np.random.default_rng(seed)
    shares = np.full(num_problems, 1 / num_problems)
    draws = rng.multinomial(num_problems, shares, size=resamples).astype(np.float64)
    return np.concatenate([np.ones((1, num_problems)), draws])


def estimate_all(
    stored: StoredCompletions,
    figures: PlacementFigures,
    draws: Array,
    *,
    clip: float,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Return every estimator with its percentile interval over problems.

    Args:
        stored: the completions; `figures`: the placement's, in the same order.
        draws: of `problem_draws`.
        clip: largest weight in `ois_clipped`.
        confidence: share of the resamples inside the interval.

    Raises:
        UserError: a figure that is not finite (a placement whose logits overflow).
    """
    tail = 50 * (1 - confidence)
    found = {}
    for name, values in _ratios(stored, figures, draws, clip).items():
        low, high = np.percentile(values[1:], [tail, 100 - tail]) if len(values) > 1 else values[[0, 0]]
        found[name] = Estimate(float(values[0]), float(low), float(high))
    return found


def point_estimates(
    log_weights: ArrayLike, correct: ArrayLike, *, clip: float = np.inf
) -> Mapping[str, float]:
    """Return `ois`, `ois_clipped`, `snis`, `ess` (in completions) and `ess_share` of plain weights, `[N]`.

    Raises:
        UserError: no weights, or one that is not finite.
    """
    logs = np.asarray(log_weights, dtype=np.float64)
    count = len(logs)
    stored = StoredCompletions(
        np.zeros(count), np.asarray(correct, dtype=np.float64), np.ones(count), np.arange(count)
    )
    values = _ratios(
        stored, PlacementFigures(logs, np.zeros(count), np.zeros(count)), np.ones((1, count)), clip
    )
    names = ("ois", "ois_clipped", "snis", "ess_share")
    return {name: float(values[name][0]) for name in names} | {"ess": float(values["ess_share"][0]) * count}


def _ratios(
    stored: StoredCompletions, figures: PlacementFigures, draws: Array, clip: float
) -> dict[str, Array]:
    """Return each estimator for each row of `draws`, `[draws]`."""
    log_weights = figures.log_q - stored.log_p
    if not len(log_weights) or not all(
        np.isfinite(values).all() for values in (log_weights, figures.kl, figures.num_top)
    ):
        raise UserError(
            "a placement gave log-probabilities that are missing or not finite; its weights overflow or the"
            " store is broken"
        )
    correct = stored.correct.astype(bool)

    def log_total(logs: Array, chosen: NDArray[np.bool_] | slice) -> Array:
        per_problem = np.full(stored.num_problems, -np.inf)
        np.logaddexp.at(per_problem, stored.problem[chosen], logs[chosen])
        return _log_sums(draws, per_problem)

    def total(values: Array) -> Array:
        return draws @ np.bincount(stored.problem, weights=values, minlength=stored.num_problems)

    everything = slice(None)
    log_count = np.log(total(np.ones_like(log_weights)))
    log_w, log_w2 = log_total(log_weights, everything), log_total(2 * log_weights, everything)
    log_wc = log_total(log_weights, correct)
    clipped = np.exp(np.minimum(log_weights, np.log(clip))) if np.isfinite(clip) else None
    tokens, num_correct = total(stored.num_tokens), total(stored.correct)
    exact = stored.correct * (figures.num_top == stored.num_tokens)
    ois = _exp(log_wc - log_count)
    return {
        "ois": ois,
        "ois_clipped": ois if clipped is None else total(clipped * stored.correct) / np.exp(log_count),
        "snis": np.exp(log_wc - log_w),
        "ess_share": np.exp(2 * log_w - log_w2 - log_count),
        "reverse_kl": total(figures.kl) / tokens,
        "log_q": total(figures.log_q) / tokens,
        # A resample may hold no correct completion: then nothing was matched.
        "exact_match": total(exact) / np.maximum(num_correct, 1),
        "token_match": total(figures.num_top) / tokens,
    }


def _log_sums(counts: Array, logs: Array) -> Array:
    """Return log(counts @ exp(logs)), `[draws]`; -inf where nothing is drawn. `logs` may hold -inf."""
    finite = np.isfinite(logs)
    if not finite.any():
        return np.full(len(counts), -np.inf)
    logs, counts = logs[finite], counts[:, finite]
    shift = logs.max()
    sums = counts @ np.exp(logs - shift)
    with np.errstate(divide="ignore"):
        found = np.log(sums) + shift
    for row in np.flatnonzero(sums < _SMALLEST_SUM):
        drawn = counts[row] > 0
        found[row] = np.logaddexp.reduce(logs[drawn] + np.log(counts[row, drawn])) if drawn.any() else -np.inf
    return found


def _exp(logs: Array) -> Array:
    """exp(), at most the largest finite number: order is kept and nothing becomes inf."""
    return np.exp(np.minimum(logs, _LARGEST_LOG))
