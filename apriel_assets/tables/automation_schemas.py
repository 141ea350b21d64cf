"""Columns of the tables that automation fills: re-evaluations and real generation of candidates."""

import pyarrow as pa

_INT, _FLOAT, _TEXT, _BOOL = pa.int64(), pa.float64(), pa.string(), pa.bool_()

AUTOMATION_TABLES: dict[str, dict[str, tuple[pa.DataType, str]]] = {
    "reevals": {
        "date": (_TEXT, "when the schedule asked for it, UTC, ISO 8601"),
        "model": (_TEXT, "a shipped model, as in evals"),
        "task": (_TEXT, "task name"),
        "metric": (_TEXT, "accuracy, reverse_kl_nats or forward_kl_nats"),
        "value": (_FLOAT, "mean over problems (accuracy) or completion tokens (KL), the problems of evals"),
        "low": (_FLOAT, "lower end of the 95% bootstrap interval over problems"),
        "high": (_FLOAT, "upper end of the 95% bootstrap interval over problems"),
        "num_problems": (_INT, "problems evaluated"),
        "checkpoint_version": (_TEXT, "data version of the checkpoint, as in the provenance of its artifact"),
        "settings": (
            _TEXT,
            "hash of all else that decides a figure: teacher, placement, seed, problems, eval settings",
        ),
        "last_date": (
            _TEXT,
            "of the result of equal checkpoint and settings that it is held against (null: the row of evals)",
        ),
        "last_value": (_FLOAT, "that result (null: there is none)"),
        "last_low": (_FLOAT, "lower end of its interval"),
        "last_high": (_FLOAT, "upper end of its interval"),
        "drifted": (_BOOL, "value lies outside of the last result's interval"),
    },
    "generations": {
        "budget": (_FLOAT, "most that the placement may cost, all-FA = 1"),
        "placement": (pa.list_(pa.string()), "mixer of each layer, first layer first"),
        "cost": (_FLOAT, "by the cost model, all-FA = 1"),
        "score_rank": (_INT, "place by the score that the search ranks by, 0 = best"),
        "value": (_FLOAT, "that score, higher = better"),
        "ess_share": (_FLOAT, "effective sample size over completions: how far the score can be trusted"),
        "generated_accuracy": (_FLOAT, "share of problems that its greedy completions answer"),
        "generated_low": (_FLOAT, "lower end of the 95% bootstrap interval over problems"),
        "generated_high": (_FLOAT, "upper end of the 95% bootstrap interval over problems"),
        "num_problems": (_INT, "problems put to it"),
        "generated_rank": (_INT, "place by generated accuracy, 0 = best"),
        "chosen": (_BOOL, "it is what the budget's finalists chose"),
    },
}
