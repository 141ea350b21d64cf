"""Bytes on each of N GPUs: weights, gradients, optimiser states, activations, logits; and of a model that decodes.

Fully sharded training (FSDP2): what is kept is split over the GPUs, one layer at a time is gathered to be used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import ModelShape, cache_bytes_per_layer, mixer_parameters

Layers = Sequence[Sequence[str]]
"""The mixers that each layer holds, first layer first; a placement's layers hold one each."""

CHUNK_LOGITS = 2**28  # logits that the loss has at once on a GPU (distillation/losses.py)
_NORM_BYTES = 4  # norms keep their input in fp32


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Bytes of an element: bf16 for computing, fp32 for what is kept."""

    kept: float = 4  # trained weights as the optimiser has them
    gradient: float = 4
    state: float = 4  # of the optimiser
    working: float = 2  # gathered weights, activations, logits, whatever does not train


MIXED = Precision()


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one GPU at the peak."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    teacher: float = 0.0  # its own copy; 0 where the student contains it
    gathered: float = 0.0  # whole layers in use
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, own.name) for own in fields(self))


def placement_layers(placement: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return what the layers of one placement hold."""
    return tuple((mixer,) for mixer in placement)


def layer_parameters(shape: ModelShape, mixers: Sequence[str]) -> int:
    """Return the parameters of a decoder layer that holds these mixers: with SwiGLU block and two norms."""
    held = sum(mixer_parameters(shape, mixer) for mixer in mixers)
    return held + 3 * shape.hidden_size * shape.intermediate_size + 2 * shape.hidden_size


def model_parameters(shape: ModelShape, layers: Layers, *, tied: bool = False) -> int:
    """Return all parameters; biases and the mixers' own norms are left out.

    Args:
        shape: sizes.
        layers: the mixers that each layer holds.
        tied: embedding and LM head are one matrix.
    """
    tables = (1 if tied else 2) * shape.vocab_size * shape.hidden_size
    return sum(layer_parameters(shape, mixers) for mixers in layers) + tables + shape.hidden_size


def trained_parameters(shape: ModelShape, layers: Layers, trains: Literal["all", "mixers"] = "all") -> int:
    """Return how many parameters train; "mixers" are those that are not full attention."""
    if trains == "all":
        return model_parameters(shape, layers)
    return sum(mixer_parameters(shape, mixer) for mixers in layers for mixer in mixers if mixer != "fa")


def optimizer_state_bytes(
    shape: ModelShape,
    layers: Layers,
    optimizer: Literal["adamw", "muon"] = "adamw",
    trains: Literal["all", "mixers"] = "all",
    state_bytes: float = 4,
) -> float:
    """Return the bytes of all optimiser states: AdamW keeps two numbers a parameter, Muon one.

    Muon takes the layers' matrices; embedding, LM head and norms are AdamW's.
    """
    trained = trained_parameters(shape, layers, trains)
    if optimizer == "adamw":
        return 2 * state_bytes * trained
    outer = 0
    if trains == "all":
        outer = 2 * shape.vocab_size * shape.hidden_size + (2 * len(layers) + 1) * shape.hidden_size
    return state_bytes * (trained - outer) + 2 * state_bytes * outer


def layer_activation_bytes(shape: ModelShape, mixer: str, working: float = 2) -> float:
    """Return the bytes per token that a layer keeps for its backward pass.

    Two norms keep input (fp32) and normalised value; their outputs feed products. Attention keeps queries, keys, values
    and its output, SwiGLU four of its width. Recurrent mixers by their inputs before and after the convolution, gates
    and outputs, counted by hand and not checked.
    """
    d, inner = shape.hidden_size, shape.inner_size
    kv = shape.num_kv_heads * shape.head_size
    kept = {
        "fa": 2 * inner + 2 * kv,
        "swa": 2 * inner + 2 * kv,
        "mamba": 8 * inner + 4 * kv,  # x, B, C twice; z, dt, scanned, gated
        "gdn": 10 * inner,  # q, k, v twice; gate, read, normed, gated
        "kda": 11 * inner,  # and the decay of every channel
    }
    if mixer not in kept:
        raise UserError(f"no activation formula for mixer {mixer!r}; known: {', '.join(kept)}")
    norms = 2 * d * (_NORM_BYTES + 2 * working)
    return norms + working * (kept[mixer] + 4 * shape.intermediate_size)


def activation_bytes(
    shape: ModelShape, layers: Layers, tokens: int, *, checkpointing: bool, working: float = 2
) -> float:
    """Return the bytes that a micro-batch of `tokens` on one GPU keeps for its backward pass.

    With checkpointing that is each layer's input and one layer as it is computed again. A layer with several mixers
    runs one of them: the one that keeps most counts.
    """
    per_layer = [
        max(layer_activation_bytes(shape, mixer, working) for mixer in mixers) * tokens for mixers in layers
    ]
    if checkpointing:
        return working * shape.hidden_size * tokens * len(layers) + max(per_layer)
    return sum(per_layer)


def loss_bytes(
    shape: ModelShape, tokens: int, *, teacher: bool = True, head_trains: bool = True, working: float = 2
) -> float:
    """Return the bytes of the fused loss beyond its inputs.

    A chunk's logits of student and teacher, and the gradients of hidden states and head.
    """
    chunk = min(tokens, max(1, CHUNK_LOGITS // shape.vocab_size)) * shape.vocab_size
    head = shape.vocab_size * shape.hidden_size if head_trains else 0
    return working * ((2 if teacher else 1) * chunk + head + tokens * shape.hidden_size)


def training_memory(
    shape: ModelShape,
    layers: Layers,
    *,
    tokens: int,
    num_gpus: int = 1,
    checkpointing: bool = True,
    optimizer: Literal["adamw", "muon"] = "adamw",
    trains: Literal["all", "mixers"] = "all",
    teacher: bool = True,
    precision: Precision = MIXED,
) -> Memory:
    """Return the bytes on one GPU at the peak of a training step.

    Args:
        layers: the mixers that each layer holds.
        tokens: of one GPU's micro-batch.
        num_gpus: over which weights, gradients and states are sharded.
        checkpointing: layers are computed again in the backward pass.
        optimizer: Muon takes matrices only.
        trains: if the mixers only, the student contains its teacher.
        precision: fp32 kept, bf16 working by default.

    Raises:
        UserError: no GPU, no tokens, an unknown mixer.
    """
    if num_gpus < 1 or tokens < 1 or not layers:
        raise UserError(f"{num_gpus} GPUs, {tokens} tokens, {len(layers)} layers: each must be at least 1")
    own, trains_all = precision, trains == "all"
    trained, total = trained_parameters(shape, layers, trains), model_parameters(shape, layers)
    all_fa = model_parameters(shape, placement_layers(["fa"] * len(layers)))
    return Memory(
        weights=(trained * own.kept + (total - trained) * own.working) / num_gpus,
        gradients=trained * own.gradient / num_gpus,
        optimizer=optimizer_state_bytes(shape, layers, optimizer, trains, own.state) / num_gpus,
        teacher=(teacher and trains_all) * all_fa * own.working / num_gpus,
        gathered=_gathered_bytes(shape, layers, trained, num_gpus, own),
        activations=activation_bytes(shape, layers, tokens, checkpointing=checkpointing, working=own.working),
        logits=loss_bytes(shape, tokens, teacher=teacher, head_trains=trains_all, working=own.working),
    )


def _gathered_bytes(
    shape: ModelShape, layers: Layers, trained: int, num_gpus: int, precision: Precision
) -> float:
    if num_gpus == 1:
        # Not sharded: autocast keeps a working copy of all trained weights through the pass.
        return trained * precision.working if precision.kept > precision.working else 0.0
    largest = max(layer_parameters(shape, mixers) for mixers in layers)
    tables = 2 * shape.vocab_size * shape.hidden_size  # embedding and head stay through the pass
    # The layer in use, the next one on its way, and the gradient of one before it is split.
    return (2 * largest + tables) * precision.working + largest * precision.gradient


def inference_memory(
    shape: ModelShape,
    layers: Layers,
    *,
    placement: Sequence[str] | None = None,
    rows: int = 1,
    context: int = 1,
) -> Memory:
    """Return the bytes on one GPU of a model that decodes `rows` sequences of `context` tokens.

    Args:
        shape: sizes.
        layers: the mixers that each layer holds.
        placement: the one that runs, whose caches count; None: the layers hold one mixer each.
        rows: sequences at once.
        context: tokens in the cache of each.
    """
    active = placement or [mixers[0] for mixers in layers]
    cache = sum(cache_bytes_per_layer(shape, mixer, context) for mixer in active)
    return Memory(weights=model_parameters(shape, layers) * shape.weight_bytes, cache=rows * cache)


def rows_that_fit(shape: ModelShape, placement: Sequence[str], context: int, memory_bytes: float) -> int:
    """Return how many sequences of `context` tokens decode at once on one GPU.

    Raises:
        UserError: not one.
    """
    reserve = 1.5 * 2**30  # activations and workspaces
    one = inference_memory(shape, placement_layers(placement), rows=1, context=context)
    free = memory_bytes - reserve - one.weights
    if free < one.cache:
        raise UserError(
            f"{one.weights / 2**30:.1f} GiB of weights and {one.cache / 2**30:.1f} GiB of cache for one sequence of "
            f"{context} tokens do not fit in {memory_bytes / 2**30:.0f} GiB; take a larger GPU or a shorter context"
        )
    return int(free // one.cache)
