"""What whole stages cost: layer scores, probes, supernet steps, placement scores; a training step on N GPUs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from apriel_assets.capacity.cost import Cost, forward_cost, head_flops, layers_flops, training_cost
from apriel_assets.capacity.memory import Layers, model_parameters, trained_parameters
from apriel_assets.capacity.rates import Figure, Rates
from apriel_assets.evaluation.roofline import ModelShape, mixer_parameters

REUSE = Figure(
    0.53,
    "measured on 12 layers: benchmarks/results/placement_scoring.json, layers evaluated over layers alone",
)
LINKS = {  # bytes/s that one GPU exchanges with the others
    "NVLink": Figure(450e9, "assumed: datasheet of an H100 host, one direction"),
    "InfiniBand": Figure(50e9, "assumed: one 400 Gb/s port a GPU"),
}


def layer_scores_cost(
    shape: ModelShape, num_layers: int, tokens: int, rates: Rates, *, head_tokens: float | None = None
) -> Cost:
    """Return the cost of leave-one-out scores on one trace: a whole pass, then for each layer those from it on."""
    passes = 1 + (num_layers + 1) / 2
    read = tokens if head_tokens is None else head_tokens
    whole = forward_cost(shape, ("fa",) * num_layers, tokens, rates, head_tokens=0).times(passes)
    # The divergence of each layer takes both heads' logits.
    return whole + _heads(shape, 2 * num_layers * read, rates)


def probes_cost(
    shape: ModelShape,
    placement: Sequence[str],
    mixer: str,
    num_candidates: int,
    tokens: int,
    rates: Rates,
    *,
    loss_tokens: float | None = None,
) -> Cost:
    """Return the cost of one trace in a step of probes that train the swapped mixer alone.

    Teacher and student pass once; each candidate goes forwards and backwards from its layer on, half of the model on
    average.

    Args:
        shape: sizes.
        placement: of the student before the swap.
        mixer: what candidates are swapped to.
        num_candidates: layers that are tried.
        tokens: of the trace.
        rates: of the GPU.
        loss_tokens: completion tokens; None: all.
    """
    depth = len(placement)
    shared = forward_cost(shape, placement, tokens, rates, head_tokens=0)
    shared += forward_cost(shape, ("fa",) * depth, tokens, rates, head_tokens=0)
    half = (depth + 1) / 2 / depth
    layers = 2 * half * layers_flops(shape, placement, tokens) + 2 * mixer_parameters(shape, mixer) * tokens
    scans = half * sum(rates.scan_seconds(m, tokens, shape.inner_size, backward=True) for m in placement)
    own = Cost(flops=layers, gpu_seconds=rates.seconds(layers, rates.train_mfu) + scans)
    heads = _heads(shape, 3 * (tokens if loss_tokens is None else loss_tokens), rates)
    return shared + (own + heads).times(num_candidates)


def supernet_cost(
    shape: ModelShape,
    layers: Layers,
    tokens: int,
    rates: Rates,
    *,
    loss_tokens: float | None = None,
    trains_all: bool = False,
    checkpointing: bool = True,
) -> Cost:
    """Return the mean cost of one trace in a supernet step: each layer runs any of its mixers alike often.

    Cost is a sum over layers, so its mean is that of one placement after another, each with the same mixer rank.
    """
    rounds = math.lcm(*(len(mixers) for mixers in layers))
    costs = Cost()
    for rank in range(rounds):
        placement = [mixers[rank % len(mixers)] for mixers in layers]
        costs += training_cost(
            shape,
            placement,
            tokens,
            rates,
            loss_tokens=loss_tokens,
            trains_all=trains_all,
            checkpointing=checkpointing,
        )
    return costs.times(1 / rounds)


def scoring_cost(
    shape: ModelShape,
    placement: Sequence[str],
    tokens: int,
    rates: Rates,
    *,
    num_placements: int,
    head_tokens: float | None = None,
    reuse: float = REUSE.value,
) -> Cost:
    """Return the cost of scoring placements on one stored completion by forward passes.

    Args:
        shape: sizes.
        placement: a typical one.
        tokens: prompt and completion.
        rates: of the GPU.
        num_placements: that are scored.
        head_tokens: completion tokens; None: all.
        reuse: share of the layers that still run where placements share their first layers.
    """
    layers = forward_cost(shape, placement, tokens, rates, head_tokens=0).times(reuse)
    return (layers + _heads(shape, tokens if head_tokens is None else head_tokens, rates)).times(
        num_placements
    )


def _heads(shape: ModelShape, tokens: float, rates: Rates) -> Cost:
    flops = head_flops(shape, tokens)
    return Cost(flops=flops, gpu_seconds=rates.seconds(flops, rates.loss_mfu))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """One optimiser step on N GPUs."""

    compute_s: float
    exchange_s: float  # of weights and gradients, meanwhile

    @property
    def seconds(self) -> float:
        """Wall time if exchange and computation overlap fully; the larger one limits."""
        return max(self.compute_s, self.exchange_s)


def step_time(
    sequence: Cost,
    shape: ModelShape,
    layers: Layers,
    *,
    batch_size: int,
    num_gpus: int,
    micro_batches: int,
    link_bytes_per_s: float,
    teacher: bool = True,
    trains: Literal["all", "mixers"] = "all",
) -> StepTime:
    """Return what an optimiser step of fully sharded training takes.

    Every micro-batch gathers the student's weights twice in bf16, the teacher's once, and splits fp32 gradients once.

    Args:
        sequence: cost of one sequence (`training_cost`).
        shape: sizes.
        layers: the mixers that each layer holds.
        batch_size: sequences of the step, all GPUs together.
        num_gpus: that share it.
        micro_batches: of each GPU in a step.
        link_bytes_per_s: that a GPU exchanges with the others, see `LINKS`.
        teacher: a separate one is sharded likewise.
        trains: all, or the mixers only.
    """
    weights = model_parameters(shape, layers)
    moved = 2 * 2 * weights + 4 * trained_parameters(shape, layers, trains) + (2 * weights if teacher else 0)
    exchanged = micro_batches * moved * (num_gpus - 1) / num_gpus
    return StepTime(
        compute_s=sequence.gpu_seconds * batch_size / num_gpus, exchange_s=exchanged / link_bytes_per_s
    )
