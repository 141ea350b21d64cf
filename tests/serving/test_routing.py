"""Which placement the router chooses, by hand."""

import pytest

from apriel_assets.errors import UserError
from apriel_assets.serving.routing import RoutingPolicy, Wanted, choose_placement, expected_ms_per_token

ORDER = ("safe", "turbo", "max")
SPEEDS = {"safe": 30.0, "turbo": 20.0, "max": 10.0}
POLICY = RoutingPolicy(tasks={"code": "turbo"}, most_context_tokens={"safe": 100, "turbo": 1000})


def chosen(ready=ORDER, speeds=SPEEDS, policy=POLICY, num_tokens=10, **wanted):
    return choose_placement(
        Wanted(num_tokens=num_tokens, **wanted), policy, ORDER, ready=ready, ms_per_token=speeds
    )


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({}, "safe"),
        ({"task": "code"}, "turbo"),
        ({"task": "code", "ready": ("safe", "max")}, "safe"),
        ({"num_tokens": 100}, "safe"),
        ({"num_tokens": 101}, "turbo"),
        ({"num_tokens": 5000}, "max"),
        ({"num_tokens": 5000, "ready": ("safe", "turbo")}, "turbo"),  # none fits: the fastest
        ({"latency_ms_per_token": 30.0}, "safe"),
        ({"latency_ms_per_token": 29.0}, "turbo"),
        ({"latency_ms_per_token": 1.0}, "max"),
        ({"latency_ms_per_token": 29.0, "speeds": {"safe": 40.0, "max": 10.0}}, "max"),
        ({"latency_ms_per_token": 29.0, "speeds": {}}, "max"),
        ({"latency_ms_per_token": 29.0, "ready": ("safe",)}, "safe"),
        ({"ready": ("max",)}, "max"),
        ({"ready": ()}, None),
    ],
)
def test_choice(case, expected):
    assert chosen(**case) == expected


def test_an_unknown_task_is_refused():
    with pytest.raises(UserError, match=r"'chat' is not known here; known: code"):
        chosen(task="chat")


def test_policies_are_checked():
    with pytest.raises(UserError, match="names placement 'max'; the release has safe, turbo"):
        RoutingPolicy(tasks={"a": "max"}).check(("safe", "turbo"))
    with pytest.raises(UserError, match="at least 1"):
        RoutingPolicy(most_context_tokens={"safe": 0})


def test_expected_speed_is_that_of_the_next_longer_context():
    def row(context, tokens_per_s, phase="decode"):
        return {"phase": phase, "context_tokens": context, "batch_size": 8, "tokens_per_s": tokens_per_s}

    rows = [row(8192, 100.0), row(512, 800.0), row(512, 5.0, "prefill")]
    assert expected_ms_per_token(rows, 100) == pytest.approx(10.0)
    assert expected_ms_per_token(rows, 513) == pytest.approx(80.0)
    assert expected_ms_per_token(rows, 10**6) == pytest.approx(80.0)
    assert expected_ms_per_token([], 5) is None
