"""A home as a run would leave it, made up so that every worked query has an answer that is known."""

import pyarrow as pa

from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.eval_rows import eval_rows
from apriel_assets.evaluation.ranking import accuracy_places
from apriel_assets.reporting.summary import leaderboard_table
from apriel_assets.tables.schemas import to_table
from resources.lake import Lake
from tests.evaluation.sample_rows import sample_rows, samples

TASKS = ("copy", "recall")
NUM_PROBLEMS = 40
# model: kind, parent, layers replaced, wrong answers by task, decode tokens/s, KL
MODELS = {
    "teacher": ("teacher", None, 0, (0, 0), 100.0, 0.0),
    "h6": ("progressive", "teacher", 6, (1, 2), 180.0, 0.1),
    "h7": ("progressive", "h6", 7, (2, 20), 220.0, 0.3),
    "sft": ("sft", "h7", 7, (2, 8), 210.0, 0.2),
    "merge": ("merge", "sft", 7, (2, 9), 200.0, 0.2),
}


def write_home(path, recipe="quick"):
    """Fill a lake; return it."""
    lake = Lake(path)
    checkpoints, evals, answers, speeds = [], [], [], []
    for number, (model, (kind, parent, replaced, wrong, speed, kl)) in enumerate(MODELS.items()):
        row = {"model": model, "kind": kind, "parent": parent, "placement": ["fa"] * 12, "seconds": 60.0}
        checkpoints.append({**row, "num_replaced": replaced, "total_tokens": 1000 * number})
        point = {"phase": "decode", "context_tokens": 8192, "batch_size": 8}
        speeds.append({"model": model, "tokens_per_s": speed, "modelled_speedup": speed / 100, **point})
        for task, mistakes in zip(TASKS, wrong, strict=True):
            verdicts = [0] * mistakes + [1] * (NUM_PROBLEMS - mistakes)
            own = samples(sample_rows(model, verdicts, task=task, kl=kl))
            answers.append(own)
            evals.append(eval_rows(own, EvalConfig()))
            build = {"asset": f"evals/{model}", "partition": task, "code": "abc123", "device": "An odd CPU"}
            tables = {"evals": evals[-1], "eval_samples": own, "builds": to_table("builds", [build])}
            lake.publish(
                tables, recipe=recipe, asset=f"evals/{model}", partition=task, version=f"{model}-{task}"
            )
        for asset, seconds in ((f"h1/probes/{model}", 30.0), (f"h1/{model}", 90.0)):
            build = {"asset": asset, "seconds": seconds, "gpu_seconds": 0.0}
            lake.publish(
                {"builds": to_table("builds", [build])}, recipe=recipe, asset=asset, version=f"v-{asset}"
            )
    tables = {
        "checkpoints": to_table("checkpoints", checkpoints),
        "throughput": to_table("throughput", speeds),
        "evals": pa.concat_tables(evals),
    }
    board = leaderboard_table(tables, accuracy_places(pa.concat_tables(answers)))
    published = {name: tables[name] for name in ("checkpoints", "throughput")}
    published |= {"leaderboard": board, "reevals": _reevals()}
    lake.publish(published, recipe=recipe, asset="rest", version="v-rest")
    return lake


def _reevals():
    common = {"model": "h6", "task": "recall", "metric": "accuracy", "low": 0.9, "high": 1.0}
    values = {"2026-01-01": (0.95, 0.95), "2026-01-02": (0.95, 0.95), "2026-01-03": (0.85, 0.95)}
    return to_table(
        "reevals",
        [
            {**common, "date": date, "value": value, "last_value": last, "drifted": value < 0.9}
            for date, (value, last) in values.items()
        ],
    )
