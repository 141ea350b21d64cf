import itertools

import numpy as np
import pytest

from apriel_assets.errors import UserError
from apriel_assets.evaluation import bootstrap
from apriel_assets.evaluation.bootstrap import mean_interval, resampled_means


def exact_interval(groups: list[list[float]], confidence=0.95):
    """All n^n resamples of a few groups, by enumeration."""
    means = []
    for draw in itertools.product(groups, repeat=len(groups)):
        values = list(itertools.chain(*draw))
        means.append(sum(values) / len(values))
    tail = 50 * (1 - confidence)
    return np.percentile(means, tail), np.percentile(means, 100 - tail)


def test_equals_enumeration_of_all_resamples():
    groups = [[0.0, 1.0, 5.0], [2.0], [3.0, 3.5], [10.0]]
    values = list(itertools.chain(*groups))
    labels = [name for name, group in zip("abcd", groups, strict=True) for _ in group]
    mean, low, high = mean_interval(values, groups=labels, resamples=60_000, confidence=0.9)
    assert mean == pytest.approx(24.5 / 7)
    expected_low, expected_high = exact_interval(groups, 0.9)
    assert low == pytest.approx(expected_low, abs=0.1)
    assert high == pytest.approx(expected_high, abs=0.1)


def test_two_values_by_hand():
    # Resamples of (0, 1) have means 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert mean_interval([0.0, 1.0]) == (0.5, 0.0, 1.0)
    assert mean_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5, 0.5)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(10)
    covered, trials = 0, 1000
    for trial in range(trials):
        _, low, high = mean_interval(rng.normal(3.0, 1.0, size=60), resamples=500, seed=trial)
        covered += low <= 3.0 <= high
    # Theory: 0.943 for 60 normal values (n in place of n - 1); the standard error of 1000 trials is 0.007.
    assert 0.92 <= covered / trials <= 0.97


def test_copies_inside_a_group_add_no_certainty():
    values = np.random.default_rng(0).normal(size=40)
    whole = mean_interval(values)
    tokens, problems = np.repeat(values, 25), np.repeat(np.arange(40), 25)
    assert mean_interval(tokens, groups=problems) == pytest.approx(whole)
    _, low, high = mean_interval(tokens)
    assert high - low < 0.3 * (whole[2] - whole[1])


def test_seed_decides_and_chunking_does_not(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    first = mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) == first != mean_interval(values, seed=2)
    monkeypatch.setattr(bootstrap, "_MAX_DRAWS", 1000)
    assert mean_interval(values, seed=1) == first


def test_no_spread_gives_no_width():
    assert mean_interval([1.0] * 10) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "groups"), [([], None), ([1.0, float("nan")], None), ([[1.0]], None), ([1.0, 2.0], ["a"])]
)
def test_what_has_no_mean_is_refused(values, groups):
    with pytest.raises(UserError):
        mean_interval(values, groups=groups)


def test_equal_groups_drawn_by_kind_are_as_spread_as_drawn_one_by_one():
    rng = np.random.default_rng(3)
    verdicts = rng.choice([-1.0, 0.0, 1.0], 80, p=[0.2, 0.6, 0.2])
    kinds, times = np.unique(verdicts, return_counts=True)
    one_by_one = resampled_means(verdicts, np.ones(80), 20_000, np.random.default_rng(0))
    by_kind = resampled_means(kinds, np.ones(len(kinds)), 20_000, np.random.default_rng(0), times)
    assert by_kind.mean() == pytest.approx(one_by_one.mean(), abs=0.002)
    assert by_kind.std() == pytest.approx(one_by_one.std(), rel=0.03)
    assert by_kind.std() == pytest.approx(verdicts.std() / 80**0.5, rel=0.03)


def test_given_once_each_the_draws_are_the_same():
    values = np.arange(5.0)
    plain, counted = (
        resampled_means(values, np.ones(5), 50, np.random.default_rng(0), times)
        for times in (None, np.ones(5, dtype=int))
    )
    assert (plain == counted).all()
