"""Small pictures in an asset's metadata. Dagster shows Markdown inline only under 1,000 characters."""

import re
from typing import Any

import dagster as dg

from apriel_assets.evaluation.comparison import OVERALL
from resources.artifact_store import Artifact

_MOST = 980  # characters inside a code block; its fences take the rest


def sketch_ranking(artifact: Artifact) -> dict[str, Any]:
    """Bars of importance (or probe loss) per layer."""
    name, value = (
        ("probes", "loss_nats") if "probes" in artifact.table_names else ("layer_scores", "importance")
    )
    rows = sorted(artifact.table(name).to_pylist(), key=lambda row: row["layer"])
    ranked = sorted(rows, key=lambda row: row["rank"])
    return {
        "by_layer": _picture([row[value] for row in rows], bars=True),
        "easiest_first": ", ".join(str(row["layer"]) for row in ranked),
    }


def sketch_training(artifact: Artifact) -> dict[str, Any]:
    """The loss curve and the layer map."""
    losses = artifact.table("training").column("loss_nats").to_pylist()
    placement = artifact.table("checkpoints").column("placement")[0].as_py()
    return {
        "loss_curve": _picture(losses),
        "layer_map": _map(placement),
    }


def sketch_merge(artifact: Artifact) -> dict[str, Any]:
    """The layer map."""
    return {"layer_map": _map(artifact.table("checkpoints").column("placement")[0].as_py())}


def sketch_supernet(artifact: Artifact) -> dict[str, Any]:
    """The loss of the sampled placements, and the last KL of each fixed probe placement."""
    losses = artifact.table("training").column("loss_nats").to_pylist()
    rows = artifact.table("supernet_curves").to_pylist()
    last = max(row["step"] for row in rows)
    ends = {f"kl_{row['probe']}": row["kl_nats"] for row in rows if row["step"] == last}
    return {
        "loss_curve": _picture(losses),
        **{name: value for name, value in ends.items() if value is not None},
    }


def sketch_cost_model(artifact: Artifact) -> dict[str, Any]:
    """Bars of the cost per mixer, full attention's being full."""
    figures = artifact.provenance["figures"]
    costs = {name.removeprefix("cost_"): value for name, value in figures.items() if name.startswith("cost_")}
    top = max(costs.values(), default=0.0) or 1.0
    bars = [f"{mixer:6}{cost:8.3f} {'#' * round(30 * cost / top)}" for mixer, cost in costs.items()]
    return {"costs": _lines(bars)}


def sketch_placements(artifact: Artifact) -> dict[str, Any]:
    """How the search's best value rose over its first one, and the layer map that it ended with."""
    best = artifact.table("search_curve").column("best_value").to_pylist()
    placement = artifact.table("candidates").column("placement")[0].as_py()
    # Values may be log-probabilities: a curve's floor is zero.
    gains = [value - best[0] for value in best]
    return {"gain_by_round": _picture(gains), "best_placement": _map(placement)}


def sketch_finalists(artifact: Artifact) -> dict[str, Any]:
    """The chosen layer map, and what every finalist generated."""
    rows = artifact.table("placements").to_pylist()
    lines = [
        f"{row['rank']:4} {row['cost']:7.3f} {row['generated_accuracy']:8.3f}"
        f" [{row['generated_low']:.3f}, {row['generated_high']:.3f}] {row['value']:8.3f}"
        for row in rows
    ]
    heading = "rank    cost generated (95%)         estimate"
    return {"chosen_placement": _map(rows[0]["placement"]), "finalists": _lines([heading, *lines])}


def sketch_audit(artifact: Artifact) -> dict[str, Any]:
    """Every estimator's correlation with real generation."""
    lines = [
        f"{row['estimator']:12}{_figure(row['spearman'])}"
        f" [{_figure(row['spearman_low'])}, {_figure(row['spearman_high'])}]"
        f"{_figure(row['pearson'])}{_figure(row['bias'])}"
        for row in artifact.table("audit").to_pylist()
    ]
    return {"estimators": _lines(["estimator   Spearman (95%)            Pearson   bias", *lines])}


def sketch_release(artifact: Artifact) -> dict[str, Any]:
    """What each named placement adds, its layer map, and the loss curve of the last training."""
    rows = artifact.table("sharing").to_pylist()
    lines = [f"{row['placement']:12}{row['added_bytes']:16,} bytes of its own" for row in rows]
    found: dict[str, Any] = {"sharing": _lines(lines)}
    if "training" in artifact.table_names:
        found["loss_curve"] = _picture(artifact.table("training").column("loss_nats").to_pylist())
    for row in artifact.table("checkpoints").to_pylist():
        if row["kind"] == "release":
            found[f"layers_{row['model']}"] = _map(row["placement"])
    return found


def sketch_rl(artifact: Artifact) -> dict[str, Any]:
    """Reward and KL by step, the reward of each placement, and what the placements share."""
    rows = artifact.table("rl_training").to_pylist()
    shown = {"reward_curve": _picture([row["reward"] for row in rows])}
    shown["kl_curve"] = _picture([row["kl_nats"] for row in rows if row["kl_nats"] is not None])
    for name in dict.fromkeys(row["placement"] for row in rows):
        shown[f"reward_{name}"] = _picture([row["reward"] for row in rows if row["placement"] == name])
    return {**shown, **sketch_release(artifact)}


def sketch_guard(artifact: Artifact) -> dict[str, Any]:
    """Every placement's accuracy before and after, and the paired difference."""
    lines = [
        f"{row['placement']:10.10} {row['task']:11.11}{_share(row['before'])} {_share(row['after'])}"
        f" {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] {row['changed']}"
        for row in sorted(artifact.table("before_after").to_pylist(), key=lambda row: row["task"] != OVERALL)
    ]
    return {"before_after": _lines(["placement  task       before after  change", *lines])}


def sketch_evals(artifact: Artifact) -> dict[str, Any]:
    """The figures of one task."""
    return {row["metric"]: row["value"] for row in artifact.table("evals").to_pylist()}


def sketch_throughput(artifact: Artifact) -> dict[str, Any]:
    """Speed, its share of what the device allows, and latency, by context."""
    lines = [
        f"{row['phase']:8}{row['context_tokens']:8,}{row['batch_size']:6}{row['tokens_per_s']:12,.0f}"
        f"{row['tokens_per_s'] / row['bound_tokens_per_s']:7.0%}{_share(row['modelled_speedup']):>8}"
        f"{1e3 * row['latency_p50_seconds']:10.2f}{1e3 * row['latency_p95_seconds']:10.2f}"
        for row in artifact.table("throughput").to_pylist()
    ]
    return {
        "speed": _lines(["phase    context batch    tokens/s  bound speed-up    p50 ms    p95 ms", *lines])
    }


def sketch_roofline(artifact: Artifact) -> dict[str, Any]:
    """Ridge points, and the modelled speed-up of each lever at the longest context."""
    devices, levers = artifact.table("devices").to_pylist(), artifact.table("levers").to_pylist()
    longest = max(row["context_tokens"] for row in levers)
    lines = [f"{row['ridge_flops_per_byte']:8.1f} FLOP/byte {row['device'][:40]}" for row in devices]
    gains = [f"{row['speedup']:7.1f}x {row['lever']}" for row in levers if row["context_tokens"] == longest]
    return {
        "ridge_points": _lines(lines),
        "speedup_at_longest_context": _lines([f"at {longest:,} tokens", *gains]),
        **{
            f"by_context_{_slug(lever)}": _picture(
                [row["speedup"] for row in levers if row["lever"] == lever]
            )
            for lever in dict.fromkeys(row["lever"] for row in levers if row["speedup"] != 1)
        },
    }


def _slug(text: str) -> str:
    return re.sub(r"\W+", "_", text.lower()).strip("_")


def sketch_leaderboard(artifact: Artifact) -> dict[str, Any]:
    """Every model's accuracy with its interval, and its decode speed over the teacher's."""
    lines = [
        f"{row['model']:12}{_share(row['accuracy'])} [{_share(row['accuracy_low'])},"
        f" {_share(row['accuracy_high'])}]{_share(row['decode_speedup']):>8}"
        for row in artifact.table("leaderboard").to_pylist()
    ]
    return {"models": _lines(["model       accuracy (95%)        decode speed-up", *lines])}


def _picture(values: list[float], *, bars: bool = False) -> dg.MetadataValue:
    from apriel_assets.reporting.sparklines import markdown_sparkline

    return dg.MetadataValue.md(markdown_sparkline(values, bars=bars))


def _map(placement: list[str]) -> dg.MetadataValue:
    from apriel_assets.hybrid.placement import layer_map

    return _lines(layer_map(tuple(placement)).splitlines())


def _lines(lines: list[str]) -> dg.MetadataValue:
    """Return whole lines as they are, as many as are shown inline."""
    kept = list(lines)
    while sum(len(line) + 1 for line in kept) > _MOST:
        kept.pop()
    return dg.MetadataValue.md("```\n" + "\n".join(kept) + "\n```")


def _figure(value: float | None) -> str:
    return f"{'-':>7}" if value is None else f"{value:+7.3f}"


def _share(value: float | None) -> str:
    return f"{'-':>5}" if value is None else f"{value:.3f}"
