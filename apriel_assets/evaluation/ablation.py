"""Rows of the table `ablations`: a variant's model against the one that it is a variant of."""

from typing import Any

import pyarrow as pa

from apriel_assets.errors import UserError
from apriel_assets.evaluation.comparison import compare


def ablation_rows(model: str, own: pa.Table, base_model: str, base: pa.Table) -> list[dict[str, Any]]:
    """Return a row per metric over all tasks and per task; none if the two have no problem in common.

    Args:
        model: name of the variant's model in the rows.
        own: its `eval_samples`.
        base_model: name of what it is compared with.
        base: the `eval_samples` of that.
    """
    try:
        found = compare([(own, base)])
    except UserError:  # another seed or other tasks: a difference, but not one on the same problems
        return []
    sides = {"a": model, "b": base_model, None: None}
    return [
        {
            "model": model,
            "base_model": base_model,
            "task": row.task,
            "metric": row.metric,
            "num_problems": row.num_problems,
            "num_differing": row.num_differing,
            "value": row.a,
            "base_value": row.b,
            "difference": row.difference,
            "low": row.low,
            "high": row.high,
            "p_value": row.p_value,
            "better": sides[row.better],
            "could_hide": row.could_hide,
        }
        for row in found
    ]
