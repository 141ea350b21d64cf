"""The hybrid in vLLM: its Llama, with each layer's mixer in the place of attention."""

import copy
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.attention import Attention  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.mamba.mamba_utils import (  # pyright: ignore[reportMissingImports]
    MambaStateCopyFuncCalculator,
)
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid  # pyright: ignore[reportMissingImports]
from vllm.model_executor.models.llama import (  # pyright: ignore[reportMissingImports]
    LlamaDecoderLayer,
    LlamaForCausalLM,
)
from vllm.model_executor.models.utils import (  # pyright: ignore[reportMissingImports]
    AutoWeightsLoader,
    WeightsMapper,
    extract_layer_index,
)
from vllm.v1.kv_cache_interface import MambaSpec  # pyright: ignore[reportMissingImports]

from apriel_assets.hybrid.checkpoint import check_weights
from apriel_assets.hybrid.config import MambaConfig
from apriel_assets.serving.vllm_plugin.layers.attention import build_attention
from apriel_assets.serving.vllm_plugin.layers.delta import (
    GatedDeltaNetLayer,
    KimiDeltaLayer,
    delta_state_shapes,
)
from apriel_assets.serving.vllm_plugin.layers.mamba import MambaLayer, mamba_state_shapes
from apriel_assets.serving.vllm_plugin.layers.recurrent import Shapes, state_dtypes
from apriel_assets.serving.vllm_plugin.servable import (
    LayerPlan,
    attention_window,
    check_features,
    check_head_size,
    layer_plan,
)
from apriel_assets.serving.vllm_plugin.weight_names import WEIGHT_NAMES

_RECURRENT = {"gdn": GatedDeltaNetLayer, "kda": KimiDeltaLayer, "mamba": MambaLayer}


class HybridForCausalLM(LlamaForCausalLM, HasInnerState, IsHybrid):
    """A fixed-layout export."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """
        Raises:
            UserError: a checkpoint that is not what its config says, or that cannot be served like this.
        """
        plan = layer_plan(vllm_config.model_config.hf_config)
        check_features(plan, _features(vllm_config))
        check_weights(vllm_config.model_config.model)
        backbone = _described(vllm_config.model_config.hf_config.backbone)
        super().__init__(
            vllm_config=vllm_config.with_hf_config(backbone, architectures=["LlamaForCausalLM"]),
            prefix=prefix,
            layer_type=partial(_decoder_layer, plan, backbone),
        )
        for module in self.modules():
            if isinstance(module, Attention):
                check_head_size(module.head_size, module.get_attn_backend().get_supported_head_sizes())

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        names = {re.compile(pattern): replacement for pattern, replacement in WEIGHT_NAMES.items()}
        return AutoWeightsLoader(self).load_weights(weights, mapper=WeightsMapper(orig_to_new_regex=names))

    @classmethod
    def get_mamba_specs_from_config(cls, vllm_config: VllmConfig) -> list[MambaSpec]:
        """Return what each kind of recurrent layer keeps, for vLLM to size its pages; of none, an empty state."""
        config, dtypes = vllm_config.model_config.hf_config, state_dtypes(vllm_config)
        plan = layer_plan(config)
        backbone = _described(config.backbone)
        found = [
            MambaSpec(shapes=_state_shapes(backbone, plan, own), dtypes=dtypes, block_size=-1)
            for own in plan.recurrent
        ]
        return found or [MambaSpec(shapes=(), dtypes=(), block_size=-1)]

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> Any:
        return max(cls.get_mamba_specs_from_config(vllm_config), key=lambda spec: spec.page_size_bytes).shapes

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, torch.dtype]:
        return state_dtypes(vllm_config)

    @classmethod
    def get_mamba_state_copy_func(cls) -> Any:
        return MambaStateCopyFuncCalculator.gated_delta_net_state_copy_func()


def _described(backbone: Any) -> Any:
    """Return the backbone's config with what vLLM's Llama has to be told of others."""
    own = copy.deepcopy(backbone)
    if own.model_type == "qwen2":
        own.qkv_bias = True  # in its code, not in its config
    own.head_dim = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    return own


def _features(vllm_config: VllmConfig) -> dict[str, bool]:
    parallel = vllm_config.parallel_config
    return {
        "--tensor-parallel-size": parallel.tensor_parallel_size > 1,
        "--speculative-config": vllm_config.speculative_config is not None,
    }


def _state_shapes(backbone: Any, plan: LayerPlan, mixer: str) -> Shapes:
    options: Any = plan.options_of(mixer)
    if isinstance(options, MambaConfig):
        return mamba_state_shapes(backbone, options)
    return delta_state_shapes(backbone, options)


def _decoder_layer(plan: LayerPlan, backbone: Any, *, vllm_config: VllmConfig, prefix: str) -> nn.Module:
    return LlamaDecoderLayer(
        vllm_config, prefix, backbone, attn_layer_type=partial(_mixer, plan, vllm_config)
    )


def _mixer(plan: LayerPlan, vllm_config: VllmConfig, *, config: Any, prefix: str, **others: Any) -> nn.Module:
    """Return what a layer runs in the place of attention; called as `LlamaDecoderLayer` calls its attention."""
    layer = extract_layer_index(prefix)
    mixer, options = plan.placement[layer], plan.options[layer]
    if mixer not in _RECURRENT:
        return build_attention(config, attention_window(config, layer, options), prefix=prefix, **others)
    biases = {name: others[name] for name in ("bias", "bias_o_proj")}
    return _RECURRENT[mixer](config, options, vllm_config, prefix=prefix, **biases)
