"""Small pictures in an asset's metadata. Dagster shows Markdown inline only under 1,000 characters."""

from typing import Any

import dagster as dg

from resources.artifact_store import Artifact


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
    from apriel_assets.hybrid.placement import layer_map

    losses = artifact.table("training").column("loss_nats").to_pylist()
    placement = artifact.table("checkpoints").column("placement")[0].as_py()
    return {
        "loss_curve": _picture(losses),
        "layer_map": dg.MetadataValue.md(f"```\n{layer_map(tuple(placement))}\n```"),
    }


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


def sketch_evals(artifact: Artifact) -> dict[str, Any]:
    """The figures of one task."""
    return {row["metric"]: row["value"] for row in artifact.table("evals").to_pylist()}


def _picture(values: list[float], *, bars: bool = False) -> dg.MetadataValue:
    from apriel_assets.reporting.sparklines import sparkline

    return dg.MetadataValue.md(sparkline(values, bars=bars))
