"""The worked queries of docs/queries.md run, and answer what they say; so do the views' comments."""

import re
from pathlib import Path

import pytest

from apriel_assets.evaluation.roofline import (
    DEVICES,
    Device,
    decode_bytes_per_step,
    decode_flops_per_step,
    decode_tokens_per_s_bound,
    modelled_speedup,
)
from apriel_assets.evaluation.roofline_rows import device_rows, layer_rows
from apriel_assets.tables.documentation import tables_page
from apriel_assets.tables.meanings import TABLE_MEANINGS
from apriel_assets.tables.schemas import TABLES, to_table
from apriel_assets.tables.views import VIEWS
from resources.lake import Lake
from tests.evaluation.test_roofline import TINY
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


def test_decode_roofline_is_the_byte_model_of_every_checkpoint(tmp_path):
    device = Device(flops_per_s=5e10, bytes_per_s=1e10)
    placements = {
        "teacher": ("fa",) * 4,
        "h2": ("fa", "fa", "mamba", "mamba"),
        "b0.5": ("fa", "swa", "gdn", "kda"),
    }
    kinds = {"teacher": "teacher", "h2": "progressive", "b0.5": "placement"}
    checkpoints = [
        {"model": name, "kind": kinds[name], "placement": list(own)} for name, own in placements.items()
    ]
    checkpoints.append({"model": "supernet", "kind": "supernet", "placement": ["fa"] * 4})
    lake = Lake(tmp_path)
    tables = {
        "checkpoints": to_table("checkpoints", checkpoints),
        "devices": to_table("devices", device_rows(TINY, "here", device, ["H100"])),
        "layer_bytes": to_table("layer_bytes", layer_rows(TINY, (16, 512))),
    }
    lake.publish(tables, recipe="quick", asset="all", version="v")
    found = lake.arrow("from decode_roofline(7)").to_pylist()
    assert len(found) == 3 * 2 * 2  # models, contexts, devices
    for row in found:
        placement, context = placements[row["model"]], row["context_tokens"]
        moved = decode_bytes_per_step(TINY, placement, context, 7)
        assert row["bytes_per_token"] == pytest.approx(moved / 7)
        assert row["speedup"] == pytest.approx(modelled_speedup(TINY, placement, context, 7))
        own = device if row["device"] == "here" else DEVICES["H100"]
        bound = decode_tokens_per_s_bound(TINY, placement, context, 7, own)
        assert row["bound_tokens_per_s"] == pytest.approx(bound)
        intensity = decode_flops_per_step(TINY, placement, context, 7) / moved
        assert row["intensity"] == pytest.approx(intensity)
        assert row["limited_by"] == ("bandwidth" if intensity < own.ridge_flops_per_byte else "compute")


def test_speed_has_the_teachers_beside_each_point(lake):
    columns, rows = lake.query("select model, speedup, modelled_speedup from speed where phase = 'decode'")
    assert columns == ["model", "speedup", "modelled_speedup"]
    assert {model: speedup for model, speedup, _ in rows} == {
        model: pytest.approx(speed / 100) for model, (*_, speed, _) in MODELS.items()
    }


def lm_eval_row(model, value, **changes):
    row = {
        "model": model,
        "asked": "mmlu",
        "task": "mmlu",
        "metric": "acc",
        "filter": "none",
        "num_fewshot": 5,
    }
    row |= {"value": value, "stderr": 0.01, "num_samples": 400, "higher_is_better": True}
    return row | changes


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """A home with rows of the harness: h6 beats sft in both, h7 is the fastest, perplexity is better when low."""
    lake = write_home(tmp_path_factory.mktemp("harness"))
    values = {"teacher": 0.7, "h6": 0.66, "sft": 0.66, "merge": 0.6, "h7": 0.5}
    perplexity = {"metric": "word_perplexity", "higher_is_better": False, "num_fewshot": None}
    for model, value in values.items():
        rows = [lm_eval_row(model, value), lm_eval_row(model, 10 * value, **perplexity)]
        rows.append(lm_eval_row(model, 1 - value, num_fewshot=0))
        tables = {"lm_evals": to_table("lm_evals", rows)}
        lake.publish(tables, recipe="quick", asset=f"lm_evals/{model}", version=model)
    return lake


def test_lm_eval_ranking_has_error_samples_shots_and_the_teachers_value(harness):
    rows = harness.arrow("FROM lm_eval_ranking WHERE metric = 'acc' AND num_fewshot = 5").to_pylist()
    found = {row["model"]: row for row in rows}
    assert {name: row["place"] for name, row in found.items()} == {
        "teacher": 1, "h6": 2, "sft": 2, "merge": 4, "h7": 5,
    }  # fmt: skip
    own = found["h7"]
    assert (own["stderr"], own["num_samples"], own["num_fewshot"]) == (0.01, 400, 5)
    assert (own["teacher_value"], own["difference"]) == (0.7, pytest.approx(-0.2))
    assert own["decode_speedup"] == pytest.approx(2.2)
    other = harness.arrow("FROM lm_eval_ranking WHERE metric = 'acc' AND num_fewshot = 0").to_pylist()
    assert {row["model"]: row["place"] for row in other}["h7"] == 1  # shots are never mixed


def test_lm_eval_pareto_front_knows_which_way_is_better(harness):
    for metric in ("acc", "word_perplexity"):
        where = f"metric = '{metric}' AND num_fewshot IS NOT DISTINCT FROM {5 if metric == 'acc' else 'NULL'}"
        rows = harness.arrow(f"FROM lm_eval_pareto_front WHERE {where}").to_pylist()
        assert {row["model"] for row in rows} == ({"teacher", "sft", "h7"} if metric == "acc" else {"h7"})


def test_over_seeds_is_the_mean_and_spread_over_recipes(tmp_path):
    lake = Lake(tmp_path)
    for seed, accuracy in enumerate((0.8, 0.9, 1.0)):
        rows = [{"model": "h6", "accuracy": accuracy, "decode_speedup": 2.0}]
        recipe = f"quick-s{seed}"
        lake.publish(
            {"leaderboard": to_table("leaderboard", rows)}, recipe=recipe, asset="leaderboard", version="v"
        )
    ((model, runs, mean, sd, least, most),) = lake.query(
        "select model, num_runs, accuracy, accuracy_sd, accuracy_least, accuracy_most from over_seeds('quick%')"
    )[1]
    assert (model, runs, least, most) == ("h6", 3, 0.8, 1.0)
    assert (mean, sd) == (pytest.approx(0.9), pytest.approx(0.1))
    assert lake.query("from over_seeds('other%')")[1] == []


def test_budget_choices_count_the_finalists_that_are_as_good(tmp_path):
    def finalist(rank, low, high):
        own = {
            "budget": 0.5,
            "rank": rank,
            "chosen": rank == 0,
            "name": None if rank else "b0.5",
            "cost": 0.5,
        }
        return own | {"generated_accuracy": (low + high) / 2, "generated_low": low, "generated_high": high}

    rows = [finalist(0, 0.8, 0.9), finalist(1, 0.7, 0.81), finalist(2, 0.5, 0.6)]
    lake = Lake(tmp_path)
    lake.publish({"placements": to_table("placements", rows)}, recipe="quick", asset="finalists", version="v")
    found = lake.query("select name, num_runner_ups, num_as_good from budget_choices")[1]
    assert found == [("b0.5", 2, 1)]
