"""The config of a hybrid as transformers stores it: the backbone's config, and what each layer holds."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from apriel_assets.hybrid.checkpoint import WEIGHTS_SHA256
from apriel_assets.hybrid.config import MixerConfig, config_from_dict, config_to_dict
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement


class HybridConfig(PreTrainedConfig):
    """Config of `HybridForCausalLM`.

    Attributes:
        backbone: the teacher's own config.
        mixers: per layer, the options of every mixer that it holds, by name.
        placement: the mixer that runs in each layer.
        placements: further placements of the same weights, by name.
    """

    model_type = "apriel_hybrid"
    sub_configs = {"backbone": AutoConfig}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        backbone: PreTrainedConfig | dict[str, Any] | None = None,
        mixers: list[dict[str, dict[str, Any]]] | None = None,
        placement: list[str] | None = None,
        placements: dict[str, list[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        # transformers builds a config without arguments to find its defaults.
        backbone = {"model_type": "llama"} if backbone is None else backbone
        if isinstance(backbone, dict):
            backbone = AutoConfig.for_model(**backbone)
        self.backbone = backbone
        num_layers = backbone.get_text_config(decoder=True).num_hidden_layers
        self.mixers = mixers or [{FULL_ATTENTION: {}} for _ in range(num_layers)]
        self.placement = list(placement) if placement else [FULL_ATTENTION] * num_layers
        self.placements = {name: list(value) for name, value in (placements or {}).items()}
        kwargs.pop(
            WEIGHTS_SHA256, None
        )  # of the files it was read with: a model that is saved again has others
        kwargs.setdefault("tie_word_embeddings", backbone.tie_word_embeddings)
        super().__init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        return self.backbone.get_text_config(decoder=decoder, encoder=encoder)

    # What tools around transformers read off any causal LM's config.
    @property
    def vocab_size(self) -> int:
        return self.get_text_config().vocab_size

    @property
    def hidden_size(self) -> int:
        return self.get_text_config().hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.get_text_config().num_hidden_layers

    @property
    def max_position_embeddings(self) -> int:
        return self.get_text_config().max_position_embeddings

    @property
    def layer_types(self) -> list[str]:
        """What each layer keeps of the past, as vLLM asks for it: a KV cache, whatever its window, or a state."""
        attention = (FULL_ATTENTION, "swa")
        return ["full_attention" if mixer in attention else "linear_attention" for mixer in self.placement]

    def mixer_options(self, layer: int) -> dict[str, MixerConfig]:
        """Return the options of each mixer that a layer holds, by name."""
        return {name: config_from_dict(name, values) for name, values in self.mixers[layer].items()}

    def set_mixer_options(self, layer: int, options: dict[str, MixerConfig]) -> None:
        """Record what a layer holds."""
        self.mixers[layer] = {name: config_to_dict(value) for name, value in options.items()}

    def named_placements(self) -> dict[str, Placement]:
        """Return the further placements as tuples."""
        return {name: tuple(value) for name, value in self.placements.items()}
