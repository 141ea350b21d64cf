"""The report: one self-contained HTML page made from result tables.

Text in, text out: the page says what the rows say and what is not there yet, and loads nothing from anywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from apriel_assets.reporting import figures
from apriel_assets.reporting.ablation_section import ablation_section
from apriel_assets.reporting.drawing import INK, PUBLISHED, toggle_class
from apriel_assets.reporting.drift_section import drift_section
from apriel_assets.reporting.layer_maps import counts_text, layer_map, mixer_legend
from apriel_assets.reporting.layers_section import layers_section
from apriel_assets.reporting.lm_eval_section import headline_cells, headline_columns, lm_eval_section
from apriel_assets.reporting.origins import origins, origins_table
from apriel_assets.reporting.posttraining_section import posttraining_section
from apriel_assets.reporting.recommendation import recommendation_section
from apriel_assets.reporting.roofline_sections import roofline_section, speed_section
from apriel_assets.reporting.search_sections import audit_section, placements_section, search_section
from apriel_assets.reporting.sections import ABSENT, Section, anchor
from apriel_assets.reporting.summary import (
    Row,
    Tables,
    leaderboard_table,
    speed_points,
    summary_columns,
    summary_rows,
    table_rows,
)
from apriel_assets.reporting.supernet_sections import (
    costs_section,
    matryoshka_section,
    supernet_names,
    supernet_section,
)
from apriel_assets.tables.published import published_rows
from apriel_assets.tables.schemas import to_table

_TEMPLATES = Path(__file__).parent / "templates"
_METRICS = {
    "accuracy": "Accuracy",
    "reverse_kl_nats": "Reverse KL, nats per token",
    "forward_kl_nats": "Forward KL, nats per token",
}
# Speed and rankings of all models; then the supernet procedure's: the result first, then what it rests on.
_SECTIONS = (
    lm_eval_section,
    layers_section,
    speed_section,
    roofline_section,
    placements_section,
    search_section,
    audit_section,
    costs_section,
    supernet_section,
    matryoshka_section,
    posttraining_section,
    ablation_section,
    drift_section,
)
# What the page is made of, but for `eval_samples`, of which it needs those of a few models.
REPORT_TABLES = (
    "audit", "audit_points", "before_after", "builds", "candidates", "checkpoints", "cost_check", "devices", "evals",
    "layer_bytes", "layer_scores", "leaderboard", "levers", "lm_evals", "mixer_costs", "placements", "probes",
    "reevals", "rl_training", "search_curve", "sharing", "supernet_curves", "throughput", "training",
)  # fmt: skip
_PICTURED = ("checkpoints", "leaderboard", "layer_scores", "probes", "training", "throughput")


def render_report(tables: Tables, *, recipe: str, provenance: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        tables: result tables of one recipe by name, as far as they exist.
        recipe: its name.
        provenance: where the numbers were made: code, libraries, device, date; shown as it is.
    """
    # Autoescape: names of models and tasks come from data.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"anchor": anchor, "toggle": toggle_class, "origins_of": partial(origins, tables)}
    checkpoints = {row["model"]: row for row in table_rows(tables, "checkpoints")}
    leaderboard = leaderboard_table(tables).to_pylist()
    places = _places(tables)
    of_harness = headline_cells(tables, [row["model"] for row in leaderboard])
    return environment.get_template("report.html.j2").render(
        recipe=recipe,
        recommended=_shown(recommendation_section(tables)),
        columns=summary_columns() | ({"places": "places"} if places else {}) | headline_columns(tables),
        summary=[
            row | {"places": places.get(row["model"], ABSENT)} | of_harness[row["model"]]
            for row in summary_rows(tables)
        ],
        toggles=[*(row["model"] for row in leaderboard), PUBLISHED],
        pictured=_PICTURED,
        searched=any(table_rows(tables, name) for name in ("candidates", "placements")),
        points=speed_points(tables),
        waiting=[row["model"] for row in leaderboard if None in (row["accuracy"], row["decode_speedup"])],
        maps=[
            (row["model"], counts_text(placement), _themed(layer_map(placement)))
            for row in leaderboard
            for placement in [checkpoints[row["model"]]["placement"]]
        ],
        legend=[
            (_themed(square), name)
            for square, name in mixer_legend([checkpoints[row["model"]]["placement"] for row in leaderboard])
        ],
        sections=_sections(tables),
        pictures=_pictures(tables, leaderboard),
        metrics=_by_task(table_rows(tables, "evals"), [row["model"] for row in leaderboard]),
        published=[row for row in _published() if row["benchmark"] is None],
        provenance={**_flat(provenance), **_measured_with(tables)},
        builds=origins_table(tables),
    )


def _pictures(tables: Tables, leaderboard: Sequence[Row]) -> list[dict[str, str]]:
    """Return title, SVG, caption and, for an SVG that cannot be drawn yet, what it waits for."""
    checkpoints = table_rows(tables, "checkpoints")
    num_layers = len(checkpoints[0]["placement"]) if checkpoints else 0
    published = _published()
    drawn = [
        (
            "Quality against speed",
            figures.quality_against_speed(leaderboard, published),
            "Mean accuracy as a share of the teacher's, 95% interval. Blue: the teacher and H-k. Green: all others. "
            "Dotted: what no model beats in both. Crosses: published, other tasks.",
            "accuracy and decode speed of at least one model",
        ),
        (
            "Quality over layers replaced",
            figures.quality_over_replaced(leaderboard, published, num_layers),
            "Accuracy as a share of the teacher's; intervals are of the model's own accuracy.",
            "accuracy of the teacher and one converted model",
        ),
        (
            "Which layers matter",
            figures.rankings(
                table_rows(tables, "layer_scores"), table_rows(tables, "probes"), _newly_replaced(checkpoints)
            ),
            "Every panel in leave-one-out order, easiest left: where probes agree, bars rise to the right."
            " Numbers are each panel's own ranks. Orange: replaced at this step. A gap: replaced before.",
            "layer scores",
        ),
        (
            "Training",
            figures.loss_curves(_training(tables)),
            "Loss per step of every stage. Fine-tuning may have another loss: compare within a curve.",
            "a trained checkpoint",
        ),
        (
            "Decode speed by context",
            figures.speed_by_context(table_rows(tables, "throughput")),
            "Over the teacher at the same context and batch. Dashed: what the bytes moved per step allow.",
            "throughput of the teacher and one converted model",
        ),
    ]
    keys = ("title", "svg", "caption", "needs")
    return [{**dict(zip(keys, entry, strict=True)), "svg": _themed(entry[1])} for entry in drawn]


def _training(tables: Tables) -> list[Row]:
    """Return the curves of models with one placement; a supernet's, which jumps, is in its own section."""
    supernets = supernet_names(tables)
    rows = table_rows(tables, "training")
    return [row for row in rows if row["model"] not in supernets] or rows


def _sections(tables: Tables) -> list[Section]:
    """Return the sections that have something to show, of that only what they have."""
    shown = [_shown(make(tables)) for make in _SECTIONS]
    return [section for section in shown if section is not None]


def _shown(section: Section) -> Section | None:
    pictures = [replace(picture, svg=_themed(picture.svg)) for picture in section.pictures if picture.svg]
    tables = [table for table in section.tables if table.rows]
    return replace(section, pictures=pictures, tables=tables) if pictures or tables else None


def _places(tables: Tables) -> dict[str, str]:
    """Return the places that the paired tests leave each model, best to worst."""
    return {
        row["model"]: f"{row['place_best']}"
        + (f"-{row['place_worst']}" if row["place_worst"] != row["place_best"] else "")
        for row in table_rows(tables, "leaderboard")
        if row["place_best"] is not None
    }


def _themed(svg: str) -> str:
    """Let text and axes take the page's colour, light or dark."""
    return svg.replace(INK, "currentColor")


def _newly_replaced(checkpoints: Sequence[Row]) -> dict[str, set[int]]:
    """Return the layers that each progressive step replaced; the first step's go by "leave-one-out"."""
    placements = {row["model"]: row["placement"] for row in checkpoints}
    kinds = {row["model"]: row["kind"] for row in checkpoints}
    found: dict[str, set[int]] = {}
    for row in checkpoints:
        if row["kind"] != "progressive" or row["parent"] not in placements:
            continue
        before = placements[row["parent"]]
        changed = {layer for layer, mixer in enumerate(row["placement"]) if mixer != before[layer]}
        found["leave-one-out" if kinds[row["parent"]] == "teacher" else row["model"]] = changed
    return found


def _by_task(evals: Sequence[Row], order: Sequence[str]) -> list[dict[str, Any]]:
    """Return one table per metric: a row a model, a column a task."""
    found = []
    known = list(_METRICS)
    metrics = {row["metric"] for row in evals}
    for metric in sorted(
        metrics, key=lambda name: (known.index(name) if name in known else len(known), name)
    ):
        rows = [row for row in evals if row["metric"] == metric]
        cells: dict[str, dict[str, str]] = {}
        for row in sorted(
            rows, key=lambda row: order.index(row["model"]) if row["model"] in order else len(order)
        ):
            cells.setdefault(row["model"], {})[row["task"]] = _with_interval(row)
        tasks = list(dict.fromkeys(row["task"] for row in rows))
        found.append({"title": _METRICS.get(metric, metric), "tasks": tasks, "cells": cells})
    return found


def _with_interval(row: Row) -> str:
    if row["low"] is None or row["high"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _measured_with(tables: Tables) -> dict[str, str]:
    """Return the settings that the rows themselves carry."""
    evals, throughput = table_rows(tables, "evals"), table_rows(tables, "throughput")
    found = {
        "problems per task": {row["num_problems"] for row in evals},
        "seed of the problem draw": {row["seed"] for row in evals},
        "speed measured on": {row["device"] for row in throughput},
    }
    return {name: ", ".join(sorted(map(str, values))) for name, values in found.items() if values}


def _published() -> list[Row]:
    return to_table("published", published_rows()).to_pylist()


def _flat(provenance: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: ", ".join(f"{key} {inner}" for key, inner in value.items())
        if isinstance(value, Mapping)
        else str(value)
        for name, value in provenance.items()
    }
