"""Made-up `eval_samples`: who answers what is said outright."""

from apriel_assets.tables.schemas import to_table


def sample_rows(model, verdicts, *, task="recall", kl=0.1, seed=0, trace_tokens=4):
    """Rows of one task; `verdicts` and `kl` by problem (or one KL for all)."""
    kls = kl if isinstance(kl, list) else [kl] * len(verdicts)
    return [
        {
            "model": model,
            "task": task,
            "problem_id": f"{task}-{seed}-{index:03}",
            "correct": bool(correct),
            "tokens": 3,
            "finished": True,
            "completion": f"{model} says {index}",
            "trace_tokens": trace_tokens,
            "reverse_kl_nats": kls[index],
            "forward_kl_nats": kls[index],
            "seed": seed,
        }
        for index, correct in enumerate(verdicts)
    ]


def samples(*rows):
    return to_table("eval_samples", [row for part in rows for row in part])
