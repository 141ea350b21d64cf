"""Which exports vLLM can serve here, and why others cannot be."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import MixerConfig, SlidingWindowConfig
from apriel_assets.hybrid.hybrid_config import HybridConfig
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement

BACKBONES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers are a norm, attention, a norm and SwiGLU, as vLLM's Llama layer has them."""

ATTENTION = (FULL_ATTENTION, "swa")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPlan:
    """What runs in each layer of a fixed-layout export."""

    placement: Placement
    options: tuple[MixerConfig, ...]

    @property
    def recurrent(self) -> tuple[str, ...]:
        """The recurrent mixers that some layer runs, each once, first come first."""
        return tuple(dict.fromkeys(mixer for mixer in self.placement if mixer not in ATTENTION))

    def options_of(self, mixer: str) -> MixerConfig:
        """Return the options of the first layer that runs a mixer."""
        return self.options[self.placement.index(mixer)]


def layer_plan(config: HybridConfig) -> LayerPlan:
    """Return what each layer runs.

    Raises:
        UserError: layers that hold several mixers, or a backbone that is not built like Llama.
    """
    for layer, held in enumerate(config.mixers):
        if len(held) > 1:
            raise UserError(
                f"layer {layer} holds {', '.join(held)}: vLLM serves one placement; give it a directory of engines/, "
                "which `apriel export` writes, not the matryoshka"
            )
    backbone: Any = config.backbone
    if backbone.model_type not in BACKBONES:
        raise UserError(
            f"vLLM serves hybrids of {', '.join(BACKBONES)}; this backbone is {backbone.model_type}: use `apriel serve`"
        )
    options = tuple(config.mixer_options(layer)[mixer] for layer, mixer in enumerate(config.placement))
    return LayerPlan(placement=tuple(config.placement), options=options)


def attention_window(backbone: Any, layer: int, options: MixerConfig) -> int | None:
    """Return how many tokens a layer's attention sees, the current one included; None: all.

    A layer of full attention has the teacher's own window, if it has one.
    """
    if isinstance(options, SlidingWindowConfig):
        return options.window
    window = getattr(backbone, "sliding_window", None)
    types = getattr(backbone, "layer_types", None)
    return window if types is None or types[layer] == "sliding_attention" else None


def check_head_size(head_size: int, allowed: Collection[int]) -> None:
    """Check that an attention backend of vLLM takes heads of this size; an empty collection allows all.

    Raises:
        UserError: it does not.
    """
    if allowed and head_size not in allowed:
        sizes = ", ".join(map(str, sorted(allowed)))
        raise UserError(
            f"vLLM's attention here takes heads of {sizes}, not {head_size}: use `apriel serve`, or all-fa/ with "
            "another engine"
        )


def check_features(plan: LayerPlan, features: Mapping[str, bool]) -> None:
    """Check that nothing is switched on that recurrent layers do not do here.

    Args:
        plan: what each layer runs.
        features: by how one asks vLLM for it.

    Raises:
        UserError: one is on, and some layer is recurrent.
    """
    if plan.recurrent and (asked := [name for name, on in features.items() if on]):
        raise UserError(
            f"{', '.join(plan.recurrent)} layers run without {', '.join(asked)}; leave it out, or serve all-fa/"
        )
