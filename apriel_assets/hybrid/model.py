"""The one model class: teacher, H-k checkpoints, supernet and shipped engines differ only in their mixers.

A hybrid is the teacher's own transformers model, kept as `backbone`, in which each decoder layer's attention
is replaced by a bank of mixers. Importing this module registers the class with transformers' Auto classes.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, Self, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from apriel_assets.errors import UserError
from apriel_assets.hybrid.bank import MixerBank, restore_attention
from apriel_assets.hybrid.caches import SKIPPED, HybridCache, SkippedLayer, check_cache, native_layers
from apriel_assets.hybrid.checkpoint import check_weights, refuse_incomplete
from apriel_assets.hybrid.config import MixerOptions, pick_options
from apriel_assets.hybrid.conversion import Init, build_mixer
from apriel_assets.hybrid.editing import add_mixers, keep_mixers
from apriel_assets.hybrid.forward_context import (
    ForwardContext,
    checkpoint_in_context,
    context_for,
    forward_context,
)
from apriel_assets.hybrid.hybrid_config import HybridConfig
from apriel_assets.hybrid.packing import Packing
from apriel_assets.hybrid.placement import (
    FULL_ATTENTION,
    Placement,
    check_layers,
    check_placement,
    replace_layers,
)
from apriel_assets.hybrid.surgery import check_attention_call, decoder_layers_name, find_decoder_layers


class HybridForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal LM whose layers each hold one or more mixers, one of them active."""

    config_class = HybridConfig
    config: HybridConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012  transformers' own attribute

    def __init__(self, config: HybridConfig, backbone: PreTrainedModel | None = None) -> None:
        """Put the mixers into `backbone`, in place; None: into a new one, for weights to be loaded."""
        super().__init__(config)
        self.backbone = AutoModelForCausalLM.from_config(config.backbone) if backbone is None else backbone
        self._skipped: frozenset[int] = frozenset()
        self._layers_name = decoder_layers_name(self.backbone)
        for index, layer in enumerate(self.decoder_layers):
            attention = cast(nn.Module, layer.self_attn)
            options = config.mixer_options(index)
            mixers = {name: build_mixer(attention, value) for name, value in options.items()}
            layer.self_attn = MixerBank(index, mixers, options)
        self.set_placement(cast(Any, config.placement))  # a name, where from_pretrained was given one
        self.post_init()

    @classmethod
    def from_teacher(cls, teacher: PreTrainedModel, *, copy: bool = True) -> Self:
        """Return the all-FA hybrid of a teacher; its logits are the teacher's, bit for bit.

        Args:
            teacher: a causal LM of transformers, or a hybrid's backbone.
            copy: False: the hybrid takes the teacher over, which must not be used on its own any more.

        Raises:
            UserError: decoder layers or attention of an unexpected kind; names the class.
        """
        backbone = deepcopy(teacher) if copy else teacher
        layers = find_decoder_layers(backbone)
        restore_attention(layers)
        check_attention_call(layers)
        config = HybridConfig(
            backbone=backbone.config,
            dtype=backbone.dtype,
            attn_implementation=backbone.config._attn_implementation,  # handed down: else the backbone loses its own
        )
        hybrid = cls(config, backbone)
        hybrid.generation_config = deepcopy(backbone.generation_config)
        return hybrid.train(teacher.training)

    @property
    def decoder_layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.backbone.get_submodule(self._layers_name))

    @property
    def banks(self) -> list[MixerBank]:
        return [cast(MixerBank, layer.self_attn) for layer in self.decoder_layers]

    @property
    def num_layers(self) -> int:
        return len(self.config.mixers)

    @property
    def lm_head(self) -> nn.Module:
        return cast(nn.Module, self.backbone.get_output_embeddings())

    @property
    def mixers(self) -> tuple[tuple[str, ...], ...]:
        """The mixers that each layer holds, first layer first."""
        return tuple(bank.names for bank in self.banks)

    @property
    def placement(self) -> Placement:
        return tuple(self.config.placement)

    @property
    def placements(self) -> dict[str, Placement]:
        """The named placements."""
        return self.config.named_placements()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    def set_placement(self, placement: Placement | str) -> None:
        """Make a placement active, given mixer by mixer or by name.

        Raises:
            UserError: an unknown name, a wrong length, or a mixer that a layer does not hold.
        """
        if isinstance(placement, str):
            if placement not in self.placements:
                raise UserError(f"no placement {placement!r}; named: {', '.join(self.placements) or 'none'}")
            placement = self.placements[placement]
        self.config.placement = list(check_placement(placement, self.num_layers, self.mixers))

    def name_placement(self, name: str, placement: Placement | None = None) -> None:
        """Keep a placement (None: the active one) under a name, in checkpoints too."""
        placement = self.placement if placement is None else placement
        self.config.placements[name] = list(check_placement(placement, self.num_layers, self.mixers))

    @contextmanager
    def skip_mixers(self, layers: Iterable[int]) -> Iterator[None]:
        """Let these layers' mixers add nothing to the residual stream, for leave-one-out scores.

        Raises:
            UserError: a layer that does not exist.
        """
        before, self._skipped = self._skipped, frozenset(check_layers(layers, self.num_layers))
        try:
            yield
        finally:
            self._skipped = before

    def convert(
        self,
        layers: Iterable[int],
        mixer: str,
        *,
        init: Init = "mapped",
        seed: int = 0,
        keep: bool = False,
        options: MixerOptions | Mapping[str, Any] | None = None,
        calibration: torch.Tensor | None = None,
    ) -> None:
        """Give layers a new mixer, made from their full attention, and make it active there.

        Args:
            layers: their indices.
            mixer: its name; any but "fa".
            init: "mapped": start from the attention's weights; "random": start fresh.
            seed: of the fresh weights; a layer's do not depend on which others are converted with it.
            keep: keep the layers' other mixers too; False: drop those that no named placement uses.
            options: how mixers are built, by name; None: the defaults.
            calibration: token ids, `[batch, seq]`, on which output sizes are matched; None: random ones.

        Raises:
            UserError: layers that do not exist or hold no full attention any more, or shapes that do not fit;
                nothing is changed then.
        """
        placement = replace_layers(self.placement, layers, mixer)
        chosen = check_layers(layers, self.num_layers)
        config = pick_options(options, mixer)
        add_mixers(self, chosen, mixer, config, init=init, seed=seed, calibration=calibration)
        self.config.placement = list(placement)
        keep_mixers(self, {} if keep else {layer: {mixer} for layer in chosen})

    def prune(self) -> None:
        """Drop every mixer that neither the active nor a named placement uses."""
        keep_mixers(self, {layer: {mixer} for layer, mixer in enumerate(self.placement)})

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the backbone under the active placement; arguments and output are the backbone's.

        Raises:
            ValueError: a cache made for another placement, or a mask that recurrent mixers cannot use.
        """
        if use_cache is None:
            use_cache = bool(getattr(self.config.get_text_config(), "use_cache", True)) and not self.training
        if past_key_values is not None:
            check_cache(past_key_values, self._layout())
        elif use_cache:
            past_key_values = self.make_cache()
        with forward_context(self._context(attention_mask, None if past_key_values else position_ids)):
            return self.backbone(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )

    def final_hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        packing: Packing | None = None,
        cache: HybridCache | None = None,
    ) -> torch.Tensor:
        """Return what the LM head reads, after the final norm: `[batch, seq, hidden]`; a cache is continued."""
        decoder = getattr(self.backbone, self.backbone.base_model_prefix)
        positions = position_ids if packing is None else packing.positions
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}
        with forward_context(self._context(attention_mask, packing=packing)):
            return decoder(**inputs, past_key_values=cache, use_cache=cache is not None).last_hidden_state

    def make_cache(self) -> HybridCache:
        """Return an empty cache for the active placement."""
        layout, native = self._layout(), native_layers(self.backbone.config)
        for layer, (kind, bank) in enumerate(zip(layout, self.banks, strict=True)):
            if kind == SKIPPED:
                native[layer] = SkippedLayer()
            elif kind != FULL_ATTENTION:
                native[layer] = cast(Any, bank.mixers[kind]).make_cache_layer()
        return HybridCache(native, layout)

    def _layout(self) -> tuple[str, ...]:
        return tuple(
            SKIPPED if layer in self._skipped else name for layer, name in enumerate(self.config.placement)
        )

    def _context(self, mask: Any, positions: Any = None, packing: Packing | None = None) -> ForwardContext:
        return context_for(self.placement, self._skipped, mask, positions, packing)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        given = model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False
        if given or generation_config.cache_implementation not in (None, "dynamic"):
            cast(Any, super())._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
            return
        model_kwargs["past_key_values"] = self.make_cache()
        if generation_config.is_assistant:
            model_kwargs["past_key_values"].activate_past_recording()

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, **kwargs):
        """Checkpoint layers as transformers does, each recomputed in the context of its first run."""
        function = partial(checkpoint_in_context, gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, function, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load what `save_pretrained` wrote; `placement=` makes another one active, as `set_placement` does.

        Raises:
            UserError: weights are missing, unexpected, of the wrong shape or hash; no such placement.
        """
        check_weights(args[0])
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # to refuse them by name
        model, info = cast(Any, super().from_pretrained(*args, **kwargs))
        refuse_incomplete(str(args[0]), info)
        return (model, info) if with_info else model


AutoConfig.register(HybridConfig.model_type, HybridConfig)
AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM)
