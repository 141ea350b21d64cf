"""How builders write the models that they trained, and the rows that say what each is."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apriel_assets.assets.asset_plan import Job
from apriel_assets.assets.loading import CHECKPOINT, load_teacher_model

if TYPE_CHECKING:
    import pyarrow as pa

    from apriel_assets.hybrid.model import HybridForCausalLM
    from apriel_assets.hybrid.placement import Placement
    from resources.artifact_store import Artifact


def record_checkpoint(
    job: Job,
    model: "HybridForCausalLM",
    curve: "pa.Table | None",
    *,
    name: str,
    kind: str,
    parent: str,
    table: str = "training",
    placements: "Mapping[str, Placement] | None" = None,
) -> None:
    """Write the model, load it again to see that it is the same, and write its training curve and `checkpoints` row.

    Args:
        job: of the asset that made the model.
        model: saved as it is.
        curve: a row per step, of `table`; None: it was not trained.
        name: model name in the row.
        kind: as the table's column says.
        parent: asset that it was made from.
        table: that the curve is of.
        placements: rows of these names and placements in the place of one row of the active placement.
    """
    from apriel_assets.hybrid.equality import tensors_that_differ
    from apriel_assets.tables.schemas import to_table

    if not job.is_recorded:
        return
    directory = job.draft.path / CHECKPOINT
    model.save_pretrained(directory)
    if "teacher" in job.inputs:  # so that the directory is all that others need, lm_eval for one
        load_teacher_model(job)[1].save_pretrained(directory)
    job.draft.figures["num_tensors_changed_by_saving"] = len(tensors_that_differ(model, directory))
    row = {
        **_trained(curve),
        "kind": kind,
        "seconds": time.monotonic() - job.started,
        "num_parameters": model.num_parameters(),
        "file_bytes": sum(path.stat().st_size for path in directory.glob("*.safetensors")),
        "path": str(Path("artifacts") / job.asset / job.address / CHECKPOINT),
    }
    rows = _placed(row, job.input(parent), placements or {name: model.placement})
    job.draft.tables["checkpoints"] = to_table("checkpoints", rows)
    if curve:
        job.draft.tables[table] = curve
    shown = {key: rows[0][key] for key in ("tokens", "loss_nats", "num_replaced")}
    job.draft.figures |= {key: value for key, value in shown.items() if value is not None}
    job.draft.figures |= _kernels(model)


def _placed(
    row: dict[str, Any], parent: "Artifact", placements: "Mapping[str, Placement]"
) -> list[dict[str, Any]]:
    """Return a row per placement: what all share, where they come from, and what is the placement's own."""
    before = parent.table("checkpoints").to_pylist()[0]
    shared = {**row, "parent": before["model"], "total_tokens": before["total_tokens"] + row["tokens"]}
    return [
        {
            **shared,
            "model": name,
            "placement": list(placement),
            "num_replaced": sum(mixer != "fa" for mixer in placement),
        }
        for name, placement in placements.items()
    ]


def _trained(curve: "pa.Table | None") -> dict[str, Any]:
    """Return what a training curve adds up to; the loss is that of its last tenth."""
    losses = curve.column("loss_nats").to_pylist() if curve and "loss_nats" in curve.column_names else []
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "loss_nats": sum(tail) / len(tail) if tail else None,
        "steps": curve.num_rows if curve else 0,
        "tokens": curve.column("tokens")[-1].as_py() if curve else 0,
    }


def _kernels(model: "HybridForCausalLM") -> dict[str, str]:
    """Return what computed each mixer in training, as figures of provenance."""
    from apriel_assets.hybrid.mixers.kernels import kernels_in_use

    held = {name: bank.options[name] for bank in model.banks for name in bank.options}
    found = kernels_in_use(held, model.device, model.dtype)
    return {f"kernel_{mixer}": kernel for mixer, kernel in found.items()}
