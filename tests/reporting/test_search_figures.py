import random

import pytest

from apriel_assets.reporting.drawing import BLUE, GREEN, INK, ORANGE
from apriel_assets.reporting.search_figures import (
    MAX_POINTS,
    best_by_candidates,
    estimate_against_generated,
    pareto_front,
    quality_against_cost,
    thinned,
    value_against_ess,
)
from tests.reporting.h2_rows import BROKEN
from tests.reporting.svg_text import markers, texts


@pytest.fixture
def rows(h2):
    return {name: table.to_pylist() for name, table in h2.items()}


def test_pareto_front_by_hand():
    points = [(1.0, 0.9), (0.5, 0.8), (0.5, 0.7), (0.7, 0.8), (0.3, 0.2), (0.9, 0.95), (0.3, 0.2)]
    assert pareto_front(points) == [(0.3, 0.2), (0.5, 0.8), (0.9, 0.95)]
    assert pareto_front([]) == []


def test_pareto_front_holds_exactly_what_nothing_beats():
    rng = random.Random(3)
    points = [(rng.randint(0, 9) / 10, rng.randint(0, 9) / 10) for _ in range(60)]
    unbeaten = {
        (c, a) for c, a in points if not any(x <= c and y >= a and (x, y) != (c, a) for x, y in points)
    }
    assert set(pareto_front(points)) == unbeaten


def test_quality_names_the_chosen_and_draws_the_teacher_at_one(rows):
    svg = quality_against_cost(rows["placements"], 0.9431, rows["candidates"])
    assert {"b0.5", "b0.75", "all-FA", "Pareto front", "candidate, estimated"} <= set(texts(svg))
    ((teacher_x, teacher_y),) = markers(svg, ORANGE)
    ours = markers(svg, f"stroke: {GREEN}")
    assert len(ours) >= len(rows["placements"])
    assert teacher_x > max(x for x, _ in ours)
    assert teacher_y < min(y for _, y in ours)
    without = quality_against_cost(rows["placements"], None)
    assert not markers(without, ORANGE)
    assert "candidate, estimated" not in texts(without)


def test_estimates_in_other_units_are_not_drawn_as_accuracy(rows):
    scored = [{**row, "estimator": "log_q"} for row in rows["candidates"]]
    assert "candidate, estimated" not in texts(quality_against_cost(rows["placements"], 0.9, scored))


def test_one_line_a_budget(rows):
    words = texts(best_by_candidates(rows["search_curve"]))
    assert [word for word in words if word.startswith("budget")] == ["budget 0.5, beam", "budget 0.75, beam"]
    assert "placements scored" in words
    bare = [{**row, "best_low": None, "best_high": None} for row in rows["search_curve"][:1]]
    assert texts(best_by_candidates(bare))


def test_a_broken_placement_shows_far_left_and_crossed(rows):
    svg = value_against_ess(rows["candidates"])
    assert "not reliable" in texts(svg)
    crosses = markers(svg, f"stroke: {INK}")
    others = set(markers(svg, "fill")) - set(crosses)
    assert len(crosses) == 1
    assert crosses[0][0] < min(x for x, _ in others) - 50
    sound = [row for row in rows["candidates"] if row["reliable"]]
    assert "not reliable" not in texts(value_against_ess(sound))


def test_a_placement_that_only_snis_believes_in_shows_in_the_corner(rows):
    believed = estimate_against_generated(rows["audit_points"], "snis")
    points = markers(believed, BLUE)
    assert max(points, key=lambda at: at[0]) == max(points, key=lambda at: at[1])  # right and at the bottom
    points = markers(estimate_against_generated(rows["audit_points"], "ois_clipped"), BLUE)
    assert min(points, key=lambda at: at[0]) == max(points, key=lambda at: at[1])  # left and at the bottom
    sound = [row for row in rows["audit_points"] if row["placement"] != BROKEN]
    points = markers(estimate_against_generated(sound, "snis"), BLUE)
    assert max(points, key=lambda at: at[0]) != max(points, key=lambda at: at[1])


def test_a_long_search_stays_light_and_keeps_both_ends():
    rows = [{"value": value} for value in random.Random(1).sample(range(5000), 5000)]
    kept = [row["value"] for row in thinned(rows)]
    assert len(set(kept)) == MAX_POINTS
    assert {0, 4999} <= set(kept)
    assert thinned(rows[:5]) == rows[:5]


def test_nulls_and_nothing(rows):
    empty = [{**row, "value": None, "ess_share": None} for row in rows["candidates"]]
    assert value_against_ess(empty) == value_against_ess([]) == best_by_candidates([]) == ""
    assert estimate_against_generated(rows["audit_points"], "unheard of") == ""
    waiting = [{**row, "generated_accuracy": None} for row in rows["placements"]]
    assert quality_against_cost(waiting, 0.9) == ""


def test_names_stay_text(rows):
    hostile = "<b>$x^2$"
    placements = [{**row, "name": hostile} for row in rows["placements"]]
    assert hostile in texts(quality_against_cost(placements, 0.9))
    curve = [{**row, "strategy": hostile} for row in rows["search_curve"]]
    assert f"budget 0.5, {hostile}" in texts(best_by_candidates(curve))
