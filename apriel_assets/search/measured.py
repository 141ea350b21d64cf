"""What a mixer costs on the present device: one layer's mixer against full attention, timed in the same passes.

The model really runs: prompts are read, tokens decoded, and only the calls of the mixers are timed. The first layers
have full attention, as many after them the mixer, so that both see the same machine within milliseconds and each
follows its own kind, as in a hybrid of few kinds; mixers of the other layers are left out.

On a GPU, decoding is timed as an engine does it instead, by CUDA graphs (`measured_steps.py`): call by call a thin
layer costs what launching its kernels does.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import Decoding, evaluating
from apriel_assets.evaluation.roofline import (
    ModelShape,
    decode_bytes_per_step,
    mixer_parameters,
    num_parameters,
    prefill_flops,
)
from apriel_assets.evaluation.throughput import model_shape
from apriel_assets.hybrid.config import MixerOptions, pick_options
from apriel_assets.hybrid.conversion import convert_attention
from apriel_assets.hybrid.placement import FULL_ATTENTION
from apriel_assets.progress import Progress, silent
from apriel_assets.search.config import CostPoint, CostsConfig, Phase
from apriel_assets.search.measured_steps import replays, time_steps
from apriel_assets.tables.schemas import to_table

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

logger = logging.getLogger(__name__)

_READ_TOKENS = 256
_TIMED_LAYERS = 8  # half of them full attention; more would repeat the same measurement

Samples = dict[Phase, list[float]]


def measure_mixer(
    model: "HybridForCausalLM",
    mixer: str,
    config: CostsConfig,
    *,
    device_name: str,
    options: MixerOptions | Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> pa.Table:
    """Return `mixer_costs` rows of one mixer, one per point.

    Args:
        model: a hybrid whose first layers hold full attention, on the device in question; it ends as it came. A
            teacher will do: layers without the mixer get one for the measurement, since its weights do not matter.
        mixer: "fa" gives rows whose `relative` is 1.
        config: points and repeats.
        device_name: goes into the rows.
        options: how a mixer is built where a layer has none; None: the defaults.
        seed: of the random tokens.
        progress: called with points done and all.

    Raises:
        UserError: fewer than two layers with full attention, or a mixer that does not fit the attention.
    """
    rows = []
    with evaluating(model), _half_and_half(model, mixer, options) as layers, torch.inference_mode():
        shape = model_shape(model)
        for number, context in enumerate(config.contexts):
            found = _seconds(model, layers, context, config, seed)
            for point in (point for point in config.points if point.context == context):
                fa_seconds, seconds = found[point.phase]
                if mixer == FULL_ATTENTION:
                    seconds = fa_seconds
                rows.append(_row(mixer, point, seconds, fa_seconds, shape, device_name))
            progress(number + 1, len(config.contexts), relative=rows[-1]["relative"])
    return to_table("mixer_costs", rows)


def _seconds(
    model: "HybridForCausalLM", layers: list[int], context: int, config: CostsConfig, seed: int
) -> dict[Phase, tuple[float, float]]:
    """Return the seconds of a layer with full attention, and of one with the mixer, by phase."""
    groups = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    found: dict[Phase, tuple[float, float]] = {}
    if config.phase != "prefill" and replays(model):
        try:
            found["decode"] = time_steps(model, groups, context, config)
        except UserError as error:
            logger.warning("%s: its calls are timed one by one, launches included", error)
    if "decode" in found:
        if config.phase == "decode":
            return found
        config = replace(config, phase="prefill")
    tokens = random_tokens(model, config.batch_size, context, seed)
    samples = _time_layers(model, tokens, layers, config)
    for point in config.points:
        # The least of each layer: whatever else the machine does can only add.
        fa, own = (statistics.fmean(min(samples[layer][point.phase]) for layer in group) for group in groups)
        found[point.phase] = fa, own
    return found


def random_tokens(model: "HybridForCausalLM", batch_size: int, context: int, seed: int) -> Tensor:
    """Return token ids `[batch, context]` on the model's device. Speed does not depend on what they are."""
    generator = torch.Generator().manual_seed(seed)
    embeddings: Any = model.get_input_embeddings()
    return torch.randint(embeddings.num_embeddings, (batch_size, context), generator=generator).to(
        model.device
    )


def read_context(model: "HybridForCausalLM", tokens: Tensor, config: CostsConfig) -> Decoding:
    """Return the state after a context's tokens, `[batch, context]`.

    If only decoding is timed, most of them are not read: the cache is lengthened by repeats, since what it holds does
    not matter.
    """
    read = min(tokens.shape[1], _READ_TOKENS) if config.phase == "decode" else tokens.shape[1]
    state = Decoding(model, tokens[:, :read], torch.ones_like(tokens[:, :read]))
    if read < tokens.shape[1]:
        state.lengthen(tokens.shape[1] - read)
    return state


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return what `work` returns, and its seconds."""
    _wait(device)
    began = time.perf_counter()
    result = work()
    _wait(device)
    return result, time.perf_counter() - began


def _row(
    mixer: str, point: CostPoint, seconds: float, fa_seconds: float, shape: ModelShape, device_name: str
) -> dict[str, Any]:
    amounts = [mixer_amount(shape, name, point) for name in (mixer, FULL_ATTENTION)]
    return {
        "mixer": mixer,
        "phase": point.phase,
        "context_tokens": point.context,
        "batch_size": point.batch_size,
        "seconds": seconds,
        "fa_seconds": fa_seconds,
        "relative": seconds / fa_seconds,
        "roofline_relative": amounts[0] / amounts[1],
        "device": device_name,
    }


def mixer_amount(shape: ModelShape, mixer: str, point: CostPoint) -> float:
    """Return what limits one layer's mixer: bytes of a decode step, or FLOP of reading the prompts."""
    amount = decode_bytes_per_step if point.phase == "decode" else prefill_flops
    one, two = (amount(shape, (mixer,) * layers, point.context, point.batch_size) for layers in (1, 2))
    layer = num_parameters(shape, (mixer,) * 2) - num_parameters(shape, (mixer,))
    feed_forward = layer - mixer_parameters(shape, mixer)
    each = shape.weight_bytes if point.phase == "decode" else 2 * point.context * point.batch_size
    return two - one - feed_forward * each


@contextmanager
def _half_and_half(
    model: "HybridForCausalLM", mixer: str, options: MixerOptions | Mapping[str, Any] | None
) -> Iterator[list[int]]:
    """Let the first layers have full attention, and as many after them the mixer; yield all of these."""
    layers = list(range(min(_TIMED_LAYERS, model.num_layers) // 2 * 2))
    lost = [layer for layer in layers if FULL_ATTENTION not in model.banks[layer].names]
    if not layers or lost:
        raise UserError(
            f"a mixer's cost is measured against full attention in the first {_TIMED_LAYERS} layers (at least two), "
            f"but {f'layers {lost} hold none' if lost else 'the model has one layer'}; give the teacher or the supernet"
        )
    before, added = model.placement, []
    converted = layers[len(layers) // 2 :]
    placement = [mixer if layer in converted else FULL_ATTENTION for layer in range(model.num_layers)]
    # Layers that are left out hold their place with whatever they have.
    placement[len(layers) :] = before[len(layers) :]
    try:
        for layer in converted:
            bank = model.banks[layer]
            if mixer not in bank.names:
                picked = pick_options(options, mixer)
                attention = bank.mixers[FULL_ATTENTION]
                built = convert_attention(attention, picked, init="mapped", seed=0).to(model.device)
                bank.add(mixer, built.train(model.training), picked)
                added.append(bank)
        model.set_placement(tuple(placement))
        with model.skip_mixers(range(len(layers), model.num_layers)):
            yield layers
    finally:
        for bank in added:
            bank.drop(mixer)
        model.set_placement(before)


def _time_layers(
    model: "HybridForCausalLM", tokens: Tensor, layers: list[int], config: CostsConfig
) -> dict[int, Samples]:
    """Return the seconds of every timed call of these layers' mixers, by phase."""
    samples: dict[int, Samples] = {layer: {"prefill": [], "decode": []} for layer in layers}
    began = time.perf_counter()
    # Decoding needs one prefill, however often it is timed: the context just grows by a few tokens.
    runs = config.repeats + 1 if config.phase != "decode" else 1
    steps = 1 + config.repeats * config.decode_tokens if config.phase != "prefill" else 0
    for run in range(runs):
        if run > 1 and time.perf_counter() - began > config.max_seconds_per_point:
            break
        with _stopwatch(model, layers) as calls:
            state = read_context(model, tokens, config)
            for _ in range(steps if run == 0 else 0):
                state.step(state.logits.argmax(-1))
        for layer, (prefill, *decode) in calls.items():
            # The first prefill and the first step are unmeasured: allocations and kernel choices.
            samples[layer]["prefill"] += [prefill] if run else []
            samples[layer]["decode"] += decode[1:]
    return samples


@contextmanager
def _stopwatch(model: "HybridForCausalLM", layers: list[int]) -> Iterator[dict[int, list[float]]]:
    """Collect the seconds of every call of these layers' mixers."""
    seconds: dict[int, list[float]] = {layer: [] for layer in layers}
    began: dict[int, float] = {}

    def start(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            _wait(model.device)
            began[layer] = time.perf_counter()

        return hook

    def stop(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            _wait(model.device)
            seconds[layer].append(time.perf_counter() - began[layer])

        return hook

    hooks = []
    for layer in layers:
        bank = model.banks[layer]
        hooks += [bank.register_forward_pre_hook(start(layer)), bank.register_forward_hook(stop(layer))]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
