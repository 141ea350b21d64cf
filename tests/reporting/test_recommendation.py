import pyarrow as pa
import pytest

from apriel_assets.reporting.recommendation import recommendation_section, shipped_model
from apriel_assets.reporting.summary import leaderboard_table
from apriel_assets.tables.schemas import to_table
from tests.evaluation.sample_rows import sample_rows, samples

FA, HALF, MOST = ["fa"] * 4, ["fa", "fa", "gdn", "gdn"], ["fa", "gdn", "gdn", "gdn"]
TASKS = ("recall", "copy")


def checkpoint(model, kind, placement):
    return {"model": model, "kind": kind, "placement": placement, "num_replaced": placement.count("gdn")}


def finalist(budget, rank, placement, low, high, name=None):
    value = (low + high) / 2
    return {
        "budget": budget, "rank": rank, "placement": placement, "cost": budget, "chosen": rank == 0, "name": name,
        "generated_accuracy": value, "generated_low": low, "generated_high": high,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tables():
    """`turbo` answers as the teacher does; `max` loses half of one task."""
    verdicts = {"teacher": [1] * 40, "turbo": [1] * 40, "max": [0] * 20 + [1] * 20}
    rows = [
        {
            "model": model,
            "task": task,
            "metric": "accuracy",
            "value": value,
            "low": value - 0.02,
            "high": value,
        }
        for model, own in verdicts.items()
        for task, value in (("recall", sum(own) / 40), ("copy", 1.0))
    ]
    speeds = [
        {"model": model, "phase": "decode", "context_tokens": 512, "batch_size": 8, "tokens_per_s": speed}
        for model, speed in (("teacher", 100.0), ("turbo", 190.0), ("max", 250.0))
    ]
    answers = [
        sample_rows(model, own if task == "recall" else [1] * 40, task=task)
        for model, own in verdicts.items()
        for task in TASKS
    ]
    found = [
        finalist(0.6, 0, HALF, 0.90, 0.98, "b0.6"),
        finalist(0.6, 1, MOST, 0.85, 0.93),
        finalist(0.6, 2, FA, 0.70, 0.80),
        finalist(0.4, 0, MOST, 0.70, 0.80, "b0.4"),
    ]
    checkpoints = [
        checkpoint("teacher", "teacher", FA),
        checkpoint("turbo", "release", HALF),
        checkpoint("max", "release", MOST),
    ]
    audit = {"estimator": "ois_clipped", "spearman": 0.9, "spearman_low": 0.7, "spearman_high": 0.95}
    scored = {"budget": None, "placement": FA, "estimator": "ois_clipped"}
    return {
        "checkpoints": to_table("checkpoints", checkpoints),
        "evals": to_table("evals", rows),
        "throughput": to_table("throughput", speeds),
        "eval_samples": samples(*answers),
        "placements": to_table("placements", found),
        "audit": to_table("audit", [audit | {"num_placements": 24}]),
        "candidates": to_table("candidates", [scored]),
    }


def test_each_budget_names_what_ships_and_how_sure_that_is(tables):
    section = recommendation_section(tables)
    first, second = section.tables[0].rows
    assert first[:4] == ("0.6", "turbo", "2 fa, 2 gdn", "0.600")
    assert first[5:] == (
        "1.90x",
        "no detectable difference (one of up to 0.037 may hide)",
        "1 of 2 as good",
    )
    assert second[:2] == ("0.4", "max")
    assert second[6].startswith("worse by 0.250 [0.1")
    assert second[7] == "no other finalist"
    assert "+0.90 [+0.70, +0.95], audited on 24 placements" in section.lead


def test_fastest_model_by_mean_and_by_the_lower_end(tables):
    rows = {row[0]: row[1:] for row in recommendation_section(tables).tables[1].rows}
    assert rows["99%"] == ("turbo, 1.90x", "-")  # its interval's lower end is 0.98
    assert rows["95%"] == ("turbo, 1.90x", "turbo, 1.90x")
    assert rows["90%"] == rows["95%"]
    assert rows["80%"] == rows["95%"]  # max keeps 75%


def test_a_choice_that_generation_tells_from_all_others_says_so(tables):
    rows = tables["placements"].to_pylist()
    rows[1] |= {"generated_low": 0.5, "generated_high": 0.6}
    section = recommendation_section({**tables, "placements": to_table("placements", rows)})
    assert section.tables[0].rows[0][7] == "better than all 2"


def test_without_a_release_the_budgets_own_placement_ships(tables):
    kept = [row for row in tables["checkpoints"].to_pylist() if row["kind"] != "release"]
    kept.append(checkpoint("b0.6", "placement", HALF))
    own = {**tables, "checkpoints": to_table("checkpoints", kept)}
    leaderboard = {row["model"]: row for row in leaderboard_table(own).to_pylist()}
    choice = tables["placements"].to_pylist()[0]
    assert shipped_model(choice, own, leaderboard) == "b0.6"
    assert shipped_model({**choice, "name": "gone"}, own, leaderboard) is None


def test_more_rows_make_each_verdict_harder(tables):
    # Six problems of 40 lost: p = 0.03 alone, 0.06 as one of two.
    def verdict(*budgets):
        lost = samples(
            *[sample_rows("teacher", [1] * 40, task=task) for task in TASKS],
            sample_rows("turbo", [0] * 6 + [1] * 34, task="recall"),
            sample_rows("turbo", [1] * 40, task="copy"),
            sample_rows("max", [0] * 6 + [1] * 34, task="recall"),
            sample_rows("max", [1] * 40, task="copy"),
        )
        rows = [row for row in tables["placements"].to_pylist() if row["budget"] in budgets]
        section = recommendation_section(
            {**tables, "eval_samples": lost, "placements": to_table("placements", rows)}
        )
        return section.tables[0].rows[0][6]

    assert verdict(0.6).startswith("worse by")
    assert verdict(0.6, 0.4).startswith("no detectable difference")


@pytest.mark.parametrize(
    "missing", ["eval_samples", "audit", "candidates", "evals", "throughput", "placements"]
)
def test_any_table_may_be_missing(tables, missing):
    section = recommendation_section({name: table for name, table in tables.items() if name != missing})
    assert len(section.tables) == 2
    assert (section.tables[0].rows == []) == (missing == "placements")
    empty = {name: pa.Table.from_pylist([], schema=table.schema) for name, table in tables.items()}
    assert all(table.rows == [] for table in recommendation_section(empty).tables)
