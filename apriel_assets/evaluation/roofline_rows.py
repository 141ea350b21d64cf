"""The byte model written out as rows: devices, what a layer of each mixer moves, and what else could be moved less."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from apriel_assets.evaluation.roofline import (
    DEVICES,
    Device,
    ModelShape,
    cache_bytes_per_layer,
    decode_bytes_per_step,
    kv_read_intensity,
    mixer_parameters,
    token_mixing_flops,
)

Row = dict[str, Any]

MIXERS = ("fa", "swa", "gdn", "kda", "mamba")
AS_IT_IS = "teacher as it is"
_READ_ONLY = ("fa", "swa")  # recurrent states are written, too


def device_rows(shape: ModelShape, present: str, measured: Device, others: Iterable[str]) -> list[Row]:
    """Return `devices` rows: the present one by its measured rates, then others by their datasheets.

    Args:
        shape: of the teacher, for the intensity of its attention.
        present: name of the present device.
        measured: its rates.
        others: names in `DEVICES`.
    """
    found = [(present, "measured", measured), *((name, "datasheet", DEVICES[name]) for name in others)]
    return [
        {
            "device": name,
            "source": source,
            "flops_per_s": device.flops_per_s,
            "bytes_per_s": device.bytes_per_s,
            "ridge_flops_per_byte": device.ridge_flops_per_byte,
            "kv_read_intensity": kv_read_intensity(shape),
        }
        for name, source, device in found
    ]


def layer_rows(shape: ModelShape, contexts: Sequence[int]) -> list[Row]:
    """Return `layer_bytes` rows: sums over a placement's layers and the head are the whole model's step."""
    head = shape.vocab_size * shape.hidden_size
    rows = []
    for mixer in MIXERS:
        parameters = mixer_parameters(shape, mixer) + 3 * shape.hidden_size * shape.intermediate_size
        for context in contexts:
            held = cache_bytes_per_layer(shape, mixer, context)
            rows.append(
                {
                    "mixer": mixer,
                    "context_tokens": context,
                    "weight_bytes": parameters * shape.weight_bytes,
                    "head_weight_bytes": head * shape.weight_bytes,
                    "cache_bytes": held,
                    "moved_bytes": held if mixer in _READ_ONLY else 2 * held,
                    "flops": 2 * parameters + token_mixing_flops(shape, mixer, context),
                    "head_flops": 2 * head,
                }
            )
    return rows


def lever_rows(shape: ModelShape, num_layers: int, contexts: Sequence[int], batch: int) -> list[Row]:
    """Return `levers` rows: each way to move fewer bytes, alone, against the all-FA model as it is.

    A decode step rereads 2 L t h_kv d_h b bytes for each sequence: so fewer bytes b of a number, fewer heads
    h_kv, fewer tokens t (a window), fewer layers L that read at all.
    """
    full = ("fa",) * num_layers
    levers: dict[str, tuple[ModelShape, tuple[str, ...]]] = {AS_IT_IS: (shape, full)}
    if shape.cache_bytes > 1:
        levers["8-bit KV cache"] = (replace(shape, cache_bytes=1), full)
    if shape.num_kv_heads % 2 == 0:
        levers["half of the KV heads"] = (replace(shape, num_kv_heads=shape.num_kv_heads // 2), full)
    levers[f"window of {shape.window} tokens"] = (shape, ("swa",) * num_layers)
    for share, name in ((2, "half"), (4, "a quarter")):
        kept = num_layers // share
        levers[f"full attention in {name}, GDN in the rest"] = (
            shape,
            ("fa",) * kept + ("gdn",) * (num_layers - kept),
        )
    levers["GDN in all layers"] = (shape, ("gdn",) * num_layers)
    return [
        {
            "lever": lever,
            "context_tokens": context,
            "batch_size": batch,
            "bytes_per_token": step / batch,
            "speedup": decode_bytes_per_step(shape, full, context, batch) / step,
        }
        for lever, (changed, placement) in levers.items()
        for context in contexts
        for step in [decode_bytes_per_step(changed, placement, context, batch)]
    ]
