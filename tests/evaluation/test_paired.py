import math

import numpy as np
import pytest

from apriel_assets.errors import UserError
from apriel_assets.evaluation.paired import Pairs, holm, paired_difference, sign_flip_p_value


def pairs(*differences, weights=None):
    values = np.array(differences, dtype=np.float64)
    return Pairs(differences=values, weights=np.ones(len(values)) if weights is None else np.array(weights))


def mcnemar(lost, gained):
    """The exact test by its formula."""
    total = lost + gained
    tail = sum(math.comb(total, k) for k in range(min(lost, gained) + 1)) / 2**total
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(("lost", "gained"), [(0, 4), (3, 5), (1, 9), (6, 6), (0, 0), (2, 20)])
def test_test_over_verdicts_is_mcnemars(lost, gained):
    shares = np.array([-0.01] * lost + [0.01] * gained + [0.0] * 30)
    # Beyond 13 differing problems the sign patterns are a sample: within three standard errors of it.
    exact = mcnemar(lost, gained)
    room = 1e-12 if lost + gained <= 13 else 3 * math.sqrt(exact / 20_000) + 1e-4
    assert sign_flip_p_value(shares) == pytest.approx(exact, abs=room)


def test_difference_is_the_mean_over_tasks_of_weighted_means():
    found = paired_difference([[pairs(1, 0, weights=[3, 1])], [pairs(-0.5, -0.5, -0.5)]])
    assert found.value == pytest.approx((0.75 - 0.5) / 2)
    assert (found.num_problems, found.num_differing) == (5, 4)


def test_interval_is_that_of_the_paired_differences_and_narrower_than_the_unpaired_one():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 400)  # shared by both models
    a, b = hard + rng.normal(0.05, 0.1, 400), hard + rng.normal(0, 0.1, 400)
    found = paired_difference([[pairs(*(a - b))]])
    half = 1.96 * (a - b).std() / math.sqrt(400)
    assert (found.low, found.high) == (
        pytest.approx(found.value - half, abs=0.15 * half),
        pytest.approx(found.value + half, abs=0.15 * half),
    )
    assert found.is_detected()
    assert half < 0.15 * 1.96 * math.sqrt(a.var() + b.var()) / math.sqrt(400)


def test_four_problems_of_sixty_on_one_side_are_not_enough():
    # Their bootstrap interval leaves out zero; a coin does as much in one case of eight.
    found = paired_difference([[pairs(*[1] * 4, *[0] * 56)]])
    assert found.low > 0
    assert found.p_value == pytest.approx(0.125)
    assert not found.is_detected()


def test_identical_answers_are_no_difference():
    found = paired_difference([[pairs(*[0] * 50)]])
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert not found.is_detected()


def test_runs_that_disagree_widen_the_interval():
    steady, one, other = pairs(*[0.1, 0.3] * 50), pairs(*[0.3, 0.5] * 50), pairs(*[-0.1, 0.1] * 50)
    single, repeated = paired_difference([[steady]]), paired_difference([[one, other]])
    assert single.value == pytest.approx(repeated.value)
    assert repeated.high - repeated.low > 3 * (single.high - single.low)
    assert not repeated.is_detected()


def test_runs_of_other_lengths_are_taken_apart():
    found = paired_difference([[pairs(1, 1), pairs(0, 0, 0)]])
    assert (found.value, found.num_problems) == (pytest.approx(0.5), 5)


def test_same_seed_same_figures():
    one = pairs(*np.random.default_rng(1).normal(0, 1, 60))
    assert paired_difference([[one]]) == paired_difference([[one]])
    assert paired_difference([[one]]) != paired_difference([[one]], seed=1)


def test_equal_models_are_called_different_in_at_most_one_of_twenty_cases():
    rng = np.random.default_rng(2)
    found = [
        paired_difference(
            [[pairs(*rng.choice([-1, 0, 1], 60, p=[0.1, 0.8, 0.1]))]], resamples=500, flips=1000
        )
        for _ in range(200)
    ]
    assert sum(one.is_detected() for one in found) <= 0.05 * 200 + 2 * math.sqrt(200 * 0.05 * 0.95)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("given", [[], [[]]])
def test_nothing_to_compare_is_refused(given):
    with pytest.raises(UserError, match="at least one task"):
        paired_difference(given)


@pytest.mark.parametrize(
    ("values", "weights"), [([1.0], [0.0]), ([np.nan], [1.0]), ([], []), ([1.0, 2.0], [1.0])]
)
def test_wrong_pairs_are_refused(values, weights):
    with pytest.raises(UserError):
        Pairs(differences=np.array(values), weights=np.array(weights))
