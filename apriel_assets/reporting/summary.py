"""The leaderboard: one row per model, from the tables of evals, throughput and checkpoints."""

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from apriel_assets.evaluation.ranking import Place
from apriel_assets.tables.schemas import to_table

Tables = Mapping[str, pa.Table]
Row = dict[str, Any]

_KINDS = ("teacher", "progressive", "sft", "merge", "placement", "release")
SUMMARY_TABLES = (
    "checkpoints",
    "evals",
    "throughput",
    "audit",
    "candidates",
)  # what the printed summary reads
_SOURCES = ("supernet", "matryoshka")  # what models are cut from; not models that anybody runs
_ABSENT = "-"


def leaderboard_table(tables: Tables, places: Mapping[str, Place] | None = None) -> pa.Table:
    """Return the `leaderboard` table: teacher first, then H-k by layers replaced, then fine-tuned, merged, each
    budget's placement, and what is released.

    A model without evals or timings yet has nulls there.

    Args:
        tables: `checkpoints`, `evals` and `throughput`, as far as they exist.
        places: by model, from the paired tests; null where absent.
    """
    throughput = table_rows(tables, "throughput")
    evals: dict[str, list[Row]] = {}
    for row in table_rows(tables, "evals"):
        evals.setdefault(row["model"], []).append(row)
    rows = []
    models = [row for row in table_rows(tables, "checkpoints") if row["kind"] not in _SOURCES]
    for checkpoint in sorted(models, key=_position):
        row = {name: checkpoint[name] for name in ("model", "kind", "num_replaced", "seconds")}
        row["tokens"] = checkpoint["total_tokens"]
        if (place := (places or {}).get(checkpoint["model"])) is not None:
            row |= {"place_best": place.best, "place_worst": place.worst}
        rows.append(
            row | _quality(evals.get(checkpoint["model"], [])) | _speed(checkpoint["model"], throughput)
        )
    return to_table("leaderboard", rows)


def summary_columns() -> dict[str, str]:
    """Return the columns of the printed table and their headings."""
    return {
        "model": "model",
        "replaced": "replaced",
        "accuracy": "accuracy (95%)",
        "kl": "reverse KL",
        "speedup": "decode",
        "modelled": "modelled",
        "tokens": "tokens",
    }


def summary_rows(tables: Tables) -> list[dict[str, str]]:
    """Return the leaderboard as text, ready to print; what was not measured yet is a dash."""
    layers = {row["model"]: len(row["placement"]) for row in table_rows(tables, "checkpoints")}
    return [_as_text(row, layers[row["model"]]) for row in leaderboard_table(tables).to_pylist()]


def audit_lines(tables: Tables) -> list[str]:
    """Return one line on how far the placements' scores can be trusted; none without an audit."""
    audit = {row["estimator"]: row for row in table_rows(tables, "audit")}
    ranked = next(
        (row["estimator"] for row in table_rows(tables, "candidates") if row["budget"] is None), None
    )
    if ranked not in audit:
        return []
    parts = []
    for name in dict.fromkeys((ranked, "snis")):
        row = audit[name]
        if row["spearman"] is None:
            parts.append(f"{name} gives all the same value")
        else:
            interval = f"[{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]"
            parts.append(f"{name} {row['spearman']:.2f} {interval}")
    count = audit[ranked]["num_placements"]
    return [f"Audit    Spearman with generated accuracy over {count} placements: {'; '.join(parts)}"]


def speed_points(tables: Tables) -> list[tuple[int, int]]:
    """Return contexts and batch sizes of the leaderboard's speeds: one pair, unless a run is partial."""
    points = {(row["context_tokens"], row["batch_size"]) for row in leaderboard_table(tables).to_pylist()}
    return sorted(point for point in points if None not in point)


def table_rows(tables: Tables, name: str) -> list[Row]:
    """Return a table's rows; none if it is not there yet."""
    return tables[name].to_pylist() if name in tables else []


def _position(checkpoint: Row) -> tuple[int, int, str]:
    kind = checkpoint["kind"]
    return (
        _KINDS.index(kind) if kind in _KINDS else len(_KINDS),
        checkpoint["num_replaced"],
        checkpoint["model"],
    )


def _quality(evals: list[Row]) -> Row:
    by_metric: dict[str, list[Row]] = {}
    for row in evals:
        by_metric.setdefault(row["metric"], []).append(row)
    quality: Row = {}
    for metric in ("reverse_kl_nats", "forward_kl_nats"):
        if metric in by_metric:
            quality[metric] = _mean(by_metric[metric])
    if accuracy := by_metric.get("accuracy"):
        mean = _mean(accuracy)
        # Problems of different tasks are drawn independently, so the half-widths of their intervals add in
        # squares.
        below = math.hypot(*(row["value"] - row["low"] for row in accuracy)) / len(accuracy)
        above = math.hypot(*(row["high"] - row["value"] for row in accuracy)) / len(accuracy)
        quality |= {"num_tasks": len(accuracy), "accuracy": mean}
        quality |= {"accuracy_low": mean - below, "accuracy_high": mean + above}
    return quality


def _speed(model: str, throughput: list[Row]) -> Row:
    """Return decode speed at the longest context (then batch) at which model and teacher were both timed."""
    timed = {
        (row["model"], row["context_tokens"], row["batch_size"]): row
        for row in throughput
        if row["phase"] == "decode"
    }
    both = [point for name, *point in timed if name == model and ("teacher", *point) in timed]
    if not both:
        return {}
    point = max(both)
    own, teacher = timed[(model, *point)], timed[("teacher", *point)]
    return {
        "context_tokens": point[0],
        "batch_size": point[1],
        "decode_tokens_per_s": own["tokens_per_s"],
        "decode_speedup": speedup(own, teacher),
        "modelled_decode_speedup": own["modelled_speedup"],
    }


def speedup(own: Row, teacher: Row) -> float:
    """Return a timed point's speed over the teacher's: as timed in turn with it, else by what both were timed at."""
    return own["tokens_per_s"] / teacher["tokens_per_s"] if own["speedup"] is None else own["speedup"]


def _mean(rows: list[Row]) -> float:
    return sum(row["value"] for row in rows) / len(rows)


def _as_text(row: Row, num_layers: int) -> dict[str, str]:
    accuracy = _shown(row["accuracy"], ".3f")
    if row["accuracy"] is not None:
        accuracy += f" [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]"
    return {
        "model": row["model"],
        "replaced": f"{row['num_replaced']} of {num_layers}",
        "accuracy": accuracy,
        "kl": _shown(row["reverse_kl_nats"], ".4f"),
        "speedup": _shown(row["decode_speedup"], ".2f", "x"),
        "modelled": _shown(row["modelled_decode_speedup"], ".2f", "x"),
        "tokens": _shown(row["tokens"], ","),
    }


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return _ABSENT if value is None else format(value, form) + unit
