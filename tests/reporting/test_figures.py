import base64
import math
import re
from xml.etree import ElementTree

import pytest

from apriel_assets.reporting import figures
from apriel_assets.reporting.drawing import NUM_COLOURS
from apriel_assets.reporting.sparklines import markdown_sparkline, sparkline
from apriel_assets.reporting.summary import leaderboard_table
from apriel_assets.tables.published import published_rows
from apriel_assets.tables.schemas import to_table
from tests.reporting.svg_text import texts


@pytest.fixture
def rows(tables):
    found = {name: table.to_pylist() for name, table in tables.items()}
    found["leaderboard"] = leaderboard_table(tables).to_pylist()
    found["published"] = to_table("published", published_rows()).to_pylist()
    return found


def test_rankings_panels_share_the_leave_one_out_order(rows):
    svg = figures.rankings(rows["layer_scores"], rows["probes"], {"leave-one-out": {11, 10}})
    words = texts(svg)
    assert [word for word in words if "leave" in word or "probes" in word] == [
        "leave-one-out",
        "probes for h6",
        "probes for h8",
    ]
    order = ["11", "10", "8", "9", "6", "7", "5", "3", "4", "2", "1", "0"]
    assert words[: len(order)] == order
    assert svg.count(figures.ORANGE) == 2


def test_quality_pictures_name_every_model_and_the_published_ones(rows):
    for svg in (
        figures.quality_against_speed(rows["leaderboard"], rows["published"]),
        figures.quality_over_replaced(rows["leaderboard"], rows["published"], 12),
    ):
        assert {"h4", "h6", "h8", "sft", "merge", "published (15B, 50 layers)"} <= set(texts(svg))
    assert "H-40" in texts(figures.quality_against_speed(rows["leaderboard"], rows["published"]))


def test_quality_against_speed_is_over_the_teachers_if_it_answers_anything(rows):
    def drawn(accuracy):
        known = [
            {**row, "accuracy": accuracy} if row["kind"] == "teacher" else row for row in rows["leaderboard"]
        ]
        return figures.quality_against_speed(known, rows["published"])

    assert "accuracy over the teacher's" in texts(drawn(0.5))
    assert drawn(0.5) != drawn(1.0)
    assert {"accuracy", "h4"} <= set(texts(drawn(0.0)))


def test_curves_have_one_legend_entry_a_model(rows):
    words = texts(figures.loss_curves(rows["training"]))
    assert [word for word in words if word in ("h4", "h6", "h8", "sft")] == ["h4", "h6", "h8", "sft"]
    words = texts(figures.speed_by_context(rows["throughput"]))
    assert {"h4", "merge", "128", "1024", "4096"} <= set(words)
    assert "teacher" not in words


def test_more_models_than_colours_have_other_markers(rows):
    teacher = [row for row in rows["throughput"] if row["model"] == "teacher"]
    many = [{**row, "model": f"m{n}"} for n in range(NUM_COLOURS + 1) for row in teacher]
    few = figures.speed_by_context(teacher + many[: -len(teacher)])
    assert figures.speed_by_context(teacher + many).count("<path id=") > few.count("<path id=")


def test_names_are_text_not_formulas_or_markup(rows):
    hostile = [{**row, "model": "$\\frac{$</text><script>"} for row in rows["training"]]
    assert "$\\frac{$</text><script>" in texts(figures.loss_curves(hostile))


def test_nothing_to_draw_is_an_empty_string(rows):
    assert figures.rankings([], []) == ""
    assert figures.quality_against_speed([], rows["published"]) == ""
    assert figures.quality_over_replaced([], rows["published"], 12) == ""
    assert figures.loss_curves([]) == ""
    assert figures.speed_by_context([]) == ""


def test_zero_and_negative_values_are_drawn(rows):
    scores = [{**row, "importance": 0.1 * (row["rank"] - 1)} for row in rows["layer_scores"]]
    assert texts(figures.rankings(scores, []))
    flat = [{**row, "loss_nats": 0.0} for row in rows["training"]]
    assert texts(figures.loss_curves(flat))


def test_fifty_layers_fit(rows):
    scores = [
        {"layer": layer, "metric": "kl", "importance": 1.0 + layer, "rank": layer} for layer in range(50)
    ]
    assert texts(figures.rankings(scores, [])).count("49") == 1


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize(
    "values", [[], [1.0], [0.0] * 5, [-1.0, 2.0], [123456.789] * 500, list(range(60)), [math.nan, 1.0]]
)
def test_sparklines_stay_under_a_thousand_characters(values, bars):
    svg = sparkline(values, bars=bars)
    ElementTree.fromstring(svg)
    image = markdown_sparkline(values, bars=bars)
    assert len(image) < 1000
    assert base64.b64decode(image.removesuffix(")").partition("base64,")[2]).decode() == svg


def test_sparkline_bars_are_proportional():
    heights = re.findall(r"v-(\d+)", sparkline([1.0, 2.0, 4.0], bars=True))
    assert [int(height) for height in heights] == [10, 20, 40]


def test_speed_by_context_is_of_one_batch_size(rows):
    small = [{**row, "batch_size": 1, "tokens_per_s": 1.0} for row in rows["throughput"]]
    assert figures.speed_by_context(small + rows["throughput"]) == figures.speed_by_context(
        rows["throughput"]
    )
