"""The worked queries of docs/queries.md run, and answer what they say; so do the views' comments."""

import re
from pathlib import Path

import pytest

from apriel_assets.tables.documentation import tables_page
from apriel_assets.tables.meanings import TABLE_MEANINGS
from apriel_assets.tables.schemas import TABLES
from apriel_assets.tables.views import VIEWS
from tests.tables.made_up_home import MODELS, write_home

DOCS = Path(__file__).parents[2] / "docs"
QUERIES = re.findall(
    r"^## (\d+)\. .*?```sql\n(.*?)```", (DOCS / "queries.md").read_text(), re.DOTALL | re.MULTILINE
)
ACCURACY = {name: 1 - sum(wrong) / 80 for name, (*_, wrong, _, _) in MODELS.items()}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def ask(lake):
    """Return a worked query's rows, as dicts."""

    def answer(number):
        columns, rows = lake.query(dict(QUERIES)[str(number)])
        return [dict(zip(columns, row, strict=True)) for row in rows]

    return answer


def test_there_are_ten_and_each_answers(ask):
    assert [int(number) for number, _ in QUERIES] == list(range(1, 11))
    for number in range(1, 11):
        assert ask(number), number


def test_1_ranking_says_who_cannot_be_told_apart(ask):
    found = {row["model"]: row for row in ask(1)}
    assert list(found) == ["teacher", "h6", "sft", "merge", "h7"]
    assert {name: row["accuracy"] for name, row in found.items()} == pytest.approx(ACCURACY)
    assert found["h7"]["places"] == "5"
    assert found["teacher"]["places"] == found["h6"]["places"] == "1-2"
    assert found["sft"]["places"] == found["merge"]["places"] == "3-4"


def test_2_pareto_front_leaves_out_who_is_beaten_in_both(ask):
    assert [row["model"] for row in ask(2)] == ["teacher", "h6", "sft", "h7"]


def test_3_only_differences_beyond_chance_count_as_regressions(ask):
    found = {(row["model"], row["task"]): row for row in ask(3)}
    assert set(found) == {("h7", "recall"), ("sft", "recall"), ("merge", "recall")}
    worst = found["h7", "recall"]
    assert (worst["num_lost"], worst["num_gained"], worst["difference"]) == (20, 0, -0.5)
    assert worst["adjusted_p"] == pytest.approx(2 * 2 / 2**20)


def test_4_quality_per_cost(ask):
    found = {row["model"]: row for row in ask(4)}
    assert found["teacher"]["kept_per_cost"] == 1
    assert found["h6"]["kept_per_cost"] == pytest.approx(ACCURACY["h6"] * 1.8)


def test_5_steps_per_gpu_minute_count_probes_and_training(ask):
    rows = ask(5)
    assert [row["model"] for row in rows] == ["h6", "h7", "sft", "merge"]
    step = rows[1]
    assert (step["parent"], step["layers_replaced"], step["gpu_minutes"]) == ("h6", 1, 2.0)
    assert step["accuracy_per_gpu_minute"] == pytest.approx((ACCURACY["h7"] - ACCURACY["h6"]) / 2)
    assert step["speedup_per_gpu_minute"] == pytest.approx(0.4 / 2)


def test_6_drift_over_dates(ask):
    rows = ask(6)
    assert [row["drifted"] for row in rows] == [False, False, True]
    assert rows[-1]["change_since_first"] == pytest.approx(-0.1)


def test_7_two_models_task_by_task(ask):
    rows = {row["task"]: row for row in ask(7)}
    assert (rows["recall"]["num_lost"], rows["recall"]["difference"]) == (18, pytest.approx(-18 / 40))
    assert rows["copy"]["p_value"] == 1.0


def test_8_lost_problems_with_what_was_written(ask):
    rows = ask(8)
    assert [row["task"] for row in rows] == ["copy", "recall", "recall"]
    assert (rows[0]["completion"], rows[0]["teacher_completion"]) == ("h6 says 0", "teacher says 0")


def test_9_fastest_that_keeps_enough(ask):
    assert [row["model"] for row in ask(9)] == ["h6"]


def test_10_every_figure_leads_to_its_build(ask):
    rows = ask(10)
    assert len(rows) == len(MODELS) * 2
    assert {row["code"] for row in rows} == {"abc123"}
    assert rows[0]["asset"] == f"evals/{rows[0]['model']}"


def test_every_table_view_and_column_has_a_comment(lake):
    _, without = lake.query(
        "select table_name, column_name from duckdb_columns() where not internal and comment is null"
    )
    assert without == []
    _, views = lake.query("select view_name, comment from duckdb_views() where not internal")
    expected = TABLE_MEANINGS | {name: view.meaning for name, view in VIEWS.items() if not view.parameters}
    assert dict(views) == expected
    assert set(TABLE_MEANINGS) == set(TABLES)


@pytest.mark.parametrize("name", VIEWS)
def test_view_has_the_documented_columns(name, lake):
    arguments = {
        "compare_models": "('h6', 'h7')",
        "lost_problems": "('h6')",
        "fastest_keeping": "(0.5)",
        "over_seeds": "('%')",
        "decode_roofline": "(8)",
    }
    columns, _ = lake.query(f"select * from {name}{arguments.get(name, '')} limit 0")
    assert columns == list(VIEWS[name].columns)


def test_page_of_tables_is_what_the_schemas_say():
    assert (DOCS / "tables.md").read_text() == tables_page(), (
        "run python -m apriel_assets.tables.documentation"
    )
