"""The short version: a few steps and candidates leave no tensor and no open file behind."""

import pytest

from tests.soak.flat_memory import Sample, growth, scoring, training


@pytest.mark.parametrize(("part", "count"), [(training, 18), (scoring, 24)])
def test_no_tensor_and_no_file_stays_behind(part, count, tmp_path):
    own = growth(part(count, tmp_path, samples=6))
    assert own["tensors"] <= 0
    assert own["open_files"] <= 0


def test_growth_is_what_came_on_after_the_first_third():
    samples = [Sample(done, 100 * done, 3, done // 4) for done in range(1, 10)]
    assert growth(samples) == {"resident_bytes": 500, "open_files": 0, "tensors": 1}
