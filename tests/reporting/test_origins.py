import re

from apriel_assets.reporting.origins import origins, origins_table
from apriel_assets.reporting.report import render_report
from apriel_assets.tables.schemas import to_table

BUILDS = [
    {"asset": "evals/h4", "partition": task, "address": f"a1b2{task}", "code": "c0de1", "device": "An odd CPU",
     "seed": 7, "date": "2026-01-01", "seconds": 12.34, "tables": ["evals", "eval_samples"]}
    for task in ("recall", "copy")
] + [{"asset": "teacher", "address": "fff0", "tables": ["checkpoints"]}]  # fmt: skip


def tables_with(tables):
    return {**tables, "builds": to_table("builds", BUILDS)}


def test_a_section_names_the_assets_behind_its_tables(tables):
    found = origins(tables_with(tables), ("evals",))
    assert [(one.asset, one.note) for one in found] == [("evals/h4", " (2 partitions)")]
    assert [one.asset for one in origins(tables_with(tables), ("evals", "checkpoints"))] == [
        "evals/h4",
        "teacher",
    ]
    assert origins(tables_with(tables), ("sharing",)) == []
    assert origins({}, ("evals",)) == []


def test_every_build_has_hash_commit_device_seed_and_date(tables):
    first, _, last = origins_table(tables_with(tables)).rows
    assert first == ("evals/h4", "copy", "a1b2copy", "c0de1", "An odd CPU", "7", "2026-01-01", "12.3",
                     "evals, eval_samples")  # fmt: skip
    assert last == ("teacher", "-", "fff0", "-", "-", "-", "-", "-", "checkpoints")


def test_page_leads_from_a_section_to_its_builds(tables):
    html = render_report(tables_with(tables), recipe="quickstart", provenance={})
    by_task = html[html.index('<section id="by-task">') :]
    assert "evals/h4 (2 partitions)" in by_task[: by_task.index("</section>")]
    assert 'href="#builds"' in by_task
    assert 'id="builds"' in html
    assert "a1b2recall" in html
    ids = re.findall(r' id="([^"]+)"', re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL))
    assert len(set(ids)) == len(ids)
    for target in re.findall(r'href="#([^"]+)"', re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)):
        assert target in ids
