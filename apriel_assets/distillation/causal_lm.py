"""What training and scoring ask of a causal LM, be it a hybrid or a plain transformers model."""

from typing import Any, Protocol, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from apriel_assets.hybrid.forward_context import ForwardContext, forward_context
from apriel_assets.hybrid.packing import Packing


class CausalLM(Protocol):
    """A transformers model, or what stands for one: also has `final_hidden_states` or a `base_model`."""

    def get_input_embeddings(self) -> nn.Module: ...

    def get_output_embeddings(self) -> Any: ...


def final_hidden_states(
    model: CausalLM, input_ids: Tensor, attention_mask: Tensor | None = None, packing: Packing | None = None
) -> Tensor:
    """Return what the LM head reads, after the final norm: `[batch, seq, hidden]`.

    Without a mask every token counts as real; where padding is on the right, it changes nothing before it.
    Packed rows, `[1, tokens]`, have none; the model must be `packable` then.
    """
    if hasattr(model, "final_hidden_states"):
        return cast(Any, model).final_hidden_states(input_ids, attention_mask, packing=packing)
    base = cast(Any, model).base_model
    if packing is None:
        return base(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    with forward_context(ForwardContext(placement=(), packing=packing)):
        return base(input_ids=input_ids, position_ids=packing.positions, use_cache=False).last_hidden_state


def lm_head(model: CausalLM) -> nn.Linear:
    """Return the output embeddings."""
    return cast(nn.Linear, model.get_output_embeddings())


def num_embeddings(model: CausalLM) -> int:
    """Return the number of token ids that the model can read."""
    return cast(nn.Embedding, model.get_input_embeddings()).num_embeddings


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of decoder layers that the model's own forward walks."""
    if hasattr(model, "decoder_layers"):
        return cast(Any, model).decoder_layers
    return cast(Any, model.base_model).layers


def switch_checkpointing(model: PreTrainedModel, *, on: bool) -> None:
    """Compute decoder layers again in the backward pass instead of keeping their activations, or stop doing so."""
    own = cast(Any, model)
    # Later releases of transformers 5 have other names for both.
    if on:
        enable = getattr(own, "activation_checkpointing_enable", None) or own.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    else:
        (getattr(own, "activation_checkpointing_disable", None) or own.gradient_checkpointing_disable)()
