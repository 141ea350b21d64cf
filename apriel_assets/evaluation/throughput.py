"""How fast a model reads prompts and decodes on the present device, beside what the byte model says.

Decoding is timed from a cache that a prefill of random tokens filled to the wanted context. Speed does not
depend on what the tokens are, so contexts longer than the model was trained for do no harm.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import torch
from torch import Tensor

from apriel_assets.evaluation.config import ThroughputConfig
from apriel_assets.evaluation.generation import Decoding, evaluating
from apriel_assets.evaluation.roofline import ModelShape, Phase, modelled_speedup
from apriel_assets.progress import Progress, silent
from apriel_assets.tables.schemas import to_table

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM


T = TypeVar("T")


def measure_throughput(
    model: "HybridForCausalLM",
    config: ThroughputConfig,
    *,
    model_name: str,
    device_name: str,
    seed: int = 0,
    progress: Progress = silent,
) -> pa.Table:
    """Return `throughput` rows: prefill and decode at every context, the median of the repeats.

    At `decode_contexts` there is decoding only: the cache that the longest prompt filled is lengthened.

    Args:
        model: what is timed, under its active placement.
        config: contexts, batch size, repeats.
        model_name: goes into the rows.
        device_name: goes into the rows.
        seed: of the random tokens.
        progress: called with timed and all contexts.
    """
    shape = model_shape(model)
    rows = []
    contexts = (*config.contexts, *config.decode_contexts)
    with evaluating(model), torch.inference_mode():
        for number, context in enumerate(contexts):
            read = min(context, config.contexts[-1])
            tokens = _random_tokens(model, config.batch_size, read, seed)
            prefill, decode, cache_bytes = _time_context(model, tokens, context, config)
            point = partial(_row, shape, model.placement, context, config.batch_size)
            timed = [point("prefill", context, prefill)] if read == context else []
            for row in (*timed, point("decode", config.decode_tokens, decode)):
                rows.append({**row, "model": model_name, "cache_bytes": cache_bytes, "device": device_name})
            progress(number + 1, len(contexts), tokens_per_s=rows[-1]["tokens_per_s"])
    return to_table("throughput", rows)


def model_shape(model: "HybridForCausalLM") -> ModelShape:
    """Return the sizes that the byte model needs, with the element size that this model really has."""
    size = next(model.parameters()).element_size()
    changes: dict[str, Any] = {"weight_bytes": size, "cache_bytes": size}
    for bank in model.banks:
        if (window := bank.options.get("swa")) is not None:
            changes["window"] = window.window  # type: ignore[union-attr]
        if (mamba := bank.options.get("mamba")) is not None:
            for name in ("state_size", "conv_size", "dt_rank"):
                changes[name] = getattr(mamba, name)
        if (kda := bank.options.get("kda")) is not None:
            changes["gate_rank"] = kda.gate_rank  # type: ignore[union-attr]
    return ModelShape.from_config(model.config.get_text_config(), **changes)


def _row(
    shape: ModelShape,
    placement: tuple[str, ...],
    context: int,
    batch_size: int,
    phase: Phase,
    num_tokens: int,
    seconds: list[float],
) -> dict[str, Any]:
    """Return the figures of one point; `num_tokens` is per sequence, `seconds` one entry a repeat."""
    return {
        "phase": phase,
        "context_tokens": context,
        "batch_size": batch_size,
        "tokens_per_s": batch_size * num_tokens / statistics.median(seconds),
        "seconds_low": min(seconds),
        "seconds_high": max(seconds),
        "modelled_speedup": modelled_speedup(shape, placement, context, batch_size, phase),
    }


def _random_tokens(model: "HybridForCausalLM", batch_size: int, context: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    embeddings: Any = model.get_input_embeddings()
    tokens = torch.randint(embeddings.num_embeddings, (batch_size, context), generator=generator)
    return tokens.to(model.device)


def _time_context(
    model: "HybridForCausalLM", tokens: Tensor, context: int, config: ThroughputConfig
) -> tuple[list[float], list[float], int]:
    """Return seconds of each prefill, seconds of each decode (all its steps), bytes of the full cache.

    A prompt `[batch, seq]` shorter than the context is read once, and its cache lengthened.
    """
    mask = torch.ones_like(tokens)
    prefill: list[float] = []
    decode: list[float] = []
    state, seconds, cache_bytes = None, 0.0, 0
    began = time.perf_counter()
    # One unmeasured round first: allocations and kernel choices belong to no repeat.
    for repeat in range(config.repeats + 1):
        if repeat > 1 and time.perf_counter() - began > config.max_seconds_per_point:
            break
        if not repeat or tokens.shape[1] == context:
            state, seconds = _timed(partial(Decoding, model, tokens, mask), model.device)
            if tokens.shape[1] < context:
                state.lengthen(context - tokens.shape[1])
            cache_bytes = _cache_bytes(state.cache)
        steps = config.decode_tokens if repeat else 1
        assert state is not None
        _, step_seconds = _timed(partial(_decode, state, steps), model.device)
        if repeat:
            prefill.append(seconds)
            decode.append(step_seconds)
    return prefill, decode, cache_bytes


def _decode(state: Decoding, steps: int) -> None:
    for _ in range(steps):
        state.step(state.logits.argmax(-1))


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began


def _cache_bytes(cache: Any) -> int:
    """Return the bytes of every state that the cache's layers hold; counters do not count."""
    total = 0
    for layer in cache.layers:
        for value in vars(layer).values():
            tensors = value.values() if isinstance(value, dict) else [value]
            total += sum(
                t.numel() * t.element_size()
                for t in tensors
                if isinstance(t, Tensor) and t.is_floating_point()
            )
    return total
