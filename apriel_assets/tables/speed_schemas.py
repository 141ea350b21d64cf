"""Columns of the tables of speed: what was timed, what it costs, and what the byte model says of it."""

import pyarrow as pa

_INT, _FLOAT, _TEXT = pa.int64(), pa.float64(), pa.string()

SPEED_TABLES: dict[str, dict[str, tuple[pa.DataType, str]]] = {
    "throughput": {
        "model": (_TEXT, "teacher, h<k>, sft, merge, b<budget>, or a released placement's name"),
        "phase": (_TEXT, "prefill or decode"),
        "context_tokens": (_INT, "tokens in the cache when decoding starts, or prompt length"),
        "batch_size": (_INT, "sequences at once"),
        "tokens_per_s": (_FLOAT, "median over repeats, all sequences together"),
        "seconds_low": (_FLOAT, "fastest repeat, seconds"),
        "seconds_high": (_FLOAT, "slowest repeat, seconds"),
        "latency_p50_seconds": (
            _FLOAT,
            "half of the latencies are at most this; prefill: prompt to first token, decode: one further token",
        ),
        "latency_p95_seconds": (_FLOAT, "95 of 100 latencies are at most this"),
        "num_latencies": (_INT, "latencies that the two are of: repeats, in decode each of their tokens"),
        "speedup": (
            _FLOAT,
            "over the teacher, decoding in turn with it: median over repeats (null: prefill, or not timed in turn)",
        ),
        "modelled_speedup": (_FLOAT, "decode bytes (or prefill FLOP) of the all-FA model over its own"),
        "bound_tokens_per_s": (
            _FLOAT,
            "most that the device's measured rates allow by the byte model; what fits a CPU's caches can beat it",
        ),
        "cache_bytes": (_INT, "KV cache and recurrent state of the batch at this context"),
        "cache_bytes_per_token": (_FLOAT, "cache_bytes over all tokens of all sequences"),
        "peak_memory_bytes": (
            _INT,
            "most while this was timed: tensors on the GPU; on a CPU the whole process (null: not known)",
        ),
        "decoder": (
            _TEXT,
            "what decoded: static caches, with a CUDA graph or not, or the model's forward pass",
        ),
        "kernels": (_TEXT, "what computed: Triton or torch, or each mixer's library"),
        "device_bytes_per_s": (_FLOAT, "measured copy rate of the device, read and written bytes together"),
        "device_flops_per_s": (_FLOAT, "measured rate of a large matrix product in the model's dtype"),
        "device": (_TEXT, "device name"),
    },
    "mixer_costs": {
        "mixer": (_TEXT, "fa, swa, gdn, kda or mamba"),
        "phase": (_TEXT, "prefill or decode"),
        "context_tokens": (_INT, "tokens in the cache when decoding, or prompt length"),
        "batch_size": (_INT, "sequences at once"),
        "seconds": (
            _FLOAT,
            "one layer's mixer on a prompt or decode step; least of the repeats, mean over layers",
        ),
        "fa_seconds": (_FLOAT, "the same of full attention, measured in turn with it"),
        "relative": (_FLOAT, "seconds over fa_seconds"),
        "roofline_relative": (_FLOAT, "the mixer's bytes (decode) or FLOP (prefill) over full attention's"),
        "device": (_TEXT, "device name"),
    },
    "cost_check": {
        "placement": (pa.list_(pa.string()), "mixer of each layer, first layer first"),
        "phase": (_TEXT, "prefill or decode"),
        "context_tokens": (_INT, "tokens in the cache when decoding, or prompt length"),
        "batch_size": (_INT, "sequences at once"),
        "predicted": (_FLOAT, "whole-model seconds by the cost model, over all-FA's"),
        "measured": (_FLOAT, "measured whole-model seconds over all-FA's"),
        "device": (_TEXT, "device name"),
    },
    "devices": {
        "device": (_TEXT, "device name"),
        "source": (_TEXT, "measured (copy and matmul rates of the present device) or datasheet (dense bf16)"),
        "flops_per_s": (_FLOAT, "FLOP/s of matrix products"),
        "bytes_per_s": (_FLOAT, "memory bandwidth; measured: read and written bytes of a copy together"),
        "ridge_flops_per_byte": (
            _FLOAT,
            "flops_per_s over bytes_per_s: below this intensity, bandwidth limits",
        ),
        "kv_read_intensity": (
            _FLOAT,
            "FLOP per byte of KV cache that the teacher's attention does in decode",
        ),
    },
    "layer_bytes": {
        "mixer": (_TEXT, "fa, swa, gdn, kda or mamba"),
        "context_tokens": (_INT, "tokens that each sequence holds"),
        "weight_bytes": (_FLOAT, "of the mixer and the layer's MLP, read once a decode step"),
        "head_weight_bytes": (_FLOAT, "of the LM head, read once a step by the whole model"),
        "cache_bytes": (_FLOAT, "held by the layer for one sequence"),
        "moved_bytes": (
            _FLOAT,
            "of these, read (KV) or read and written (states) for one sequence in a step",
        ),
        "flops": (_FLOAT, "of the layer for one sequence in a step"),
        "head_flops": (_FLOAT, "of the LM head for one sequence in a step"),
    },
    "levers": {
        "lever": (_TEXT, "what is changed about the all-FA teacher"),
        "context_tokens": (_INT, "tokens that each sequence holds"),
        "batch_size": (_INT, "sequences at once"),
        "bytes_per_token": (_FLOAT, "bytes that a decode step moves, over the batch"),
        "speedup": (_FLOAT, "bytes of the teacher as it is over these"),
    },
}
