import pytest

from apriel_assets.reporting.summary import leaderboard_table, summary_columns, summary_rows
from apriel_assets.tables.schemas import to_table


def by_model(tables):
    return {row["model"]: row for row in leaderboard_table(tables).to_pylist()}


def test_order_is_teacher_then_k_then_finetuned_then_merged(tables):
    reverse = tables["checkpoints"].take(list(range(5, -1, -1)))
    rows = leaderboard_table({**tables, "checkpoints": reverse}).to_pylist()
    assert [row["model"] for row in rows] == ["teacher", "h4", "h6", "h8", "sft", "merge"]


def test_accuracy_is_the_mean_over_tasks_and_its_interval_by_hand(tables):
    row = by_model(tables)["h6"]
    assert row["num_tasks"] == 3
    assert row["accuracy"] == pytest.approx(0.8419)
    # Three independent tasks, each 0.03 down and 0.02 up: sqrt(3) of that, over 3.
    assert row["accuracy_low"] == pytest.approx(0.8419 - 0.03 / 3**0.5)
    assert row["accuracy_high"] == pytest.approx(0.8419 + 0.02 / 3**0.5)
    assert row["reverse_kl_nats"] == pytest.approx(0.0137 * 6)
    assert row["forward_kl_nats"] is None


def test_speed_is_at_the_longest_context_that_the_teacher_shares(tables):
    row = by_model(tables)["h8"]
    assert (row["context_tokens"], row["batch_size"]) == (4096, 8)
    assert row["decode_speedup"] == pytest.approx(523 / 211)
    assert row["modelled_decode_speedup"] == pytest.approx(1 + 8 * 0.0931 * 2)
    shorter = [
        r for r in tables["throughput"].to_pylist() if r["model"] != "teacher" or r["context_tokens"] < 4096
    ]
    row = by_model({**tables, "throughput": to_table("throughput", shorter)})["h8"]
    assert row["context_tokens"] == 1024


def test_prefill_rows_do_not_count(tables):
    decode = [row for row in tables["throughput"].to_pylist() if row["phase"] == "decode"]
    assert by_model({**tables, "throughput": to_table("throughput", decode)}) == by_model(tables)


def test_what_is_not_measured_is_null_and_a_dash(tables):
    only = {"checkpoints": tables["checkpoints"]}
    assert by_model(only)["h4"]["accuracy"] is None
    row = summary_rows(only)[1]
    assert row == {
        "model": "h4",
        "replaced": "4 of 12",
        "accuracy": "-",
        "kl": "-",
        "speedup": "-",
        "modelled": "-",
        "tokens": "50,021",
    }
    assert set(row) == set(summary_columns())


def test_nothing_gives_nothing():
    assert summary_rows({}) == []
    assert leaderboard_table({"checkpoints": to_table("checkpoints", [])}).num_rows == 0


def test_an_unknown_kind_comes_last(tables):
    extra = {"model": "aaa", "kind": "unheard of", "placement": ["fa"] * 12, "num_replaced": 0}
    rows = [extra, *tables["checkpoints"].to_pylist()]
    found = leaderboard_table({**tables, "checkpoints": to_table("checkpoints", rows)}).to_pylist()
    assert found[-1]["model"] == "aaa"
