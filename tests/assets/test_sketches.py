import pyarrow.parquet as pq
import pytest

from apriel_assets.assets.sketches import (
    sketch_audit,
    sketch_cost_model,
    sketch_finalists,
    sketch_guard,
    sketch_placements,
    sketch_release,
    sketch_rl,
    sketch_roofline,
    sketch_throughput,
)
from apriel_assets.evaluation.roofline import Device
from apriel_assets.evaluation.roofline_rows import device_rows, lever_rows
from apriel_assets.tables.schemas import to_table
from resources.artifact_store import Artifact
from tests.evaluation.test_roofline import TINY
from tests.reporting.h2_rows import h2_tables

FIGURES = {"cost_fa": 1.0, "cost_gdn": 0.5, "cost_mamba": 0.0, "other": 7}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Write tables as an artifact's."""

    def write(tables):
        path = tmp_path_factory.mktemp("artifact")
        (path / "tables").mkdir()
        for name, table in tables.items():
            pq.write_table(table, path / "tables" / f"{name}.parquet")
        return Artifact(path=path, provenance={"figures": FIGURES})

    return write


@pytest.fixture(scope="module")
def made(artifact):
    return artifact(h2_tables())


def shown(sketch):
    """The Markdown of each entry; fails if Dagster would hide one behind a click."""
    found = {name: value.value for name, value in sketch.items()}
    assert all(len(text) < 1000 for text in found.values())
    return found


def test_cost_bars_are_proportional(made):
    lines = shown(sketch_cost_model(made))["costs"].splitlines()[1:-1]
    assert [line.split()[:2] for line in lines] == [["fa", "1.000"], ["gdn", "0.500"], ["mamba", "0.000"]]
    assert [line.count("#") for line in lines] == [30, 15, 0]


def test_further_training_shows_its_curves_and_what_it_changed(made):
    curves = shown(sketch_rl(made))
    assert {"reward_curve", "kl_curve", "reward_turbo", "sharing"} <= set(curves)
    lines = shown(sketch_guard(made))["before_after"].splitlines()[2:-1]
    assert [line.split()[:3] for line in lines[:3]] == [
        [own, "all", "tasks"] for own in ("safe", "safe", "turbo")
    ]
    assert "+0.114 [+0.064, +0.164] better" in lines[2]


def test_search_shows_its_rise_and_where_it_ended(made):
    found = shown(sketch_placements(made))
    assert found["gain_by_round"].startswith("![curve](data:image/svg+xml;base64,")
    best = made.table("candidates").to_pylist()[0]["placement"]
    letters = found["best_placement"].strip("`\n").split()
    assert letters == [mixer[0].upper() for mixer in best]


def test_finalists_show_the_chosen_map_and_every_accuracy(made):
    rows = made.table("placements").to_pylist()
    found = shown(sketch_finalists(made))
    assert found["chosen_placement"].strip("`\n").split() == [
        mixer[0].upper() for mixer in rows[0]["placement"]
    ]
    assert all(f"{row['generated_accuracy']:.3f}" in found["finalists"] for row in rows)


def test_audit_lists_every_estimator_and_a_dash_for_no_figure(made, artifact):
    rows = [{**row, "spearman": None} for row in made.table("audit").to_pylist()]
    text = shown(sketch_audit(artifact({"audit": to_table("audit", rows)})))["estimators"]
    assert all(row["estimator"] in text for row in rows)
    assert "+0.913" in text
    assert "- [ +0.710" in text


def test_release_shows_sharing_and_a_map_per_placement(made, artifact):
    found = shown(sketch_release(made))
    assert "919,193 bytes of its own" in found["sharing"]
    assert {"layers_safe", "layers_turbo", "loss_curve"} <= set(found)
    untrained = artifact({name: made.table(name) for name in ("sharing", "checkpoints")})
    assert "loss_curve" not in sketch_release(untrained)


def test_many_rows_of_a_deep_model_stay_inline(made, artifact):
    rows = [{**row, "placement": ["kda"] * 200} for row in made.table("placements").to_pylist()] * 9
    found = shown(sketch_finalists(artifact({"placements": to_table("placements", rows)})))
    lines = found["finalists"].splitlines()
    assert lines[-1] == "```"
    assert len(set(map(len, lines[2:-1]))) == 1  # whole lines only
    assert found["chosen_placement"].split().count("K") == 200


def test_roofline_shows_ridge_points_and_every_levers_gain(artifact):
    here = Device(flops_per_s=5e10, bytes_per_s=1e10)
    made = artifact(
        {
            "devices": to_table("devices", device_rows(TINY, "An odd CPU", here, ("H100",))),
            "levers": to_table("levers", lever_rows(TINY, 12, (8, 4096), 4)),
        }
    )
    found = shown(sketch_roofline(made))
    assert "5.0 FLOP/byte An odd CPU" in found["ridge_points"]
    assert "295.2 FLOP/byte H100" in found["ridge_points"]
    assert found["speedup_at_longest_context"].count("x ") == len(
        {r["lever"] for r in lever_rows(TINY, 12, (8,), 4)}
    )
    assert found["by_context_gdn_in_all_layers"].startswith("![curve](data:image/svg+xml;base64,")


def test_speed_shows_latency_and_the_share_of_the_bound(artifact):
    row = {"phase": "decode", "context_tokens": 8192, "batch_size": 8, "tokens_per_s": 120.0}
    row |= {"bound_tokens_per_s": 480.0, "latency_p50_seconds": 0.0125, "latency_p95_seconds": 0.02}
    rows = [{**row, "modelled_speedup": speedup} for speedup in (1.5, None)]
    lines = shown(sketch_throughput(artifact({"throughput": to_table("throughput", rows)})))[
        "speed"
    ].splitlines()
    assert lines[2].split() == ["decode", "8,192", "8", "120", "25%", "1.500", "12.50", "20.00"]
    assert lines[3].split()[5] == "-"
