"""From each problem's row to a task's figures: which columns make a metric, and its mean with an interval."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from apriel_assets.evaluation.bootstrap import percentile_interval, resampled_means
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.tables.schemas import to_table

# Metric: its column in `eval_samples`, and the column of weights (None: every problem counts alike).
METRICS: Mapping[str, tuple[str, str | None]] = {
    "accuracy": ("correct", None),
    "reverse_kl_nats": ("reverse_kl_nats", "trace_tokens"),
    "forward_kl_nats": ("forward_kl_nats", "trace_tokens"),
}


def eval_rows(samples: pa.Table, config: EvalConfig) -> pa.Table:
    """Return the `evals` rows of one model's `eval_samples` on one task; a metric that was not measured has none.

    Args:
        samples: `[problems]`, at least one.
        config: confidence and resamples of the intervals. Their seed is that of the problem draw.
    """
    names = ("model", "task", "seed")
    of = {name: samples.column(name)[0].as_py() for name in names}
    rows = []
    for metric in METRICS:
        values, sizes = metric_values(samples, metric)
        if np.isnan(values).any():
            continue
        sums = values * sizes
        means = resampled_means(sums, sizes, config.resamples, np.random.default_rng(of["seed"]))
        low, high = percentile_interval(means, config.confidence)
        row = {**of, "metric": metric, "value": float(sums.sum() / sizes.sum()), "low": low, "high": high}
        rows.append(row | {"num_problems": samples.num_rows})
    return to_table("evals", rows)


def metric_values(samples: pa.Table, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return each problem's value and weight, `[problems]` fp64; a value that was not measured is NaN."""
    column, weight = METRICS[metric]
    values = np.array(samples.column(column).to_pylist(), dtype=np.float64)
    if weight is None:
        return values, np.ones(len(values))
    return values, np.array(samples.column(weight).to_pylist(), dtype=np.float64)
