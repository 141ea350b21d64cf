import re

import pytest

from apriel_assets.evaluation.roofline import Device, decode_bytes_per_step, modelled_speedup
from apriel_assets.evaluation.roofline_rows import device_rows, layer_rows, lever_rows
from apriel_assets.reporting.roofline_sections import modelled_steps, roofline_section, speed_section
from apriel_assets.tables.schemas import to_table
from tests.evaluation.test_roofline import TINY
from tests.reporting.conftest import checkpoint_rows
from tests.reporting.svg_text import texts

CONTEXTS = (8, 64, 4096)


@pytest.fixture(scope="module")
def roofline(tables):
    here = Device(flops_per_s=5e10, bytes_per_s=1e10)
    return {
        "checkpoints": tables["checkpoints"],
        "devices": to_table("devices", device_rows(TINY, "An odd CPU", here, ("H100", "B200"))),
        "layer_bytes": to_table("layer_bytes", layer_rows(TINY, CONTEXTS)),
        "levers": to_table("levers", lever_rows(TINY, 12, CONTEXTS, 4)),
    }


def test_steps_of_every_placement_are_the_byte_models():
    steps = modelled_steps(checkpoint_rows(), layer_rows(TINY, CONTEXTS), 4)
    placements = {row["model"]: row["placement"] for row in checkpoint_rows()}
    assert set(steps) == set(placements)
    for model, rows in steps.items():
        for row in rows:
            context = row["context_tokens"]
            moved = decode_bytes_per_step(TINY, placements[model], context, 4)
            assert row["bytes_per_token"] == pytest.approx(moved / 4)
            assert row["speedup"] == pytest.approx(modelled_speedup(TINY, placements[model], context, 4))


def test_what_is_no_model_or_has_an_unknown_mixer_is_left_out():
    rows = checkpoint_rows()
    rows += [{**rows[1], "model": "supernet", "kind": "supernet"}]
    rows += [{**rows[1], "model": "odd", "placement": ["fa"] * 11 + ["rwkv"]}]
    assert not {"supernet", "odd"} & set(modelled_steps(rows, layer_rows(TINY, CONTEXTS), 4))
    assert modelled_steps(rows[1:], layer_rows(TINY, CONTEXTS), 4) == {}  # without the teacher, over what?
    assert modelled_steps(rows, [], 4) == {}


def test_every_picture_is_drawn_and_names_its_lines(roofline):
    section = roofline_section(roofline)
    pictures = {picture.title: picture.svg for picture in section.pictures}
    assert all(pictures.values())
    assert {"H100", "B200", "An odd CPU"} <= set(texts(pictures["Rooflines"]))
    assert {"GDN in all layers", "window of 3 tokens"} <= set(texts(pictures["Levers on the bytes"]))
    assert {"teacher", "h8", "merge"} <= set(texts(pictures["Modelled speed-up by context"]))
    published = texts(pictures["Published speed-ups against their limit"])
    assert {"H-30", "Nemotron-H-47B", "12/26/6/4"} <= set(published)
    assert "Falcon-H1-34B" not in published  # mixers in parallel: no ratio of layers
    assert not any("mathdefault" in svg for svg in pictures.values())


def test_devices_in_words(roofline):
    (table,) = roofline_section(roofline).tables
    assert table.rows[0] == ("An odd CPU", "measured", "0.05", "10", "5", "2")
    assert table.rows[2] == ("B200", "datasheet", "2,250", "8,000", "281", "2")


def test_measured_points_stand_in_the_leaderboards_order(tables):
    (table,) = speed_section(tables).tables
    decode = [row[0] for row in table.rows if row[1] == "decode" and row[2] == "4,096"]
    assert decode == ["teacher", "h4", "h6", "h8", "sft", "merge"]
    rows = [
        row
        | {"bound_tokens_per_s": 4 * row["tokens_per_s"], "latency_p50_seconds": 0.0125}
        | {"latency_p95_seconds": 0.5, "peak_memory_bytes": 3 * 2**20, "decoder": "static caches"}
        for row in tables["throughput"].to_pylist()
    ]
    (table,) = speed_section({**tables, "throughput": to_table("throughput", rows)}).tables
    assert table.rows[0][5:8] == ("25%", "12.50", "500.00")
    assert table.rows[0][9:] == ("3", "static caches")


def test_points_say_their_figures_when_pointed_at(roofline):
    svg = roofline_section(roofline).pictures[2].svg
    titles = re.findall(r"<title>(.*?)</title>", svg)
    assert any(title.startswith("h8: ") and "at 4,096 tokens" in title for title in titles)


def test_nothing_to_show_without_rows():
    assert not any(picture.svg for picture in roofline_section({}).pictures)
    assert not any(table.rows for table in [*roofline_section({}).tables, *speed_section({}).tables])
