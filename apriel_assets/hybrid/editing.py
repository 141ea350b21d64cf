"""Add mixers to a hybrid's layers and drop them again, keeping its config in step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from apriel_assets.errors import UserError
from apriel_assets.hybrid.calibration import set_output_scale
from apriel_assets.hybrid.config import MixerConfig
from apriel_assets.hybrid.conversion import Init, convert_attention
from apriel_assets.hybrid.placement import FULL_ATTENTION

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

_LAYER_STRIDE = 100_003
"""Prime, and more than any model has layers: (seed, layer) pairs get seeds of their own."""


def add_mixers(
    model: "HybridForCausalLM",
    layers: Sequence[int],
    name: str,
    options: MixerConfig,
    *,
    init: Init,
    seed: int,
    calibration: torch.Tensor | None,
) -> None:
    """Give each layer a mixer made from its full attention, all of them or, on an error, none.

    Raises:
        UserError: a layer without full attention, or whose attention the mixer does not fit.
    """
    banks = model.banks
    if lost := [layer for layer in layers if FULL_ATTENTION not in banks[layer].names]:
        raise UserError(f"layers {lost} hold no full attention to convert from; start from a model that does")
    mixers = {
        layer: convert_attention(
            banks[layer].mixers[FULL_ATTENTION], options, init=init, seed=seed * _LAYER_STRIDE + layer
        )
        for layer in layers
    }
    if (scale := getattr(options, "output_scale", None)) is not None:
        set_output_scale(model, mixers, scale, calibration, seed)
    for layer, mixer in mixers.items():
        banks[layer].add(name, mixer.train(model.training), options)


def keep_mixers(model: "HybridForCausalLM", wanted: Mapping[int, set[str]]) -> None:
    """Drop these layers' other mixers, unless a named placement uses them; record what layers hold."""
    for layer, bank in enumerate(model.banks):
        if layer in wanted:
            named = {placement[layer] for placement in model.placements.values()}
            for name in set(bank.names) - wanted[layer] - named:
                bank.drop(name)
        model.config.set_mixer_options(layer, bank.options)
