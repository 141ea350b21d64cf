"""What decode steps take on a GPU, as the decode runner takes them: static caches, and a CUDA graph for several layers.

A mixer's cost and the check of it are both measured so; throughput is, too.
"""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from apriel_assets.errors import UserError
from apriel_assets.evaluation.cuda_graphs import graph_of
from apriel_assets.evaluation.decode_runner_layers import check_decodable, rotation_table
from apriel_assets.evaluation.decode_runner_mixers import Clock, StaticMixer, static_mixer
from apriel_assets.evaluation.timed_decoding import ByRunner, timed_steps
from apriel_assets.hybrid.caches import native_layers
from apriel_assets.hybrid.placement import Placement
from apriel_assets.search.config import CostsConfig

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

# In one graph: a few thin layers alone take no longer than the host needs to launch the next graph.
_STEPS_PER_GRAPH = 8
# Of whole models: whatever else the device does meets both placements.
_TURNS = 2


def replays(model: "HybridForCausalLM") -> bool:
    """Whether decoding is timed here: on a GPU, of models whose layers the decode runner knows, as throughput is."""
    if not _on_gpu(model):
        return False
    try:
        check_decodable(model, 0)
        rotation_table(model, 2)
    except UserError:
        return False
    return True


def time_steps(
    model: "HybridForCausalLM", groups: tuple[Sequence[int], Sequence[int]], context: int, config: CostsConfig
) -> tuple[float, float]:
    """Return the seconds of one layer's mixer in each of two groups of layers, under the active placement.

    Both groups are timed in turn, so that whatever else the device does meets both; the least of each counts.

    Args:
        model: what it computes does not matter, so caches hold random numbers.
        groups: layers; those of one follow each other, as in a model.
        context: tokens that each row holds.
        config: batch size, how often, and how many graphs each time; `max_seconds_per_point` is for calls one by one.

    Raises:
        UserError: attention that the decode runner does not know.
    """
    # Projections are put into one matrix for good, so they must not become tensors of inference mode.
    with torch.inference_mode(False), torch.no_grad():
        clock = Clock(
            torch.full((config.batch_size,), context, dtype=torch.int32, device=model.device),
            *rotation_table(model, context + 1),
        )
        steps = [_step(model, layers, clock, config.batch_size, context) for layers in groups]
    parts = [_STEPS_PER_GRAPH * len(layers) for layers in groups]
    first, second = _least_in_turn(steps, parts, config, model.device)
    return first, second


def time_placements(
    model: "HybridForCausalLM", pair: tuple[Placement, Placement], context: int, config: CostsConfig
) -> tuple[float, float]:
    """Return the seconds of the whole model's decode step under each of two placements, timed in turn.

    Caches are there for one of them at a time: those of two whole models at a long context may not fit the device.
    """
    before, least = model.placement, [float("inf")] * 2
    # Each run's steps, with those that go unmeasured.
    room = config.decode_tokens * (config.repeats + 1)
    try:
        for _ in range(_TURNS):
            for index, placement in enumerate(pair):
                model.set_placement(placement)
                with torch.inference_mode(False), torch.no_grad():
                    decoding = ByRunner(model, config.batch_size, context, room)
                least[index] = min(least[index], *_least_in_turn([decoding.step], [1], config, model.device))
                del decoding
                # A runner's graph holds the runner: its caches would wait for the collector, and pile up.
                gc.collect()
    finally:
        model.set_placement(before)
    return least[0], least[1]


@torch.inference_mode()
def _least_in_turn(
    steps: Sequence[Callable[[], None]], parts: Sequence[int], config: CostsConfig, device: torch.device
) -> list[float]:
    """Return the least seconds of each step, over its parts; in the first turn libraries choose kernels."""
    least = [float("inf")] * len(steps)
    for turn in range(config.repeats + 1):
        for index, step in enumerate(steps):
            took = min(timed_steps(step, config.decode_tokens, device)) / parts[index]
            least[index] = min(least[index], took) if turn else least[index]
    return least


def _step(
    model: "HybridForCausalLM", layers: Sequence[int], clock: Clock, batch_size: int, context: int
) -> Callable[[], None]:
    """Return what takes one token through these layers' mixers; it writes to the same place each time."""
    native = native_layers(model.backbone.config)
    mixers = []
    for layer in layers:
        own = cast(nn.ModuleDict, cast(Any, model.decoder_layers[layer].self_attn).mixers)
        window = native[layer].sliding_window if native[layer].is_sliding else None
        mixers.append(static_mixer(own[model.placement[layer]], batch_size, context + 1, window))
        for buffer in mixers[-1].buffers():
            buffer.normal_()
    hidden_states = torch.randn(
        batch_size, model.config.get_text_config().hidden_size, dtype=model.dtype, device=model.device
    )
    work = partial(_take_steps, mixers, hidden_states, clock)
    return graph_of(work, model.device) if _on_gpu(model) else work


def _on_gpu(model: "HybridForCausalLM") -> bool:
    return model.device.type == "cuda"


def _take_steps(mixers: Sequence[StaticMixer], hidden_states: Tensor, clock: Clock) -> None:
    for _ in range(_STEPS_PER_GRAPH):
        for mixer in mixers:
            mixer.step(hidden_states, clock)
