"""Scores in doubt make the best candidates generate for real, once for each search result."""

import json

import pytest

from resources.lake import Lake

SENSOR = "generation"
ON = "automation.generation={candidates: 3}"


@pytest.fixture
def location(locate):
    return locate(ON)


def set_figures(home, asset, **figures):
    """Change what an artifact says of itself, as another run of it might have."""
    from resources.artifact_store import SEAL, digest

    for path in home.glob(f"artifacts/{asset}/*/provenance.json"):
        record = json.loads(path.read_text())
        del record[SEAL]
        record["figures"] |= figures
        path.write_text(json.dumps({**record, SEAL: digest(record, 64)}))


@pytest.fixture
def trusted(home):
    """A home in which nothing is in doubt."""
    set_figures(home, "placements", num_scored=6, num_under_ess_floor=5)
    set_figures(home, "audit", spearman=0.95)


def test_nothing_is_asked_for_while_scores_can_be_trusted(location, trusted):
    assert location.look(SENSOR).run_requests == []


@pytest.mark.parametrize(
    ("asset", "figures", "reason"),
    [
        ("audit", {"spearman": 0.3}, "audit: estimator_orders_like_generation failed"),
        ("audit", {"spearman": None}, "audit: estimator_orders_like_generation failed"),
        ("placements", {"num_under_ess_floor": 6}, "all 6 candidates are under the ESS floor"),
    ],
)
def test_doubt_asks_for_every_budget_and_says_why(asset, figures, reason, location, home, trusted):
    set_figures(home, asset, **figures)
    requests = location.look(SENSOR).run_requests
    assert {own.partition_key for own in requests} == {"50", "90"}
    assert {own.tags["apriel/reason"] for own in requests} == {reason}


def test_real_generation_happens_once_and_is_recorded(location, home, trusted):
    set_figures(home, "audit", spearman=0.3)
    requests = location.look(SENSOR).run_requests
    for request in requests:
        result = location.carry_out(request, SENSOR)
        assert result.success
        (check,) = result.get_asset_check_evaluations()
        assert "num_better_than_chosen" in check.metadata
    assert location.look(SENSOR).run_requests == []
    rows = Lake(home).read("generations", "tiny").to_pylist()
    for budget in (50.0, 90.0):
        own = [row for row in rows if row["budget"] == budget]
        assert 3 <= len(own) <= 4  # the chosen one is among them, whatever its score
        assert sum(row["chosen"] for row in own) == 1
        assert {0, 1, 2} <= {row["score_rank"] for row in own}
        accuracies = [row["generated_accuracy"] for row in sorted(own, key=lambda row: row["generated_rank"])]
        assert accuracies == sorted(accuracies, reverse=True)


def test_a_search_under_way_is_waited_for(location, home, trusted):
    import dagster as dg
    from dagster._core.test_utils import create_run_for_test

    set_figures(home, "audit", spearman=0.3)
    create_run_for_test(
        location.instance,
        status=dg.DagsterRunStatus.STARTED,
        asset_selection=frozenset({dg.AssetKey("placements")}),
    )
    assert location.look(SENSOR).run_requests == []
