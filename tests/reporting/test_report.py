import re
from html.parser import HTMLParser

import pytest

from apriel_assets.reporting.report import render_report
from apriel_assets.tables.schemas import TABLES, to_table

PROVENANCE = {"code": "c0ffee1", "libraries": {"torch": "9.87"}, "device": "An odd CPU", "date": "1987-06-05"}
HOSTILE = "<script>alert('x')</script>&\"$\\frac{$"


class Page(HTMLParser):
    """Tags, their attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def render(tables, **changes):
    return render_report(tables, **{"recipe": "quickstart", "provenance": PROVENANCE, **changes})


@pytest.fixture(scope="module")
def html(tables):
    return render(tables)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def replace_text(table, old, new):
    rows = [{k: new if v == old else v for k, v in row.items()} for row in table.to_pylist()]
    return table.from_pylist(rows, schema=table.schema)


def test_summary_shows_what_the_rows_say(page):
    text = " ".join(page.text)
    for expected in ("0.973 [0.95", "0.842 [0.8", "6 of 12", "100,042", "0.0822", "1.90x", "2.48x", "2.12x"):
        assert expected in text
    assert re.search(r"at\s+4096 tokens of context, batch 8", text)


def test_page_follows_a_planted_value(tables, html):
    rows = tables["evals"].to_pylist()
    for row in rows:
        if (row["model"], row["task"], row["metric"]) == ("h6", "copy", "accuracy"):
            row |= {"value": 0.4567, "low": 0.3456, "high": 0.5678}
    planted = {**tables, "evals": to_table("evals", rows)}
    assert "0.457 [0.346, 0.568]" not in html
    assert "0.457 [0.346, 0.568]" in render(planted)


def test_provenance_and_settings_are_there(page):
    text = " ".join(page.text)
    for expected in ("c0ffee1", "torch 9.87", "An odd CPU", "1987-06-05", "173", "problems per task"):
        assert expected in text


def test_every_picture_and_layer_map_is_drawn(html):
    assert "Not there yet" not in html
    assert html.count("<svg") == 6 + 2 + 5  # maps, legend, pictures
    assert "H-30-SFT" in html


def test_page_loads_nothing(page, html):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    addresses = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert all(address.startswith("#") for address in addresses)
    assert "@import" not in html
    assert "url(http" not in html


def test_hostile_names_stay_text(tables):
    hostile = {name: replace_text(table, "h6", HOSTILE) for name, table in tables.items()}
    hostile["evals"] = replace_text(hostile["evals"], "copy", HOSTILE)
    hostile["throughput"] = replace_text(hostile["throughput"], "An odd CPU", HOSTILE)
    html = render(hostile, recipe=HOSTILE, provenance={HOSTILE: {HOSTILE: HOSTILE}})
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "alert('x')</script>" not in html
    assert "<script>alert('x')</script>&\"$\\frac{$" in " ".join(page.text)


# Whatever a recipe, a checkpoint, a device or a model can write; not what our own code writes.
FREE_TEXT = {
    "model", "task", "parent", "device", "asset", "partition", "code", "lever", "probe", "prompt", "completion",
    "teacher_completion", "problem_id", "answer", "path", "address", "recipe", "version", "commit", "name",
}  # fmt: skip


def test_nothing_in_any_table_becomes_markup(tables, page):
    """Every free text of every table begins with markup, in pictures and their titles, too."""

    def hostile(column, value):
        return HOSTILE + value if column in FREE_TEXT and isinstance(value, str) else value

    changed = {}
    for name, table in tables.items():
        rows = [
            {column: hostile(column, value) for column, value in row.items()} for row in table.to_pylist()
        ]
        changed[name] = table.from_pylist(rows, schema=table.schema)
    found = Page(render(changed))
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in page.tags}
    names = {name for _, attributes in found.tags for name in attributes}
    assert names <= {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert "<script>alert('x')</script>" in "".join(found.text)


def test_without_any_table_the_page_says_what_is_missing():
    empty = {name: to_table(name, []) for name in TABLES}
    for tables in ({}, empty):
        text = " ".join(Page(render(tables)).text)
        assert "No model is there yet" in text
        assert text.count("Not there yet") == 7


@pytest.mark.parametrize("missing", ["evals", "throughput", "layer_scores", "probes", "training"])
def test_a_run_that_still_goes_on_gives_a_page(tables, missing):
    page = render({name: table for name, table in tables.items() if name != missing})
    assert "sft" in page
    if missing in ("evals", "throughput"):
        assert "Not measured yet, in part or at all: teacher, h4, h6, h8, sft, merge." in page


def test_same_rows_same_bytes(tables, html):
    assert render(tables) == html


def test_accessible_basics(page):
    assert ("html", {"lang": "en"}) in page.tags
    assert [attrs for tag, attrs in page.tags if tag == "meta" and attrs.get("name") == "viewport"]
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "figure")
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.tags if tag == "th")
