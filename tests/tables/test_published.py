import pytest

from apriel_assets.tables.published import H30_PLACEMENT, published_rows
from apriel_assets.tables.schemas import to_table


@pytest.fixture(scope="module")
def rows():
    return to_table("published", published_rows()).to_pylist()


def select(rows, source):
    return [row for row in rows if row["source"] == source and row["benchmark"] is None]


def test_h1_progression(rows):
    found = [(r["num_replaced"], r["speedup"], r["quality"], r["tokens_b"]) for r in select(rows, "h1")]
    assert found == [
        (0, 1.0, 0.80, None),
        (25, 1.8, 0.75, 26),
        (27, 1.9, 0.76, 15),
        (30, 2.1, 0.74, 37),
        (30, 2.1, 0.78, 76.8),
        (34, 2.5, 0.71, 63),
        (37, 2.9, 0.69, 89),
        (40, 3.4, 0.69, 137),
    ]


def test_h30_placement_counts_its_layers():
    from_one = [layer + 1 for layer, mixer in enumerate(H30_PLACEMENT) if mixer == "fa"]
    assert from_one == [1, 2, 3, 5, 10, *range(11, 21), 27, 29, 30, 35, 49]
    assert len(H30_PLACEMENT) == 50
    assert H30_PLACEMENT.count("mamba") == 30


def test_supernet_counts_add_up_to_48_layers(rows):
    found = select(rows, "supernet")
    assert [(r["model"], r["speedup"], r["quality"]) for r in found] == [
        ("12/26/6/4", 2.85, 0.96),
        ("3/25/4/16", 4.76, 0.94),
        ("0/30/5/13", 6.2, 0.90),
        ("0/16/13/19", 6.9, 0.81),
        ("0/10/5/33", 10.69, 0.77),
    ]
    assert {r["num_layers"] for r in found} == {48}
    assert [r["num_replaced"] for r in found] == [36, 45, 48, 48, 48]


def test_field_has_a_speed_for_every_system(rows):
    found = {r["model"]: r["speedup"] for r in select(rows, "field")}
    assert len(found) == 8
    assert found["Falcon-H1-34B"] == 8.0
    assert found["Nemotron 3 Nano 30B-A3B"] == 3.3


def test_eval_pairs_keep_both_figures(rows):
    pairs = {r["benchmark"]: (r["quality"], r["teacher_quality"]) for r in rows if r["benchmark"]}
    assert pairs["MT-Bench"] == (8.58, 8.30)
    assert len(pairs) == 5


def test_limit_by_the_kv_cache_is_layers_over_attention_layers(rows):
    limits = {r["model"]: r["kv_limit"] for r in rows if r["benchmark"] is None}
    assert (limits["teacher"], limits["H-25"], limits["H-40"]) == (1, 2, 5)
    assert (limits["12/26/6/4"], limits["3/25/4/16"], limits["0/30/5/13"]) == (4, 16, None)
    assert (limits["Nemotron-H-47B"], limits["Kimi-Linear-48B-A3B"]) == (10, 4)
    assert limits["Falcon-H1-34B"] is None
