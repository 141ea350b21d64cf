"""A new result against the last one: outside of its interval by more than rounding is drift."""

import pytest

from apriel_assets.evaluation.drift import is_outside, reeval_rows


def row(value, low=None, high=None, **more):
    known = {"model": "safe", "task": "recall", "metric": "accuracy", "num_problems": 8}
    known |= {"checkpoint_version": "v1", "settings": "s1"}
    return {
        **known,
        "value": value,
        "low": value if low is None else low,
        "high": value if high is None else high,
    } | more


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.5, 0.4, 0.6, False),
        (0.4, 0.4, 0.6, False),
        (0.39, 0.4, 0.6, True),
        (0.61, 0.4, 0.6, True),
        (1.0, 1.0, 1.0, False),  # an interval without width: all problems right
        (0.875, 1.0, 1.0, True),
        (0.2000001, 0.2, 0.2, False),  # sums in another order
        (0.2001, 0.2, 0.2, True),
        (1e-7, 0.0, 0.0, False),
    ],
)
def test_outside_the_last_interval(value, low, high, expected):
    assert is_outside(row(value), row(0.5, low, high)) is expected


def test_nothing_to_compare_with_is_no_drift():
    (found,) = reeval_rows("2026-01-02", [row(0.5)], []).to_pylist()
    assert (found["drifted"], found["last_value"]) == (False, None)


def test_the_latest_result_counts_and_evals_are_older_than_any():
    last = [row(0.9, date="2026-01-01"), row(0.5, date="2025-12-31"), row(0.1)]
    (found,) = reeval_rows("2026-01-02", [row(0.9)], last).to_pylist()
    assert (found["last_date"], found["last_value"], found["drifted"]) == ("2026-01-01", 0.9, False)
    (found,) = reeval_rows("2026-01-02", [row(0.9)], last[2:]).to_pylist()
    assert (found["last_date"], found["last_value"], found["drifted"]) == (None, 0.1, True)


@pytest.mark.parametrize("other", [{"checkpoint_version": "v0"}, {"settings": "s0"}], ids=str)
def test_other_weights_or_settings_are_no_predecessors(other):
    last = [row(0.5), row(0.1, date="2026-01-01", **other)]
    (found,) = reeval_rows("2026-01-02", [row(0.5)], last).to_pylist()
    assert (found["last_value"], found["last_date"], found["drifted"]) == (0.5, None, False)
    (found,) = reeval_rows("2026-01-02", [row(0.5)], last[1:]).to_pylist()
    assert (found["last_value"], found["drifted"]) == (None, False)


def test_other_tasks_and_metrics_are_no_predecessors():
    (found,) = reeval_rows("2026-01-02", [row(0.9)], [row(0.1, task="copy")]).to_pylist()
    assert found["last_value"] is None
