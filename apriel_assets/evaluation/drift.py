"""Is a model still what it was? A new result against the last one, on the same problems.

The problems, the weights and the seed are the same, so nothing but the software and the device can move a figure: no
interval is needed to call two unequal values different. The last result's interval says whether it matters.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from apriel_assets.tables.schemas import to_table

Row = Mapping[str, Any]

# Sums in another order: fp32 has 24 significant bits, and a mean is over thousands of values.
_RELATIVE_TOLERANCE = 1e-4
_ABSOLUTE_TOLERANCE = 1e-6


def reeval_rows(date: str, rows: Iterable[Row], last: Sequence[Row]) -> pa.Table:
    """Return the `reevals` table of one model: each new figure beside the last result.

    Args:
        date: of the new figures.
        rows: `evals` rows, new, with `checkpoint_version` and `settings`.
        last: earlier results, `reevals` or `evals` rows with the same two; of those with equal ones the latest counts.
            One without a date is of `evals`, which are made once for equal ones, before they are made again.
    """
    latest: dict[tuple[str, ...], Row] = {}
    for row in sorted(last, key=lambda row: row.get("date") or ""):
        latest[_compared(row)] = row
    kept = (
        "model",
        "task",
        "metric",
        "value",
        "low",
        "high",
        "num_problems",
        "checkpoint_version",
        "settings",
    )
    found = []
    for row in rows:
        before = latest.get(_compared(row))
        found.append({key: row[key] for key in kept} | {"date": date, "drifted": is_outside(row, before)})
        if before is not None:
            found[-1] |= {f"last_{key}": before[key] for key in ("value", "low", "high")}
            found[-1]["last_date"] = before.get("date")
    return to_table("reevals", found)


def _compared(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in ("model", "task", "metric", "checkpoint_version", "settings"))


def is_outside(row: Row, last: Row | None) -> bool:
    """Return whether a value lies outside of the last result's interval, by more than rounding."""
    if last is None or last["low"] <= row["value"] <= last["high"]:
        return False
    nearest = last["low"] if row["value"] < last["low"] else last["high"]
    return not math.isclose(row["value"], nearest, rel_tol=_RELATIVE_TOLERANCE, abs_tol=_ABSOLUTE_TOLERANCE)
