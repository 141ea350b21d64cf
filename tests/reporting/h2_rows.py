"""What the supernet procedure would leave in the lake, made up: 12 layers, 2 budgets, one broken placement."""

import random

from apriel_assets.tables.schemas import to_table

LAYERS = 12
COSTS = {"fa": 1.0, "swa": 0.21, "gdn": 0.13, "kda": 0.17, "mamba": 0.11}
BUDGETS = (0.5, 0.75)
ESTIMATORS = ("ois", "ois_clipped", "snis", "ess", "log_q")
# SNIS believes it, its ESS and its own answers do not.
BROKEN = ["mamba"] * LAYERS


def cost(placement):
    return sum(COSTS[mixer] for mixer in placement) / len(placement)


def mixed(num_replaced, seed=0):
    rng = random.Random(f"{num_replaced}/{seed}")
    replaced = rng.sample(range(LAYERS), num_replaced)
    return [rng.choice(["swa", "gdn", "kda"]) if layer in replaced else "fa" for layer in range(LAYERS)]


def candidate(placement, budget, *, reliable=True):
    share = 0.9 ** (3 * sum(mixer != "fa" for mixer in placement))
    broken = placement == BROKEN
    value = 0.02 if broken else 0.35 + 0.6 * share
    row = {"budget": budget, "placement": placement, "cost": None if budget is None else cost(placement)}
    row |= {"estimator": "ois_clipped", "value": value, "low": value - 0.05, "high": value + 0.04}
    row |= {
        "reliable": reliable and not broken,
        "ess_share": 0.0007 if broken else share,
        "ess": 1800 * share,
    }
    return row | {"ois": value, "ois_clipped": value, "snis": 0.991 if broken else value, "num_problems": 300}


def search_rows():
    candidates, curve, placements = [], [], []
    for budget in BUDGETS:
        fits = [p for n in range(4, 12) for s in range(9) if cost(p := mixed(n, s)) <= budget]
        own = sorted((candidate(p, budget) for p in fits), key=lambda row: -row["value"])
        candidates += own
        for scored in range(4, len(own) + 4, 4):
            best = own[0]["value"] - 0.2 / scored
            row = {"budget": budget, "strategy": "beam", "candidates": scored, "seconds": 0.5 * scored}
            curve.append({**row, "best_value": best, "best_low": best - 0.04, "best_high": best + 0.03})
        for rank, row in enumerate(own[:3]):
            accuracy = row["value"] - 0.0131 * rank
            kept = {name: row[name] for name in ("budget", "placement", "cost", "value", "low", "high")}
            kept |= {"generated_accuracy": accuracy, "generated_low": accuracy - 0.06}
            kept |= {"generated_high": accuracy + 0.05, "rank": rank, "chosen": rank == 0, "strategy": "beam"}
            placements.append({**kept, "name": None if rank else f"b{budget:g}"})
    return candidates, curve, placements


def audit_rows():
    points, scored = [], []
    for placement in [*(mixed(n) for n in range(1, 12)), ["fa"] * LAYERS, BROKEN]:
        row = candidate(placement, None)
        scored.append(row)
        accuracy = 0.9431 if placement == ["fa"] * LAYERS else max(0.0, row["value"] - 0.021)
        accuracy = 0.0 if placement == BROKEN else accuracy
        ends = {"generated_low": max(0.0, accuracy - 0.08), "generated_high": min(1.0, accuracy + 0.07)}
        for name in ESTIMATORS:
            estimate = {"ess": row["ess_share"], "log_q": -1.5 + row["ess_share"]}.get(name, row.get(name))
            point = {"placement": placement, "estimator": name, "estimate": estimate, "num_problems": 120}
            points.append({**point, "generated_accuracy": accuracy, **ends})
    audit = [
        {"estimator": name, "pearson": 0.913, "spearman": 0.8765, "spearman_low": 0.71, "spearman_high": 0.95}
        | {"bias": 0.0217 if "is" in name else None, "num_placements": 13}
        for name in ESTIMATORS
    ]
    return points, audit, scored


def cost_rows():
    at = [(phase, context) for phase in ("prefill", "decode") for context in (256, 1024)]
    mixers = [
        {"mixer": mixer, "phase": phase, "context_tokens": context, "batch_size": 8, "seconds": 0.01 * own}
        | {"fa_seconds": 0.01, "relative": own * 1.37, "roofline_relative": own, "device": "An odd CPU"}
        for phase, context in at
        for mixer, own in COSTS.items()
        if mixer != "fa"
    ]
    checked = [
        {"placement": mixed(n), "phase": phase, "context_tokens": context, "batch_size": 8}
        | {"predicted": cost(mixed(n)), "measured": cost(mixed(n)) + 0.01 * (n % 3), "device": "An odd CPU"}
        for phase, context in at
        for n in range(1, 12, 2)
    ]
    return mixers, checked


def supernet_rows():
    curves = []
    for step in range(0, 301, 30):
        for index, mixer in enumerate(COSTS):
            # Mamba starves: its line stays where it began.
            kl = 2.9 if mixer == "mamba" else 0.03 + 2.5 * 0.985**step / (1 + index)
            probe = {
                "model": "supernet",
                "step": step,
                "probe": f"all_{mixer}",
                "placement": [mixer] * LAYERS,
            }
            curves.append({**probe, "kl_nats": 0.0 if mixer == "fa" else kl})
            if mixer != "fa":
                error = {"model": "supernet", "step": step, "probe": f"mixer_{mixer}"}
                curves.append({**error, "output_error": 1.07 if mixer == "mamba" else 0.02 + 0.985**step})
        probe = {"model": "supernet", "step": step, "probe": "random_0", "placement": mixed(7)}
        curves.append({**probe, "kl_nats": 0.11 + 0.98**step})
    rng = random.Random(5)
    training = [
        {"model": "supernet", "step": step, "loss_nats": (0.1 + 0.99**step) * rng.uniform(0.5, 1.7)}
        for step in range(1, 301)
    ]
    return curves, training


def checkpoint_rows(placements):
    chosen = {row["name"]: row["placement"] for row in placements if row["chosen"]}
    kinds = [(name, "placement", placement) for name, placement in chosen.items()]
    kinds += [("safe", "release", ["fa"] * LAYERS), ("turbo", "release", chosen["b0.5"])]
    return [
        {"model": "supernet", "kind": "supernet", "parent": "teacher", "placement": ["fa"] * LAYERS}
        | {"num_replaced": 0},
        *(
            {"model": name, "kind": kind, "parent": "supernet", "placement": placement}
            | {"num_replaced": sum(mixer != "fa" for mixer in placement), "total_tokens": 81_031}
            for name, kind, placement in kinds
        ),
    ]


def sharing_rows():
    return [
        {"placement": name, "parameters": own, "added_bytes": added, "shared_share": 0.6173}
        | {"total_parameters": 1_400_321}
        for name, own, added in (("safe", 1_000_003, 0), ("turbo", 1_234_567, 919_193))
        for _ in range(2)  # before and after the last training
    ]


def further_training_rows():
    paired = {"num_problems": 200, "num_differing": 20, "p_value": 0.001, "could_hide": 0.0}
    compared = [
        {**paired, "stage": stage, "placement": name, "task": task, "before": 0.8, "after": after}
        | {"difference": after - 0.8, "low": after - 0.85, "high": after - 0.75, "changed": changed}
        | {"max_logit_difference": moved}
        for stage, name, after, changed, moved in (
            ("sft", "safe", 0.8, "none", 0.25),
            ("rl", "safe", 0.8, "none", 0.0),
            ("rl", "turbo", 0.9137, "better", 1.5),
        )
        for task in ("recall", "all tasks")
    ]
    steps = [
        {"model": "release-rl", "placement": "turbo", "step": step, "reward": 0.8 + 0.002 * step}
        | {"kl_nats": None if step % 5 == 0 else 0.001 * step, "num_groups": 16, "num_skipped_groups": 7}
        for step in range(1, 41)
    ]
    return {"before_after": compared, "rl_training": steps}


def h2_tables():
    """Return every table of the supernet procedure, and `checkpoints` of what it releases."""
    candidates, curve, placements = search_rows()
    points, audit, audited = audit_rows()
    mixer_costs, cost_check = cost_rows()
    curves, training = supernet_rows()
    rows = {
        "candidates": candidates + audited,
        "search_curve": curve,
        "placements": placements,
        "audit_points": points,
        "audit": audit,
        "mixer_costs": mixer_costs,
        "cost_check": cost_check,
        "supernet_curves": curves,
        "training": training,
        "checkpoints": checkpoint_rows(placements),
        "sharing": sharing_rows(),
        **further_training_rows(),
    }
    return {name: to_table(name, own) for name, own in rows.items()}
