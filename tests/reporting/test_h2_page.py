import re

import pytest

from apriel_assets.reporting.posttraining_section import posttraining_section
from apriel_assets.reporting.report import render_report
from apriel_assets.reporting.search_sections import (
    audit_section,
    placements_section,
    ranking_estimators,
    search_section,
    teacher_accuracy,
)
from apriel_assets.reporting.supernet_sections import costs_section, matryoshka_section, supernet_section
from apriel_assets.tables.schemas import TABLES, to_table
from tests.reporting.test_report import HOSTILE, Page

SECTIONS = {  # heading, and the tables that it is made from
    "Placements": ("placements",),
    "Search": ("search_curve", "candidates"),
    "Audit of the estimators": ("audit", "audit_points"),
    "Costs": ("mixer_costs", "cost_check"),
    "Supernet": ("supernet_curves", "training"),
    "One checkpoint, several speeds": ("sharing",),
    "Further training": ("before_after", "rl_training"),
}
MAKERS = (
    placements_section,
    search_section,
    audit_section,
    costs_section,
    supernet_section,
    matryoshka_section,
    posttraining_section,
)


def render(tables):
    return render_report(tables, recipe="quickstart", provenance={"code": "c0ffee1"})


def headings(html):
    return [heading for heading in re.findall(r"<h2>(.*?)</h2>", html) if heading in SECTIONS]


@pytest.fixture(scope="module")
def html(all_tables):
    return render(all_tables)


def test_every_section_and_picture_is_there(html):
    assert headings(html) == list(SECTIONS)
    assert "Not there yet" not in html
    for title in (
        "Quality against cost",
        "Best value by placements scored",
        "Value against effective sample size",
        "Estimate against generation: ois_clipped (ranks the candidates)",
        "Estimate against generation: snis",
        "Cost of each mixer",
        "Predicted against measured time",
        "KL of fixed placements",
        "Output error by mixer",
        "Training loss",
        "Reward by step",
        "Distance from the start by step",
    ):
        start = html.index(f'aria-label="{title}"')
        figure = html[start : html.index("</figure>", start)]
        assert "<svg" in figure
        assert len(figure[figure.index("<figcaption>") :]) > 60


def test_layer_maps_of_every_placement_with_a_legend(html):
    for model in ("teacher", "b0.5", "b0.75", "safe", "turbo"):
        assert f'aria-label="Layers of {model}: ' in html
    assert 'aria-label="Layers of safe: 12 fa"' in html
    legend = html[html.index('<ul class="legend">') :]
    for name in ("full attention", "sliding window", "Gated DeltaNet", "Kimi Delta Attention", "Mamba"):
        assert name in legend[: legend.index("</ul>")]


def test_tables_say_what_the_rows_say(html, h2):
    text = re.sub(r"<[^>]+>", " ", html)
    chosen = next(row for row in h2["placements"].to_pylist() if row["chosen"])
    for expected in (
        f"{chosen['generated_accuracy']:.3f} [{chosen['generated_low']:.3f}, {chosen['generated_high']:.3f}]",
        "+0.876 [+0.710, +0.950]",
        "ois_clipped (ranks)",
        "61.7% are used by every placement",
        "about 80%",
        "919,193",
        "Worst error: 0.020",
        "280 of 640 groups",
        "+0.114 [+0.064, +0.164]",
        "the same bit for bit",
    ):
        assert expected in text
    assert text.count("919,193") == 1  # the same rows of two checkpoints once


def shows_anything(section):
    return any(picture.svg for picture in section.pictures) or any(table.rows for table in section.tables)


@pytest.mark.parametrize(("make", "sources"), list(zip(MAKERS, SECTIONS.values(), strict=True)))
def test_a_step_without_rows_has_nothing_to_show_and_any_of_its_tables_may_be_missing(h2, make, sources):
    assert not shows_anything(make({}))
    assert not shows_anything(make({name: table.slice(0, 0) for name, table in h2.items()}))
    assert not shows_anything(make({name: table for name, table in h2.items() if name not in sources}))
    for name in sources:
        assert shows_anything(make({name: h2[name]})) or name == "training"  # it alone names no supernet


def test_without_the_supernet_procedure_nothing_of_it_is_on_the_page(tables):
    html = render({**tables, **{name: to_table(name, []) for names in SECTIONS.values() for name in names}})
    assert headings(html) == []
    assert "Scores of candidates" not in html


def test_a_supernets_jumping_loss_is_in_its_own_section_only(html):
    start = html.index('aria-label="Training"')
    assert ">supernet<" not in html[start : html.index("</figure>", start)]


def hostile(table):
    text = [name for name, (dtype, _) in TABLES[table[0]].items() if str(dtype) == "string"]
    keep = {"kind", "phase", "metric"}
    return [row | {name: HOSTILE for name in text if name not in keep} for row in table[1].to_pylist()]


def test_text_of_every_table_stays_text(h2):
    planted = {name: to_table(name, hostile((name, table))) for name, table in h2.items()}
    page = Page(render(planted))
    assert "script" not in {tag for tag, _ in page.tags}
    assert " ".join(page.text).count("<script>alert('x')</script>") > 10


def test_teacher_is_from_the_audit_or_else_from_the_evals(all_tables):
    assert teacher_accuracy(all_tables)[0] == 0.9431
    without = {name: table for name, table in all_tables.items() if name != "audit_points"}
    accuracy, source = teacher_accuracy(without)
    assert accuracy == pytest.approx(0.9731)
    assert "evals" in source
    assert teacher_accuracy({}) == (None, "")


def test_what_ranks_is_what_the_searched_candidates_say(h2):
    rows = h2["candidates"].to_pylist()
    rows = [{**row, "estimator": "snis" if row["budget"] is None else "log_q"} for row in rows]
    assert ranking_estimators({"candidates": to_table("candidates", rows)}) == ["log_q"]


def test_measured_times_that_do_not_vary_have_no_r2(h2):
    rows = [{**row, "measured": 0.5} for row in h2["cost_check"].to_pylist()]
    section = costs_section({"cost_check": to_table("cost_check", rows)})
    assert "not defined" in section.pictures[1].caption
