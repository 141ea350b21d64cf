"""Find what we replace inside any usual causal LM of transformers: decoder layers and their attention."""

import inspect
from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from apriel_assets.errors import UserError

_CALL_ARGUMENTS = ("hidden_states", "position_embeddings", "attention_mask", "past_key_values")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """Sizes of an attention module; query head h reads key-value head h // (num_heads // num_kv_heads)."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int

    @property
    def queries_per_kv_head(self) -> int:
        return self.num_heads // self.num_kv_heads


def find_decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of decoder layers, each with a `self_attn`.

    Raises:
        UserError: none, or several, such lists; names the model's class.
    """
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == num_layers
        and all(isinstance(getattr(layer, "self_attn", None), nn.Module) for layer in module)
    ]
    if len(found) != 1:
        raise UserError(
            f"{type(model).__name__} has {len(found)} lists of {num_layers} decoder layers with a self_attn; "
            "need exactly one, as Llama, Mistral, Qwen2 and Qwen3 have"
        )
    return found[0]


def decoder_layers_name(model: PreTrainedModel) -> str:
    """Return the name under which the model holds its decoder layers: finding them walks every module."""
    layers = find_decoder_layers(model)
    return next(name for name, module in model.named_modules() if module is layers)


def check_attention_call(layers: nn.ModuleList) -> None:
    """Check that every attention module takes the usual arguments.

    Raises:
        UserError: names the class that does not.
    """
    for index, layer in enumerate(layers):
        attention = cast(nn.Module, layer.self_attn)
        accepted = inspect.signature(type(attention).forward).parameters
        if missing := [name for name in _CALL_ARGUMENTS if name not in accepted]:
            raise UserError(
                f"layer {index}: {type(attention).__name__} does not take {', '.join(missing)}; "
                f"need attention called with {', '.join(_CALL_ARGUMENTS)}"
            )


def attention_shape(attention: nn.Module) -> AttentionShape:
    """Read the sizes off an attention module's projections.

    Raises:
        UserError: projections that are missing or do not fit together; names the class.
    """
    name = type(attention).__name__
    if missing := [p for p in _PROJECTIONS if not isinstance(getattr(attention, p, None), nn.Linear)]:
        raise UserError(f"{name} has no linear {', '.join(missing)}; need separate q, k, v and o projections")
    q, k, v, o = (cast(nn.Linear, getattr(attention, projection)) for projection in _PROJECTIONS)
    head_size = cast(int, getattr(attention, "head_dim", 0))
    if not head_size:
        raise UserError(f"{name} has no head_dim; cannot tell its heads apart")
    sizes = {"q_proj": q.out_features, "k_proj": k.out_features, "v_proj": v.out_features}
    if any(size % head_size for size in sizes.values()):
        raise UserError(f"{name}: {sizes} are not multiples of head_dim {head_size}")
    shape = AttentionShape(
        hidden_size=q.in_features,
        num_heads=q.out_features // head_size,
        num_kv_heads=k.out_features // head_size,
        head_size=head_size,
    )
    if v.out_features != k.out_features or o.in_features != q.out_features:
        raise UserError(
            f"{name}: o_proj takes {o.in_features}, and {sizes}; keys and values, queries and output differ"
        )
    if shape.num_heads % shape.num_kv_heads:
        raise UserError(
            f"{name}: {shape.num_heads} query heads cannot share {shape.num_kv_heads} key-value heads"
        )
    return shape
