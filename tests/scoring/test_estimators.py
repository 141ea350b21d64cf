"""Estimators against hand arithmetic and a plain bootstrap, at any scale, and the case that SNIS gets wrong."""

import numpy as np
import pytest

from apriel_assets.errors import UserError
from apriel_assets.scoring.estimators import (
    ESTIMATORS,
    PlacementFigures,
    StoredCompletions,
    estimate_all,
    point_estimates,
    problem_draws,
)


def make_store(correct, problem, num_tokens=None, log_p=None):
    count = len(correct)
    return StoredCompletions(
        log_p=np.zeros(count) if log_p is None else np.array(log_p, dtype=np.float64),
        correct=np.array(correct, dtype=np.float64),
        num_tokens=np.full(count, 4.0) if num_tokens is None else np.array(num_tokens, dtype=np.float64),
        problem=np.array(problem),
    )


def make_figures(log_q, kl=None, num_top=None):
    log_q = np.array(log_q, dtype=np.float64)
    zeros = np.zeros(len(log_q))
    return PlacementFigures(
        log_q, zeros if kl is None else np.array(kl), zeros if num_top is None else num_top
    )


def test_hand_arithmetic():
    values = point_estimates(np.log([3.0, 1.0, 0.5, 0.5]), [1, 0, 1, 0], clip=2.0)
    assert values == pytest.approx(
        {
            "ois": (3 + 0.5) / 4,
            "ois_clipped": (2 + 0.5) / 4,
            "snis": 3.5 / 5,
            "ess": 25 / 10.5,
            "ess_share": 25 / 10.5 / 4,
        }
    )


@pytest.mark.parametrize("shift", [-5000.0, 0.0, 5000.0])
def test_snis_ess_and_their_intervals_do_not_depend_on_the_scale(shift):
    rng = np.random.default_rng(0)
    log_weights, correct = rng.normal(size=60), rng.integers(2, size=60)
    stored, draws = make_store(correct, np.arange(60) // 3), problem_draws(20, 200, 0)
    plain = estimate_all(stored, make_figures(log_weights), draws, clip=10)
    moved = estimate_all(stored, make_figures(log_weights + shift), draws, clip=10)
    for name in ("snis", "ess_share"):
        for end in ("value", "low", "high"):
            assert getattr(moved[name], end) == pytest.approx(getattr(plain[name], end), rel=1e-9)
        assert 0 < plain[name].low < plain[name].value < plain[name].high < 1
    assert np.isfinite([getattr(moved["ois"], end) for end in ("value", "low", "high")]).all()


def test_weights_of_all_sizes_at_once():
    """One weight holds all; resamples without it must still come out right."""
    stored, draws = make_store([1, 0, 1, 0], [0, 1, 2, 3]), problem_draws(4, 500, 0)
    found = estimate_all(stored, make_figures([5000, 0, -5000, -5000.0]), draws, clip=10)
    assert found["snis"].value == 1
    assert found["ess_share"].value == pytest.approx(1 / 4)
    # Without problem 0 and with 1, nothing is right; with 2 and 3 alone both weigh the same.
    assert (found["snis"].low, found["snis"].high) == (0, 1)
    alone = estimate_all(stored, make_figures([5000, 0, -5000, -5000.0]), np.array([[0, 0, 2, 2.0]]), clip=10)
    assert alone["snis"].value == pytest.approx(0.5)
    assert alone["ess_share"].value == pytest.approx(1)


def test_values_and_intervals_equal_a_plain_bootstrap():
    rng = np.random.default_rng(1)
    problem = np.repeat(np.arange(10), rng.integers(1, 5, size=10))
    count = len(problem)
    lengths = rng.integers(2, 9, size=count)
    stored = make_store(rng.integers(2, size=count), problem, lengths, rng.normal(-4, 1, count))
    figures = make_figures(rng.normal(-5, 1, count), rng.random(count), rng.integers(0, lengths + 1))
    draws = problem_draws(10, 50, 3)
    assert (draws[1:].sum(1) == 10).all()
    found = estimate_all(stored, figures, draws, clip=1.5, confidence=0.8)
    plain = [by_repetition(stored, figures, row, 1.5) for row in draws]
    for name in ESTIMATORS:
        values = [row[name] for row in plain]
        assert found[name].value == pytest.approx(values[0])
        assert found[name].low == pytest.approx(np.percentile(values[1:], 10))
        assert found[name].high == pytest.approx(np.percentile(values[1:], 90))


def by_repetition(stored, figures, counts, clip):
    """The formulas as they are written, on the completions of the drawn problems, each as often as drawn."""
    rows = np.concatenate(
        [np.tile(np.flatnonzero(stored.problem == p), int(n)) for p, n in enumerate(counts)]
    ).astype(int)
    w, c = np.exp(figures.log_q - stored.log_p)[rows], stored.correct[rows]
    tokens, top = stored.num_tokens[rows], figures.num_top[rows]
    return {
        "ois": (w * c).mean(),
        "ois_clipped": (np.minimum(w, clip) * c).mean(),
        "snis": (w * c).sum() / w.sum(),
        "ess_share": w.sum() ** 2 / (w**2).sum() / len(w),
        "reverse_kl": figures.kl[rows].sum() / tokens.sum(),
        "log_q": figures.log_q[rows].sum() / tokens.sum(),
        "exact_match": (top == tokens)[c == 1].mean() if c.any() else 0.0,
        "token_match": top.sum() / tokens.sum(),
    }


def test_snis_ranks_a_broken_placement_first_and_the_default_does_not():
    """A near-deterministic teacher's store: 97 of 100 completions are right, whoever reads them.

    The good placement gives every completion about the teacher's probability, and the wrong ones a little
    more. The broken one gives all of them next to none, and the wrong ones, which are odd, even less.
    """
    correct = np.array([1] * 97 + [0] * 3)
    stored, draws = make_store(correct, np.arange(100)), problem_draws(100, 200, 0)
    good = estimate_all(stored, make_figures(np.where(correct, -0.05, 0.5)), draws, clip=10)
    broken = estimate_all(stored, make_figures(np.where(correct, -40.0, -45.0)), draws, clip=10)
    assert broken["snis"].low > good["snis"].value  # and it is sure of it
    for name in ("ois", "ois_clipped", "log_q"):
        assert good[name].low > broken[name].high
    assert broken["ois"].value < 1e-15
    assert good["ois"].value == pytest.approx(0.97 * np.exp(-0.05))


def test_the_ess_of_a_broken_placement_tells_on_it_once_its_weights_spread():
    rng = np.random.default_rng(0)
    assert point_estimates(rng.normal(0, 0.1, 500), np.ones(500))["ess_share"] > 0.95
    assert point_estimates(rng.normal(-40, 8, 500), np.ones(500))["ess_share"] < 0.05


def test_a_resample_without_correct_completions_counts_as_no_match():
    stored, draws = make_store([1, 0], [0, 1]), problem_draws(2, 100, 0)
    found = estimate_all(stored, make_figures([0, 0], num_top=np.array([4.0, 4.0])), draws, clip=10)
    assert found["exact_match"].value == 1
    assert found["exact_match"].low == 0
    assert found["snis"].low == 0


@pytest.mark.parametrize("log_weights", [[], [np.nan, 0.0], [np.inf, 0.0]])
def test_refuses_weights_that_are_missing_or_not_finite(log_weights):
    with pytest.raises(UserError, match="not finite"):
        point_estimates(log_weights, np.ones(len(log_weights)))
