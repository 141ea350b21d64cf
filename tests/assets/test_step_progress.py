import logging

import pytest

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.step_progress import step_progress


class Context:
    """Stands for Dagster's: keeps what is logged."""

    def __init__(self):
        self.log = logging.getLogger("test")
        self.events = []

    def log_event(self, event):
        self.events.append(event)


@pytest.fixture
def watched():
    context, now = Context(), [0.0]
    plan = AssetPlan(key="h1/h2", group="h1", build=lambda job: None, reads={})
    report = step_progress(plan, "recall", context, clock=lambda: now[0])

    def run(steps, seconds_each, total=1000):
        for done in range(1, steps + 1):
            now[0] += seconds_each
            report(done, total, loss_nats=3.0 - done / total)
        return context.events

    return run


def test_a_quick_step_leaves_no_observation(watched):
    assert watched(steps=15, seconds_each=1.0) == []


def test_observations_say_how_far_it_is_and_how_long_it_takes(watched):
    events = watched(steps=500, seconds_each=0.5)
    assert 10 <= len(events) <= 12
    last = {name: value.value for name, value in events[-1].metadata.items()}
    assert events[-1].asset_key.to_user_string() == "h1/h2"
    assert events[-1].partition == "recall"
    assert last["total"] == 1000
    assert last["seconds"] == last["done"] / 2
    assert last["expected_seconds_left"] == (1000 - last["done"]) / 2
    assert last["loss_nats"] == pytest.approx(3.0 - last["done"] / 1000)
    assert last["loss_curve"].startswith("![curve](data:image/svg+xml;base64,")
    assert len(last["loss_curve"]) < 1000


def test_rewards_are_a_curve_too():
    context, now = Context(), [0.0]
    plan = AssetPlan(key="release/rl", group="release", build=lambda job: None, reads={})
    report = step_progress(plan, None, context, clock=lambda: now[0])
    for done in range(1, 9):
        now[0] += 10
        report(done, 8, reward=done / 8, **({"kl_nats": 0.1} if done % 2 else {}))
    shown = context.events[-1].metadata
    assert {"reward", "reward_curve", "kl_curve"} <= set(shown)
    assert "loss_curve" not in shown


def test_a_week_leaves_hundreds_of_observations(watched):
    events = watched(steps=60_480, seconds_each=10.0, total=60_480)
    assert 200 <= len(events) <= 700
    assert len(events[-1].metadata["loss_curve"].value) < 1000
