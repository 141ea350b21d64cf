"""Columns of the tables that tasks of the lm-evaluation-harness fill."""

import pyarrow as pa

_INT, _FLOAT, _TEXT, _BOOL = pa.int64(), pa.float64(), pa.string(), pa.bool_()

LM_EVAL_TABLES: dict[str, dict[str, tuple[pa.DataType, str]]] = {
    "lm_evals": {
        "model": (_TEXT, "as in evals"),
        "placement": (pa.list_(pa.string()), "mixer of each layer, first layer first"),
        "asked": (_TEXT, "task or group of the recipe that the row comes from"),
        "task": (_TEXT, "task of the harness, or the group over its tasks"),
        "metric": (_TEXT, "metric's name in the harness, e.g. acc, exact_match, word_perplexity"),
        "filter": (
            _TEXT,
            "how the answer was taken from the text, where the task has several ways; else none",
        ),
        "num_fewshot": (_INT, "examples in the prompt (null: a group whose tasks differ)"),
        "value": (_FLOAT, "the metric over all samples"),
        "stderr": (_FLOAT, "its standard error by the harness (null: it gives none)"),
        "low": (_FLOAT, "value - 1.96 stderr"),
        "high": (_FLOAT, "value + 1.96 stderr"),
        "num_samples": (_INT, "documents answered"),
        "higher_is_better": (_BOOL, "null: the harness does not say"),
        "task_version": (
            _TEXT,
            "the task's version in the harness: figures of different ones do not compare",
        ),
        "harness_version": (_TEXT, "version of lm-eval"),
        "seed": (_INT, "of the choice of examples and of sampled generation"),
    },
    "lm_eval_samples": {
        "model": (_TEXT, "as in evals"),
        "placement": (pa.list_(pa.string()), "mixer of each layer, first layer first"),
        "asked": (_TEXT, "as in lm_evals"),
        "task": (_TEXT, "task of the harness"),
        "filter": (_TEXT, "as in lm_evals"),
        "doc_id": (_INT, "number of the document in the task's data"),
        "doc_hash": (_TEXT, "SHA-256 of the document: pairs the models' answers"),
        "prompt": (_TEXT, "what the model was given, examples included"),
        "continuations": (_TEXT, "continuations that were scored, JSON list (null: it generated)"),
        "target": (_TEXT, "reference answer"),
        "responses": (_TEXT, "what the model answered, JSON: texts, or log-likelihoods in nats"),
        "filtered": (_TEXT, "the same after the filter, JSON"),
        "metrics": (_TEXT, "this document's metrics, JSON"),
        "seed": (_INT, "as in lm_evals"),
    },
}
