"""The report: one self-contained HTML page made from result tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from apriel_assets.reporting import figures
from apriel_assets.reporting.summary import (
    Tables,
    leaderboard_table,
    speed_context,
    summary_columns,
    summary_rows,
)
from apriel_assets.tables.published import published_rows
from apriel_assets.tables.schemas import to_table

_TEMPLATE = "report.html.j2"


def render_report(tables: Tables, *, recipe: str, provenance: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        tables: result tables of one recipe by name, as far as they exist.
        recipe: its name.
        provenance: where the numbers were made: code, libraries, device.
    """
    # Autoescape: task names, model names and prompts come from data.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    evals = _rows(tables, "evals")
    return environment.get_template(_TEMPLATE).render(
        recipe=recipe,
        summary=summary_rows(tables),
        columns=summary_columns(),
        point=speed_context(tables),
        figures=_figures(tables),
        tasks=list(dict.fromkeys(row["task"] for row in evals if row["metric"] == "accuracy")),
        per_task=_per_task(evals),
        provenance=_flat(provenance),
    )


def _rows(tables: Tables, name: str) -> list[dict]:
    return tables[name].to_pylist() if name in tables else []


def _figures(tables: Tables) -> list[dict[str, str]]:
    checkpoints = _rows(tables, "checkpoints")
    leaderboard = leaderboard_table(tables).to_pylist() if checkpoints else []
    published = to_table("published", published_rows()).to_pylist()
    placements = {row["model"]: row["placement"] for row in checkpoints}
    order = [row["model"] for row in leaderboard]
    num_layers = len(next(iter(placements.values()), ()))
    drawn = [
        (
            "Quality against speed",
            figures.quality_against_speed(leaderboard, published),
            "Each checkpoint with its 95% interval; crosses are the published H1 figures, on other tasks.",
            "evals and throughput of at least one model",
        ),
        (
            "Quality over the share replaced",
            figures.quality_over_replaced(leaderboard, published, num_layers),
            "Accuracy as a share of the teacher's, here and as published.",
            "evals of the teacher and one H-k",
        ),
        (
            "Layer maps",
            figures.layer_map({model: placements[model] for model in order if model != "teacher"}),
            "Ten layers a row, from layer 0. Filled: full attention kept.",
            "a converted checkpoint",
        ),
        (
            "Which layers matter",
            figures.rankings(_rows(tables, "layer_scores"), _rows(tables, "probes")),
            "Leave-one-out: what the intact teacher loses. Probes: the loss after a few steps with one more layer "
            "swapped, in the checkpoint before the step. A missing bar is a layer already replaced.",
            "layer scores",
        ),
        (
            "Training",
            figures.loss_curves(_rows(tables, "training")),
            "Reverse KL to the teacher (sft: cross-entropy on reference traces).",
            "a trained checkpoint",
        ),
        (
            "Decode speed by context",
            figures.speed_by_context(_rows(tables, "throughput")),
            "Speed-up over the teacher on the same device in the same run of the recipe.",
            "throughput of the teacher and one H-k",
        ),
    ]
    return [dict(zip(("title", "svg", "caption", "needs"), entry, strict=True)) for entry in drawn]


def _per_task(evals: list[dict]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for row in evals:
        if row["metric"] == "accuracy":
            text = f"{row['value']:.3f} [{row['low']:.2f}, {row['high']:.2f}]"
            found.setdefault(row["model"], {})[row["task"]] = text
    return found


def _flat(provenance: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            flat[name] = ", ".join(f"{key} {inner}" for key, inner in value.items())
        else:
            flat[name] = str(value)
    return flat
