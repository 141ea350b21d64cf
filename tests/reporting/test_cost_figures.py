import math

import pytest

from apriel_assets.reporting.cost_figures import mixer_costs, predicted_against_measured, prediction_errors
from tests.reporting.svg_text import texts


def test_bars_say_measured_and_predicted_of_every_mixer_at_every_point(h2):
    words = texts(mixer_costs(h2["mixer_costs"].to_pylist()))
    for point in ("decode, 256 tokens, batch 8", "prefill, 1024 tokens, batch 8"):
        assert words.count(point) == 1
    assert [word for word in words if word in ("swa", "gdn", "kda", "mamba")] == [
        "swa",
        "gdn",
        "kda",
        "mamba",
    ] * 4
    assert words.count("0.29") == words.count("0.21") == 4  # swa: 0.21 * 1.37 measured, 0.21 by the roofline
    assert "time of one layer's mixer, full attention = 1" in words


def test_no_roofline_figure_is_no_bar(h2):
    rows = [{**row, "roofline_relative": None} for row in h2["mixer_costs"].to_pylist()]
    words = texts(mixer_costs(rows))
    assert words.count("0.29") == 4
    assert "0.21" not in words


def test_prediction_errors_by_hand():
    rows = [{"predicted": p, "measured": m} for p, m in ((0.5, 0.4), (0.6, 0.6), (0.9, 0.8))]
    r2, worst = prediction_errors(rows)
    # Measured mean 0.6: total 0.04 + 0 + 0.04; residual 0.01 + 0 + 0.01.
    assert r2 == pytest.approx(1 - 0.02 / 0.08)
    assert worst == pytest.approx(0.1)
    assert math.isnan(prediction_errors(rows[:1])[0])


def test_points_are_told_apart(h2):
    words = texts(predicted_against_measured(h2["cost_check"].to_pylist()))
    assert {"decode, 256 tokens, batch 8", "prefill, 1024 tokens, batch 8", "all-FA"} <= set(words)


def test_nothing_to_draw():
    assert mixer_costs([]) == predicted_against_measured([]) == ""
