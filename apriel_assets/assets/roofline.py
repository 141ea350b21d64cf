"""What limits decoding on this device and on others, by the teacher's sizes; only the present device is measured."""

from collections.abc import Mapping
from typing import Any

from apriel_assets.assets.asset_plan import AssetPlan, Job
from apriel_assets.assets.loading import load_teacher_model, working_device
from apriel_assets.assets.sketches import sketch_roofline
from apriel_assets.evaluation.config import RooflineConfig
from apriel_assets.recipe import Recipe


def build_roofline(job: Job, *, roofline: RooflineConfig, sizes: Mapping[str, Any]) -> None:
    """Ridge points of devices, bytes that a layer of each mixer moves by context, and every lever on them."""
    from dataclasses import replace

    from apriel_assets.evaluation.device_rates import measured_device
    from apriel_assets.evaluation.roofline import kv_read_intensity
    from apriel_assets.evaluation.roofline_rows import device_rows, layer_rows, lever_rows
    from apriel_assets.evaluation.throughput import model_shape
    from apriel_assets.tables.schemas import to_table
    from resources.provenance import device_name

    teacher, _ = load_teacher_model(job)
    shape = replace(model_shape(teacher), **sizes)
    present = measured_device(working_device(), teacher.dtype)
    devices = device_rows(shape, device_name(), present, roofline.devices)
    layers = layer_rows(shape, roofline.contexts)
    levers = lever_rows(shape, teacher.num_layers, roofline.contexts, roofline.batch_size)
    job.draft.tables |= {
        "devices": to_table("devices", devices),
        "layer_bytes": to_table("layer_bytes", layers),
        "levers": to_table("levers", levers),
    }
    job.draft.figures |= {
        "bytes_per_s": present.bytes_per_s,
        "flops_per_s": present.flops_per_s,
        "ridge_flops_per_byte": present.ridge_flops_per_byte,
        "kv_read_intensity": kv_read_intensity(shape),
    }


def roofline_asset(recipe: Recipe, teacher: AssetPlan) -> AssetPlan:
    """Return the asset. It reads no placement: which mixers a checkpoint has, its own row says."""
    mixers = recipe.mixers
    return AssetPlan(
        key="roofline",
        group="evals",
        build=build_roofline,
        reads={
            "roofline": recipe.evals.roofline,
            # Only what sizes depend on: another start of a mixer moves no other bytes.
            "sizes": {
                "window": mixers.swa.window,
                "state_size": mixers.mamba.state_size,
                "conv_size": mixers.mamba.conv_size,
                "dt_rank": mixers.mamba.dt_rank,
                "gate_rank": mixers.kda.gate_rank,
            },
        },
        inputs=(teacher,),
        kinds=("parquet",),
        recipe=recipe.name,
        tables=("devices", "layer_bytes", "levers"),
        sketch=sketch_roofline,
    )
