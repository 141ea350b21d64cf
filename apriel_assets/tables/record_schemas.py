"""Columns of the tables with one row per single thing: a problem that a model answered, an artifact that was built."""

import pyarrow as pa

_INT, _FLOAT, _TEXT, _BOOL = pa.int64(), pa.float64(), pa.string(), pa.bool_()

RECORD_TABLES: dict[str, dict[str, tuple[pa.DataType, str]]] = {
    "eval_samples": {
        "model": (_TEXT, "as in evals"),
        "task": (_TEXT, "task name"),
        "problem_id": (_TEXT, "stable id of the problem's content: pairs the models' answers"),
        "correct": (_BOOL, "verifier's verdict on the greedy completion"),
        "tokens": (_INT, "tokens of the completion, end-of-sequence included"),
        "finished": (_BOOL, "ended with the end-of-sequence token, not at the length limit"),
        "completion": (_TEXT, "generated text, without special tokens"),
        "trace_tokens": (_INT, "completion tokens of the reference trace (null: no teacher to compare with)"),
        "reverse_kl_nats": (_FLOAT, "KL(model || teacher), mean over the reference trace's tokens, nats"),
        "forward_kl_nats": (_FLOAT, "KL(teacher || model), mean over the reference trace's tokens, nats"),
        "seed": (_INT, "seed of the problem draw"),
    },
    "builds": {
        "asset": (_TEXT, "what was built, e.g. h1/h6; its rows in other tables have this row's version"),
        "partition": (_TEXT, "its partition, e.g. an eval task (null: none)"),
        "date": (_TEXT, "day of the build, ISO 8601"),
        "code": (_TEXT, "git commit (+dirty: edited), or the package's version"),
        "device": (_TEXT, "device name"),
        "seconds": (_FLOAT, "wall time of the build"),
        "gpu_seconds": (_FLOAT, "wall time times leased GPUs (0: none was leased)"),
        "peak_memory_bytes": (_INT, "largest resident memory of the building process"),
        "address": (_TEXT, "name of the artifact's directory under artifacts/<asset>/"),
        "seed": (_INT, "the recipe's, where the asset draws something (null: it does not)"),
        "tables": (pa.list_(pa.string()), "result tables that it has rows in"),
    },
    "speculative": {
        "model": (_TEXT, "checkpoint: matryoshka or release"),
        "draft": (_TEXT, "named placement that drafts; full attention of the same checkpoint verifies"),
        "draft_tokens": (_INT, "drafted before each pass of full attention"),
        "temperature": (_FLOAT, "sampling temperature, 0 = greedy"),
        "num_prompts": (_INT, "held-out problems answered, one at a time"),
        "tokens": (_INT, "tokens of all answers"),
        "acceptance_rate": (_FLOAT, "drafted tokens that stood, over all drafted"),
        "tokens_per_pass": (_FLOAT, "tokens over passes of full attention; 1 without drafting"),
        "tokens_per_s": (_FLOAT, "tokens over wall time, prompts included"),
        "all_fa_tokens_per_s": (_FLOAT, "the same of full attention alone, each prompt in turn with it"),
        "speedup": (_FLOAT, "tokens_per_s over all_fa_tokens_per_s"),
        "same_text_share": (_FLOAT, "answers that are full attention's own text (null: sampled)"),
        "device": (_TEXT, "device name"),
    },
}
