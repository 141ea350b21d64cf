"""The leaderboard: one row per model, from the tables of evals, throughput and checkpoints."""

import math
from collections.abc import Mapping

import pyarrow as pa

from apriel_assets.tables.schemas import to_table

Tables = Mapping[str, pa.Table]

_KIND_ORDER = ("teacher", "progressive", "sft", "merge")


def leaderboard_table(tables: Tables) -> pa.Table:
    """Return the `leaderboard` table: teacher first, then H-k by layers replaced, then fine-tuned and merged.

    A model without evals or timings yet has nulls there.

    Args:
        tables: at least `checkpoints`; `evals` and `throughput` as far as they exist.
    """
    checkpoints = _rows(tables, "checkpoints")
    checkpoints.sort(key=lambda row: (_KIND_ORDER.index(row["kind"]), row["num_replaced"], row["model"]))
    return to_table("leaderboard", [_leaderboard_row(row, tables) for row in checkpoints])


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
    if "checkpoints" not in tables:
        return []
    layers = {row["model"]: len(row["placement"]) for row in _rows(tables, "checkpoints")}
    return [_as_text(row, layers[row["model"]]) for row in leaderboard_table(tables).to_pylist()]


def speed_context(tables: Tables) -> tuple[int, int] | None:
    """Return context and batch size of the leaderboard's speeds: the longest context timed; None if none was."""
    points = {(row["context_tokens"], row["batch_size"]) for row in _rows(tables, "throughput")}
    return max(points) if points else None


def _rows(tables: Tables, name: str) -> list[dict]:
    return tables[name].to_pylist() if name in tables else []


def _leaderboard_row(checkpoint: dict, tables: Tables) -> dict:
    model = checkpoint["model"]
    row = {
        "model": model,
        "kind": checkpoint["kind"],
        "num_replaced": checkpoint["num_replaced"],
        "tokens": checkpoint["total_tokens"],
        "seconds": checkpoint["seconds"],
    }
    return row | _quality(model, tables) | _speed(model, tables)


def _quality(model: str, tables: Tables) -> dict:
    by_metric: dict[str, list[dict]] = {}
    for row in _rows(tables, "evals"):
        if row["model"] == model:
            by_metric.setdefault(row["metric"], []).append(row)
    if "accuracy" not in by_metric:
        return {}
    accuracy = by_metric["accuracy"]
    mean = _mean(accuracy, "value")
    # Problems of different tasks are drawn independently, so the half-widths of their intervals add in squares.
    below = math.hypot(*(row["value"] - row["low"] for row in accuracy)) / len(accuracy)
    above = math.hypot(*(row["high"] - row["value"] for row in accuracy)) / len(accuracy)
    quality = {
        "num_tasks": len(accuracy),
        "accuracy": mean,
        "accuracy_low": mean - below,
        "accuracy_high": mean + above,
    }
    for metric in ("reverse_kl_nats", "forward_kl_nats"):
        if metric in by_metric:
            quality[metric] = _mean(by_metric[metric], "value")
    return quality


def _speed(model: str, tables: Tables) -> dict:
    decode = [row for row in _rows(tables, "throughput") if row["phase"] == "decode"]
    timed = {(row["model"], row["context_tokens"], row["batch_size"]): row for row in decode}
    both = [key[1:] for key in timed if key[0] == model and ("teacher", *key[1:]) in timed]
    if not both:
        return {}
    point = max(both)
    own, teacher = timed[model, *point], timed["teacher", *point]
    return {
        "context_tokens": point[0],
        "decode_tokens_per_s": own["tokens_per_s"],
        "decode_speedup": own["tokens_per_s"] / teacher["tokens_per_s"],
        "modelled_decode_speedup": own["modelled_speedup"],
    }


def _mean(rows: list[dict], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)


def _as_text(row: dict, num_layers: int) -> dict[str, str]:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    accuracy = shown(row["accuracy"], ".3f")
    if row["accuracy"] is not None:
        accuracy += f" [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]"
    speedup, modelled = (
        "-" if row[key] is None else f"{row[key]:.2f}x"
        for key in ("decode_speedup", "modelled_decode_speedup")
    )
    return {
        "model": row["model"],
        "replaced": f"{row['num_replaced']} of {num_layers}",
        "accuracy": accuracy,
        "kl": shown(row["reverse_kl_nats"], ".4f"),
        "speedup": speedup,
        "modelled": modelled,
        "tokens": shown(row["tokens"], ","),
    }
