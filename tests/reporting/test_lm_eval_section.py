"""Tasks of the harness and variants on the page: what the rows say stands there, with errors, samples and shots."""

import re
from html import unescape

from apriel_assets.reporting.ablation_section import ablation_section
from apriel_assets.reporting.lm_eval_section import headline_columns, lm_eval_section
from apriel_assets.reporting.report import render_report
from apriel_assets.tables.schemas import to_table

PROVENANCE = {"code": "c0ffee1"}


def lm_evals(models=("teacher", "h6"), tasks=("mmlu", "mmlu_law")):
    rows = []
    for index, model in enumerate(models):
        for task in tasks:
            row = {"model": model, "asked": "mmlu", "task": task, "metric": "acc", "filter": "none"}
            row |= {"num_fewshot": 5, "value": 0.7123 - 0.1 * index, "stderr": 0.0137, "num_samples": 14042}
            rows.append(row | {"task_version": "2.0", "harness_version": "0.4.13"})
    return to_table("lm_evals", rows)


def text_of(html):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_section_and_leaderboard_show_error_samples_and_shots(tables):
    text = text_of(render_report({**tables, "lm_evals": lm_evals()}, recipe="own", provenance=PROVENANCE))
    assert "mmlu (acc, 5-shot)" in text  # a column of the leaderboard
    assert "0.612 ± 0.014, n=14042" in text
    assert "0.612 ± 0.014 5 14,042" in text  # a row of the section
    assert "By task (1): from lm_evals where asked = 'mmlu'" in text
    assert "Tasks of the lm-evaluation-harness" in text
    assert "by lm-eval 0.4.13" in text


def test_a_group_without_own_figures_shows_its_tasks():
    (table,) = lm_eval_section({"lm_evals": lm_evals(tasks=("law", "maths"))}).tables
    assert len(table.rows) == 2
    assert headline_columns({"lm_evals": lm_evals(tasks=("law", "maths"))}) == {}


def test_a_page_without_such_rows_has_no_such_section(tables):
    html = render_report(
        {**tables, "lm_evals": to_table("lm_evals", [])}, recipe="own", provenance=PROVENANCE
    )
    assert "lm-evaluation-harness" not in html
    assert "Ablations" not in html


def ablations(better):
    row = {"model": "forward_kl/h6", "base_model": "h6", "task": "all tasks", "num_problems": 300}
    row |= {"num_differing": 40, "value": 0.81, "base_value": 0.9, "p_value": 0.001, "could_hide": 0.0}
    accuracy = row | {
        "metric": "accuracy",
        "difference": -0.0917,
        "low": -0.13,
        "high": -0.05,
        "better": better,
    }
    return to_table("ablations", [accuracy, row | {"metric": "accuracy", "task": "copy", "difference": 0.5}])


def test_ablations_stand_there_with_interval_and_verdict(tables):
    html = render_report({**tables, "ablations": ablations("h6")}, recipe="own", provenance=PROVENANCE)
    text = text_of(html)
    assert "-0.092 [-0.130, -0.050] 0.001 h6 is better" in text
    assert "1 models beside" in text
    assert "Of 1 the two can be told apart" in text
    assert "0.500" not in text_of(html.split("Ablations")[-1].split("Where these")[0])  # by task: not here


def test_what_cannot_be_told_is_said():
    section = ablation_section({"ablations": ablations(None)})
    assert "no detectable difference" in section.tables[0].rows[0][-1]
    assert "Of 0 the two" in section.lead
