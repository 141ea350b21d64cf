"""Views and macros of the catalog about speed: what was measured, and what the byte model says of any placement."""

from apriel_assets.tables.view import MODEL, View

SPEED_VIEWS: dict[str, View] = {
    "speed": View(
        meaning="Every timed point beside the teacher's at the same point, the byte model and the device's bound.",
        columns={
            **MODEL,
            "phase": "prefill or decode",
            "context_tokens": "tokens in the cache when decoding starts, or prompt length",
            "batch_size": "sequences at once",
            "tokens_per_s": "measured, all sequences together",
            "speedup": "measured, over the teacher, where possible in turn with it (null: it was not timed there)",
            "modelled_speedup": "decode bytes (or prefill FLOP) of the all-FA model over its own",
            "bound_tokens_per_s": "most that the device allows by the byte model",
            "share_of_bound": "tokens_per_s over bound_tokens_per_s",
            "latency_p50_seconds": "to the first token (prefill) or of a further one (decode), median",
            "latency_p95_seconds": "the same, 95th percentile",
            "cache_bytes_per_token": "of one sequence",
            "peak_memory_bytes": "as in throughput",
            "decoder": "what decoded",
            "device": "device name",
        },
        sql="""
        SELECT own.recipe, own.model, own.phase, own.context_tokens, own.batch_size, own.tokens_per_s,
            coalesce(own.speedup, own.tokens_per_s / teacher.tokens_per_s) AS speedup, own.modelled_speedup,
            own.bound_tokens_per_s,
            own.tokens_per_s / own.bound_tokens_per_s AS share_of_bound, own.latency_p50_seconds,
            own.latency_p95_seconds, own.cache_bytes_per_token, own.peak_memory_bytes, own.decoder, own.device
        FROM throughput own LEFT JOIN (FROM throughput WHERE model = 'teacher') teacher
            USING (recipe, phase, context_tokens, batch_size)
        ORDER BY own.recipe, own.phase, own.context_tokens, own.batch_size, own.model""",
    ),
    "decode_roofline": View(
        meaning="What a decode step of any checkpoint's placement moves and computes, and what each device allows, "
        "by the byte model; nothing here is measured but the present device's rates.",
        parameters=("sequences",),
        columns={
            **MODEL,
            "device": "as in devices",
            "context_tokens": "tokens that each sequence holds",
            "batch_size": "sequences at once: the parameter",
            "bytes_per_token": "bytes that a step moves, over the batch",
            "cache_bytes": "held by one sequence",
            "speedup": "bytes of the teacher over its own",
            "intensity": "FLOP per byte of a step",
            "limited_by": "bandwidth or compute: which of the two takes longer on the device",
            "bound_tokens_per_s": "most that the device allows, all sequences together",
        },
        sql="""
        WITH counted AS (
            SELECT recipe, model, mixer, count(*) AS num_layers
            FROM (SELECT recipe, model, unnest(placement) AS mixer FROM checkpoints
                  WHERE kind NOT IN ('supernet', 'matryoshka'))
            GROUP BY ALL),
        steps AS (
            SELECT recipe, model, context_tokens, sum(num_layers * cache_bytes) AS cache_bytes,
                sum(num_layers * weight_bytes) + max(head_weight_bytes)
                    + sequences * sum(num_layers * moved_bytes) AS step_bytes,
                sequences * (sum(num_layers * flops) + max(head_flops)) AS step_flops
            FROM counted JOIN (FROM layer_bytes WHERE variant IS NULL) USING (recipe, mixer) GROUP BY ALL)
        SELECT own.recipe, own.model, device, context_tokens, sequences AS batch_size,
            own.step_bytes / sequences AS bytes_per_token, own.cache_bytes,
            teacher.step_bytes / own.step_bytes AS speedup, own.step_flops / own.step_bytes AS intensity,
            CASE WHEN own.step_flops / own.step_bytes < ridge_flops_per_byte THEN 'bandwidth' ELSE 'compute' END
                AS limited_by,
            sequences / greatest(own.step_bytes / bytes_per_s, own.step_flops / flops_per_s) AS bound_tokens_per_s
        FROM steps own
        JOIN (FROM steps WHERE model = 'teacher') teacher USING (recipe, context_tokens)
        JOIN (FROM devices WHERE variant IS NULL) USING (recipe)
        ORDER BY own.recipe, device, context_tokens, own.model""",
    ),
}
