import numpy as np
import pytest

from apriel_assets.evaluation.ranking import Place, accuracy_places
from tests.evaluation.sample_rows import sample_rows, samples


def noisy(model, share, rng, num=200):
    return sample_rows(model, rng.random(num) < share)


def test_models_that_cannot_be_told_apart_share_places():
    rng = np.random.default_rng(0)
    shares = {"good": 0.9, "fine": 0.88, "poor": 0.5, "bad": 0.1}
    places = accuracy_places(samples(*(noisy(model, share, rng) for model, share in shares.items())))
    assert places == {
        "good": Place(best=1, worst=2),
        "fine": Place(best=1, worst=2),
        "poor": Place(best=3, worst=3),
        "bad": Place(best=4, worst=4),
    }


def test_a_copy_of_the_best_shares_its_place():
    answers = [1] * 50 + [0] * 10
    rows = [sample_rows(model, answers) for model in ("one", "two")] + [sample_rows("none", [0] * 60)]
    places = accuracy_places(samples(*rows))
    assert (places["one"], places["two"]) == (Place(best=1, worst=2), Place(best=1, worst=2))
    assert places["none"] == Place(best=3, worst=3)


def test_of_twelve_equal_models_hardly_ever_two_are_told_apart():
    told = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        places = accuracy_places(samples(*(noisy(f"m{n}", 0.8, rng, 60) for n in range(12))), seed=seed)
        told += any(place != Place(best=1, worst=12) for place in places.values())
    assert told <= 3  # 5% of 20 is 1


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [sample_rows("alone", [1, 0])],
        [sample_rows("one", [1]), sample_rows("two", [1], seed=1)],  # other problems
    ],
)
def test_without_two_models_on_the_same_problems_nobody_has_a_place(rows):
    assert accuracy_places(samples(*rows)) == {}


def test_who_was_asked_something_else_is_left_out():
    rows = [sample_rows("one", [1] * 30), sample_rows("two", [0] * 30), sample_rows("new", [1] * 5)]
    assert set(accuracy_places(samples(*rows))) == {"one", "two"}
