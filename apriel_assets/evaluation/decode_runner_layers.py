"""A decoder layer around its mixer in a decode runner, and what a model must look like for that."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from apriel_assets.errors import UserError
from apriel_assets.evaluation.decode_runner_mixers import Clock, StaticMixer
from apriel_assets.evaluation.decode_runner_projections import fuse
from apriel_assets.hybrid.kernels import decode

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_SWIGLU_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
# Scales that some architectures apply between the parts that we know.
_SCALES = ("residual_multiplier", "embedding_multiplier", "logits_scaling", "final_logit_softcapping")
_FIXED_ROTATIONS = (
    "default",
    "linear",
    "llama3",
    "yarn",
)  # cos and sin of a position do not depend on the length


class DecodeLayer:
    """x += mixer(norm(x)); x += mlp(norm(x)), each sum taken where the next norm reads it."""

    def __init__(self, layer: nn.Module, mixer: StaticMixer) -> None:
        self.mixer = mixer
        self._norms = cast(Any, layer.input_layernorm), cast(Any, layer.post_attention_layernorm)
        self._mlp: Any = layer.mlp
        self._gate_up = fuse(self._mlp.gate_proj, self._mlp.up_proj) if _is_swiglu(self._mlp) else None
        others = [parameter for part in (*self._norms, self._mlp) for parameter in part.parameters()]
        self.parameters = [*mixer.parameters, *others]

    def __call__(self, residual: Tensor, update: Tensor | None, clock: Clock) -> Tensor:
        """Add `update` to `residual`, `[batch, hidden]`, then the mixer's output, in place; return the MLP's output."""
        first, second = self._norms
        mixed = self.mixer.step(
            decode.add_norm(residual, update, first.weight, first.variance_epsilon), clock
        )
        normed = decode.add_norm(residual, mixed, second.weight, second.variance_epsilon)
        if self._gate_up is None:
            return self._mlp(normed)
        return self._mlp.down_proj(decode.swiglu(self._gate_up(normed)))


def check_decodable(model: "HybridForCausalLM", capacity: int) -> None:
    """Check that a model's layers are what `DecodeLayer` computes, and that it has as many positions.

    Raises:
        UserError: names what is different.
    """
    config, name = model.config.get_text_config(), type(model.backbone).__name__
    decoder: Any = getattr(model.backbone, model.backbone.base_model_prefix)
    norms = [decoder.norm]
    for layer in model.decoder_layers:
        parts = {part for part, _ in layer.named_children()}
        if parts != _PARTS:
            known = ", ".join(sorted(_PARTS))
            raise UserError(
                f"layers of {name} consist of {', '.join(sorted(parts))}; the decode runner knows {known}"
            )
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    if not all(hasattr(norm, "variance_epsilon") for norm in norms):
        raise UserError(f"the norms of {name} are not Llama's RMSNorm; the decode runner knows no other")
    if scaled := [key for key in _SCALES if getattr(config, key, None) not in (None, 1, 1.0)]:
        raise UserError(f"{name} scales by {', '.join(scaled)}, which the decode runner does not")
    rotation = getattr(decoder.rotary_emb, "rope_type", None)
    if rotation not in _FIXED_ROTATIONS:
        raise UserError(
            f"positions of {name} rotate by {rotation!r}; the decode runner knows {', '.join(_FIXED_ROTATIONS)}"
        )
    if capacity > config.max_position_embeddings:
        raise UserError(f"capacity={capacity} exceeds the model's {config.max_position_embeddings} positions")


@torch.no_grad()
def rotation_table(model: "HybridForCausalLM", capacity: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of every position, `[capacity, head size]`, in the model's dtype.

    Raises:
        UserError: only part of a head rotates.
    """
    decoder: Any = getattr(model.backbone, model.backbone.base_model_prefix)
    positions = torch.arange(capacity, device=model.device)[None]
    cos, sin = decoder.rotary_emb(torch.zeros(1, 1, dtype=model.dtype, device=model.device), positions)
    config = model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if cos.shape[-1] != head_size:
        raise UserError(f"{cos.shape[-1]} of {head_size} channels rotate; the decode runner rotates all")
    return cos[0].contiguous(), sin[0].contiguous()


def _is_swiglu(mlp: nn.Module) -> bool:
    parts = {part for part, _ in mlp.named_children()}
    return parts == _SWIGLU_PARTS and type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
