import pytest

from apriel_assets.evaluation.change import Measured, change, is_worse


def test_change_of_symmetric_intervals_is_the_difference_of_two_normal_means():
    found = change(Measured(value=0.5, low=0.47, high=0.53), Measured(value=0.6, low=0.56, high=0.64))
    assert found.value == pytest.approx(-0.1)
    assert (found.low, found.high) == (pytest.approx(-0.15), pytest.approx(-0.05))  # 0.03^2 + 0.04^2 = 0.05^2


def test_each_end_uses_the_sides_that_make_it_so():
    # At its lowest, new is low and old is high: only those two arms may enter.
    found = change(Measured(value=1.0, low=0.7, high=1.0), Measured(value=1.0, low=1.0, high=1.4))
    assert (found.low, found.high) == (pytest.approx(-0.5), pytest.approx(0.0))


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "worse"),
    [(-0.2, -0.1, True, True), (-0.2, 0.1, True, False), (0.1, 0.2, False, True), (-0.2, -0.1, False, False)],
)
def test_worse_means_that_the_whole_interval_is(low, high, higher_is_better, worse):
    found = Measured(value=(low + high) / 2, low=low, high=high)
    assert is_worse(found, higher_is_better=higher_is_better) is worse
