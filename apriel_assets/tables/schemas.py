"""Every result table's columns, types and meaning: the one place where a column gets its name.

The lake adds `recipe` (name), `version` (data version of the asset that wrote the row) and `variant` to each.
"""

import pyarrow as pa

from apriel_assets.tables.automation_schemas import AUTOMATION_TABLES
from apriel_assets.tables.lm_eval_schemas import LM_EVAL_TABLES
from apriel_assets.tables.record_schemas import RECORD_TABLES
from apriel_assets.tables.speed_schemas import SPEED_TABLES

TableSpec = dict[str, tuple[pa.DataType, str]]

_INT, _FLOAT, _TEXT, _BOOL = pa.int64(), pa.float64(), pa.string(), pa.bool_()

TABLES: dict[str, TableSpec] = {
    "completions": {
        "task": (_TEXT, "task name"),
        "problem_id": (_TEXT, "stable id of the problem's content"),
        "sample": (_INT, "number of the completion within its problem, from 0"),
        "prompt": (_TEXT, "prompt text"),
        "completion": (_TEXT, "sampled text"),
        "answer": (_TEXT, "reference answer"),
        "correct": (_BOOL, "verifier's verdict"),
        "finished": (_BOOL, "ended with the end-of-sequence token, not at the length limit"),
        "temperature": (_FLOAT, "sampling temperature"),
        "prompt_token_ids": (pa.list_(pa.int32()), "tokens of the prompt"),
        "token_ids": (pa.list_(pa.int32()), "sampled tokens, end-of-sequence included"),
        "log_probs": (pa.list_(pa.float32()), "teacher log-probability of each sampled token at T=1, nats"),
        "top_k_token_ids": (pa.list_(pa.list_(pa.int32())), "k likeliest tokens at each position, if asked"),
        "top_k_log_probs": (pa.list_(pa.list_(pa.float32())), "their log-probabilities at T=1, nats"),
    },
    "layer_scores": {
        "layer": (_INT, "decoder layer, from 0"),
        "metric": (_TEXT, "what ranks: kl, accuracy or lm_eval"),
        "importance": (
            _FLOAT,
            "what is lost without the layer's mixer; higher = more important; unit of the metric",
        ),
        "kl_nats": (_FLOAT, "KL(teacher without the mixer || teacher) per completion token, nats"),
        "forward_kl_nats": (_FLOAT, "KL(teacher || teacher without the mixer) per completion token, nats"),
        "accuracy": (_FLOAT, "share of problems right without the mixer (null where not measured)"),
        "rank": (_INT, "0 = least important, replaced first"),
    },
    "probes": {
        "step": (_TEXT, "H-k step that the probe prepares, e.g. h7"),
        "layer": (_INT, "decoder layer, from 0"),
        "loss_nats": (_FLOAT, "mean loss over the last quarter of the probe's steps, nats per token"),
        "first_loss_nats": (_FLOAT, "loss at the probe's first step, nats per token"),
        "steps": (_INT, "distillation steps of the probe"),
        "rank": (_INT, "0 = lowest loss, replaced first"),
    },
    "training": {
        "model": (_TEXT, "checkpoint that this run trained, e.g. h6, sft"),
        "step": (_INT, "optimiser step, from 1"),
        "loss_nats": (_FLOAT, "mean loss over the batch's valid tokens, nats per token"),
        "grad_norm": (_FLOAT, "gradient norm before clipping"),
        "learning_rate": (_FLOAT, "AdamW learning rate at this step"),
        "tokens": (_INT, "valid (loss-carrying) tokens seen so far"),
        "tokens_per_s": (_FLOAT, "all tokens of the step over its wall time"),
        "placement": (
            _TEXT,
            "named placement that the step trained (null: the model has one, or a supernet's step another each time)",
        ),
        "flops_per_s": (
            _FLOAT,
            "FLOP of the model, none counted twice, over the step's wall time; null: not known",
        ),
        "mfu": (_FLOAT, "flops_per_s over the devices' peak in bf16; null: a device without a known peak"),
    },
    "evals": {
        "model": (_TEXT, "teacher, h<k>, sft, merge, b<budget>, or a released placement's name"),
        "task": (_TEXT, "task name"),
        "metric": (_TEXT, "accuracy, reverse_kl_nats or forward_kl_nats"),
        "value": (_FLOAT, "mean over problems (accuracy) or completion tokens (KL)"),
        "low": (_FLOAT, "lower end of the 95% bootstrap interval over problems"),
        "high": (_FLOAT, "upper end of the 95% bootstrap interval over problems"),
        "num_problems": (_INT, "problems evaluated"),
        "seed": (_INT, "seed of the problem draw"),
    },
    "checkpoints": {
        "model": (_TEXT, "teacher, h<k>, sft, merge, b<budget>, or a released placement's name"),
        "kind": (
            _TEXT,
            "teacher, progressive, sft, merge, supernet, placement, matryoshka, release or dropped",
        ),
        "parent": (_TEXT, "checkpoint it started from (null for the teacher)"),
        "placement": (pa.list_(pa.string()), "mixer of each layer, first layer first"),
        "num_replaced": (_INT, "layers without full attention"),
        "loss_nats": (_FLOAT, "training loss over the last tenth of the steps, nats per token"),
        "steps": (_INT, "optimiser steps of this stage"),
        "tokens": (_INT, "loss-carrying tokens of this stage"),
        "total_tokens": (_INT, "loss-carrying tokens of this stage and all before it"),
        "seconds": (_FLOAT, "training wall time of this stage"),
        "num_parameters": (_INT, "parameters, tied ones counted once"),
        "file_bytes": (_INT, "size of the weights on disk"),
        "path": (_TEXT, "checkpoint directory, relative to the home"),
    },
    "published": {
        "source": (_TEXT, "h1 (15B teacher, 50 layers) or supernet (15B, 48 layers) or field"),
        "model": (_TEXT, "published name"),
        "num_layers": (_INT, "decoder layers"),
        "num_replaced": (_INT, "layers without full attention"),
        "placement_counts": (_TEXT, "layers of each mixer, as published"),
        "speedup": (_FLOAT, "published decode throughput over the teacher's"),
        "quality": (_FLOAT, "published mean of the evals, or share of the teacher's quality"),
        "tokens_b": (_FLOAT, "training tokens, billions"),
        "benchmark": (_TEXT, "the one eval that quality is about (null: the mean of the evals)"),
        "teacher_quality": (_FLOAT, "the teacher's figure on the same scale, where published"),
        "placement": (pa.list_(pa.string()), "mixer of each layer, first layer first, where published"),
        "kv_limit": (
            _FLOAT,
            "layers over full-attention layers: the speed-up if a step read the KV cache alone (null: not such a mix)",
        ),
        "note": (_TEXT, "what the figures leave out: range, phase, context, starting point"),
    },
    "allocations": {
        "budget": (_FLOAT, "most that a placement may cost, all-FA = 1"),
        "counts": (_TEXT, "layers of each mixer, JSON"),
        "cost": (_FLOAT, "sum of count * cost of the mixer / layers, all-FA = 1"),
        "pareto": (_BOOL, "no other allocation within the budget dominates it"),
    },
    "candidates": {
        "budget": (_FLOAT, "budget that the search was for (null: scored for the audit)"),
        "placement": (pa.list_(pa.string()), "mixer of each layer, first layer first"),
        "cost": (_FLOAT, "by the cost model, all-FA = 1"),
        "estimator": (_TEXT, "the estimator that ranked"),
        "value": (_FLOAT, "its value; higher = better"),
        "low": (_FLOAT, "lower end of its 95% bootstrap interval over problems"),
        "high": (_FLOAT, "upper end of its 95% bootstrap interval over problems"),
        "reliable": (_BOOL, "false: the estimator asked for could not be trusted here"),
        "ess": (_FLOAT, "effective sample size of the weights, completions"),
        "ess_share": (_FLOAT, "ess over the number of completions"),
        "ois": (_FLOAT, "mean of weight * correct"),
        "ois_low": (_FLOAT, "lower end of its interval"),
        "ois_high": (_FLOAT, "upper end of its interval"),
        "ois_clipped": (_FLOAT, "mean of clipped weight * correct"),
        "ois_clipped_low": (_FLOAT, "lower end of its interval"),
        "ois_clipped_high": (_FLOAT, "upper end of its interval"),
        "snis": (_FLOAT, "sum of weight * correct over sum of weights"),
        "snis_low": (_FLOAT, "lower end of its interval"),
        "snis_high": (_FLOAT, "upper end of its interval"),
        "reverse_kl_nats": (_FLOAT, "KL(candidate || teacher) per token of the stored completions, nats"),
        "log_q_nats": (_FLOAT, "mean log-probability of a stored token under the candidate, nats"),
        "exact_match": (_FLOAT, "share of correct completions whose every token is the candidate's argmax"),
        "token_match": (_FLOAT, "share of stored tokens that are the candidate's argmax"),
        "num_completions": (_INT, "stored completions scored"),
        "num_problems": (_INT, "problems that they answer"),
    },
    "search_curve": {
        "budget": (_FLOAT, "most that a placement may cost, all-FA = 1"),
        "strategy": (_TEXT, "beam, surrogate, random or exhaustive"),
        "candidates": (_INT, "distinct placements scored so far"),
        "seconds": (_FLOAT, "since the search began"),
        "best_value": (_FLOAT, "best value so far"),
        "best_low": (_FLOAT, "lower end of its interval"),
        "best_high": (_FLOAT, "upper end of its interval"),
    },
    "placements": {
        "budget": (_FLOAT, "most that a placement may cost, all-FA = 1"),
        "name": (_TEXT, "name that the matryoshka keeps it under (null: a runner-up)"),
        "rank": (_INT, "0 = chosen"),
        "placement": (pa.list_(pa.string()), "mixer of each layer, first layer first"),
        "cost": (_FLOAT, "by the cost model, all-FA = 1"),
        "value": (_FLOAT, "the estimator's value"),
        "low": (_FLOAT, "lower end of its interval"),
        "high": (_FLOAT, "upper end of its interval"),
        "generated_accuracy": (_FLOAT, "of real generation on held-out problems (null: not generated)"),
        "generated_low": (_FLOAT, "lower end of its 95% interval"),
        "generated_high": (_FLOAT, "upper end of its 95% interval"),
        "chosen": (_BOOL, "the placement that this budget ships"),
        "strategy": (_TEXT, "how it was found"),
    },
    "audit": {
        "estimator": (_TEXT, "column of `candidates`"),
        "pearson": (_FLOAT, "correlation with generated accuracy over the audited placements"),
        "spearman": (_FLOAT, "rank correlation with generated accuracy"),
        "spearman_low": (_FLOAT, "lower end of its 95% bootstrap interval over placements"),
        "spearman_high": (_FLOAT, "upper end of its 95% bootstrap interval over placements"),
        "bias": (_FLOAT, "mean of estimate - generated accuracy (null where units differ)"),
        "num_placements": (_INT, "placements audited"),
    },
    "audit_points": {
        "placement": (pa.list_(pa.string()), "mixer of each layer, first layer first"),
        "estimator": (_TEXT, "column of `candidates`"),
        "estimate": (_FLOAT, "its value"),
        "generated_accuracy": (_FLOAT, "of real generation on held-out problems"),
        "generated_low": (_FLOAT, "lower end of its 95% interval"),
        "generated_high": (_FLOAT, "upper end of its 95% interval"),
        "num_problems": (_INT, "problems generated for"),
    },
    "supernet_curves": {
        "model": (_TEXT, "supernet"),
        "step": (_INT, "optimiser steps done"),
        "probe": (_TEXT, "all_<mixer>, random_<n>, or mixer_<name> for its output's error"),
        "placement": (pa.list_(pa.string()), "mixer of each layer (null for mixer_<name>)"),
        "kl_nats": (_FLOAT, "KL(student || teacher) per token of a fixed held-out batch, nats"),
        "output_error": (
            _FLOAT,
            "squared error of the mixers' outputs over full attention's, mean over layers",
        ),
    },
    "sharing": {
        "placement": (_TEXT, "named placement"),
        "parameters": (_INT, "parameters that it runs"),
        "added_bytes": (_INT, "bytes that no other named placement needs"),
        "shared_share": (_FLOAT, "parameters used by every named placement, over all of the checkpoint"),
        "total_parameters": (_INT, "parameters of the checkpoint"),
    },
    "leaderboard": {
        "model": (_TEXT, "teacher, h<k>, sft, merge, b<budget>, or a released placement's name"),
        "kind": (
            _TEXT,
            "teacher, progressive, sft, merge, supernet, placement, matryoshka, release or dropped",
        ),
        "num_replaced": (_INT, "layers without full attention"),
        "num_tasks": (_INT, "tasks that the accuracy is the mean of"),
        "accuracy": (_FLOAT, "mean over tasks of the generated accuracy"),
        "accuracy_low": (_FLOAT, "lower end of its 95% interval, tasks taken as independent"),
        "accuracy_high": (_FLOAT, "upper end of its 95% interval"),
        "reverse_kl_nats": (_FLOAT, "mean over tasks of KL(model || teacher) per completion token, nats"),
        "forward_kl_nats": (_FLOAT, "mean over tasks of KL(teacher || model) per completion token, nats"),
        "context_tokens": (_INT, "longest context at which model and teacher were both timed"),
        "batch_size": (_INT, "sequences at once, there"),
        "decode_tokens_per_s": (_FLOAT, "measured there, all sequences together"),
        "decode_speedup": (_FLOAT, "measured there, over the teacher, where possible in turn with it"),
        "modelled_decode_speedup": (_FLOAT, "decode bytes of the all-FA model over its own, there"),
        "tokens": (_INT, "loss-carrying tokens of this checkpoint's training and all before it"),
        "seconds": (_FLOAT, "training wall time of its own stage"),
        "place_best": (_INT, "best place by accuracy that the paired tests leave open, 1 = first"),
        "place_worst": (_INT, "worst place that they leave open (the same: told from all other models)"),
    },
    "ablations": {
        "model": (_TEXT, "a variant's model, e.g. forward_kl/h9"),
        "base_model": (_TEXT, "the recipe's own of that name, e.g. h9"),
        "task": (_TEXT, "task name, or all tasks: the mean over them"),
        "metric": (_TEXT, "accuracy or reverse_kl_nats"),
        "num_problems": (_INT, "problems that both answered"),
        "num_differing": (_INT, "problems that the two answered differently"),
        "value": (_FLOAT, "of the variant's model"),
        "base_value": (_FLOAT, "of the recipe's own model"),
        "difference": (_FLOAT, "value - base_value, paired by problem"),
        "low": (_FLOAT, "lower end of its 95% bootstrap interval over problems"),
        "high": (_FLOAT, "upper end of its 95% bootstrap interval over problems"),
        "p_value": (_FLOAT, "sign-flip test; of single tasks adjusted for their number (Holm)"),
        "better": (_TEXT, "which of the two is, by interval and test (null: no detectable difference)"),
        "could_hide": (_FLOAT, "without a detectable difference, how large one may still be"),
    },
    **SPEED_TABLES,
    **RECORD_TABLES,
    **LM_EVAL_TABLES,
    **AUTOMATION_TABLES,
}

LAKE_COLUMNS: TableSpec = {
    "recipe": (_TEXT, "recipe that the row belongs to"),
    "version": (_TEXT, "data version of the asset that wrote the row"),
    "variant": (_TEXT, "variant of the recipe that the row belongs to (null: the recipe as it is)"),
}


def table_schema(name: str) -> pa.Schema:
    """Return the Arrow schema of a table, without the columns that the lake adds; descriptions as field metadata."""
    return pa.schema(
        [
            pa.field(column, dtype, metadata={"description": text})
            for column, (dtype, text) in TABLES[name].items()
        ]
    )


def to_table(name: str, rows: list[dict]) -> pa.Table:
    """Build a table from row dicts in the schema's column order.

    Raises:
        KeyError: a row has a column that the schema lacks. Missing columns become null.
    """
    allowed = set(TABLES[name])
    for row in rows:
        if unknown := set(row) - allowed:
            raise KeyError(f"{sorted(unknown)} not in table {name}; it has {sorted(allowed)}")
    return pa.Table.from_pylist(rows, schema=table_schema(name))
