"""What passes over a model cost on one GPU: forward, training step, generation, in FLOP and seconds.

FLOP of a pass over T tokens: 2 per weight and token, attention by the positions that each token sees. A backward pass
costs one more for the gradients of inputs and one for those of weights that train; checkpointing computes the forward
pass again. Recurrences are timed by measured kernels, since they are far from any peak.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from apriel_assets.capacity.memory import rows_that_fit
from apriel_assets.capacity.rates import Rates
from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import (
    ModelShape,
    decode_bytes_per_step,
    mixer_parameters,
    prefill_flops,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What some work takes; costs add up, and scale with `times`."""

    tokens: float = 0.0  # that the student or the scored model reads or writes
    flops: float = 0.0  # executed, recomputed ones included
    gpu_seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            tokens=self.tokens + other.tokens,
            flops=self.flops + other.flops,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
        )

    def times(self, factor: float) -> "Cost":
        """Return the cost of so many times this work."""
        return Cost(
            tokens=self.tokens * factor, flops=self.flops * factor, gpu_seconds=self.gpu_seconds * factor
        )

    @property
    def gpu_hours(self) -> float:
        return self.gpu_seconds / 3600

    def seconds(self, num_gpus: int) -> float:
        """Return the wall time on so many GPUs that share the work evenly."""
        return self.gpu_seconds / num_gpus


def layers_flops(shape: ModelShape, placement: Sequence[str], tokens: int) -> float:
    """Return the FLOP of all decoder layers over one sequence of `tokens`, without the LM head."""
    return prefill_flops(shape, placement, tokens, 1) - head_flops(shape, 1)


def head_flops(shape: ModelShape, tokens: float) -> float:
    """Return the FLOP of one product of the LM head with `tokens` tokens."""
    return 2 * shape.vocab_size * shape.hidden_size * tokens


def forward_cost(
    shape: ModelShape,
    placement: Sequence[str],
    tokens: int,
    rates: Rates,
    *,
    head_tokens: float | None = None,
    num_heads: int = 1,
) -> Cost:
    """Return the cost of one sequence's forward pass without gradients.

    Args:
        shape: sizes.
        placement: one mixer a layer.
        tokens: of the sequence.
        rates: of the GPU.
        head_tokens: tokens that go through the LM head; None: all.
        num_heads: LM heads that they go through, e.g. 2 where a teacher's hidden states are compared with.

    Raises:
        UserError: an empty sequence or placement.
    """
    _check(placement, tokens)
    layers = layers_flops(shape, placement, tokens)
    heads = num_heads * head_flops(shape, tokens if head_tokens is None else head_tokens)
    seconds = rates.seconds(layers, rates.forward_mfu) + rates.seconds(heads, rates.loss_mfu)
    scans = sum(rates.scan_seconds(m, tokens, shape.inner_size, backward=False) for m in placement)
    return Cost(tokens=tokens, flops=layers + heads, gpu_seconds=seconds + scans)


def training_cost(
    shape: ModelShape,
    placement: Sequence[str],
    tokens: int,
    rates: Rates,
    *,
    loss_tokens: float | None = None,
    teacher: bool = True,
    checkpointing: bool = True,
    trains_all: bool = True,
) -> Cost:
    """Return the cost of one sequence in a training step; the optimiser's own work is left out (well below 1%).

    Args:
        placement: the student's.
        tokens: of the sequence.
        loss_tokens: completion tokens, which alone go through the LM heads; None: all.
        teacher: the all-FA model reads the sequence, too.
        checkpointing: layers are computed again in the backward pass.
        trains_all: False: only mixers that are not full attention; gradients still pass through everything.

    Raises:
        UserError: an empty sequence or placement.
    """
    layers, heads = training_flops(
        shape, placement, tokens, loss_tokens=loss_tokens, teacher=teacher, checkpointing=checkpointing,
        trains_all=trains_all,
    )  # fmt: skip
    scans = sum(_scan_seconds(shape, mixer, tokens, rates, again=checkpointing) for mixer in placement)
    seconds = rates.seconds(layers, rates.train_mfu) + rates.seconds(heads, rates.loss_mfu) + scans
    return Cost(tokens=tokens, flops=layers + heads, gpu_seconds=seconds)


def training_flops(
    shape: ModelShape,
    placement: Sequence[str],
    tokens: int,
    *,
    loss_tokens: float | None,
    teacher: bool,
    checkpointing: bool,
    trains_all: bool,
) -> tuple[float, float]:
    """Return the FLOP of one sequence in a training step, of layers and of LM heads; as `training_cost`."""
    _check(placement, tokens)
    own = layers_flops(shape, placement, tokens)
    layers = own * (3 if checkpointing else 2)  # forward, again, gradients of inputs
    layers += (
        own if trains_all else sum(2 * mixer_parameters(shape, m) * tokens for m in placement if m != "fa")
    )
    if teacher:
        layers += layers_flops(shape, ("fa",) * len(placement), tokens)
    # Logits, gradient of hidden states; teacher's logits; gradient of the head.
    products = 2 + teacher + trains_all
    return layers, products * head_flops(shape, tokens if loss_tokens is None else loss_tokens)


def _scan_seconds(shape: ModelShape, mixer: str, tokens: int, rates: Rates, *, again: bool) -> float:
    step = rates.scan_seconds(mixer, tokens, shape.inner_size, backward=True)
    return step + again * rates.scan_seconds(mixer, tokens, shape.inner_size, backward=False)


def decode_step_seconds(
    shape: ModelShape, placement: Sequence[str], context: int, rows: int, rates: Rates
) -> float:
    """Return the seconds of one decode step of `rows` sequences: its bytes at the share of the bandwidth."""
    step = decode_bytes_per_step(shape, placement, context, rows)
    return step / (rates.decode_share * rates.device.bytes_per_s)


def generation_cost(
    shape: ModelShape,
    placement: Sequence[str],
    rates: Rates,
    *,
    num_sequences: int,
    prompt_tokens: int,
    new_tokens: int,
    rows: int | None = None,
) -> Cost:
    """Return the cost of generating with static caches and graphs, `rows` sequences at once.

    Args:
        shape: sizes.
        placement: one mixer a layer.
        rates: of the GPU.
        num_sequences: completions.
        prompt_tokens: of each prompt.
        new_tokens: of each completion.
        rows: sequences at once; None: as many as fit, or as there are.

    Raises:
        UserError: not one sequence fits, or nothing to generate.
    """
    _check(placement, min(num_sequences, prompt_tokens, new_tokens))
    fitting = rows or rows_that_fit(shape, placement, prompt_tokens + new_tokens, rates.memory_bytes)
    rounds = math.ceil(num_sequences / fitting)
    # Rounds of one size; a cache grows by a token a step, so the mean step has half of the completion behind it.
    step = decode_step_seconds(
        shape, placement, prompt_tokens + new_tokens // 2, math.ceil(num_sequences / rounds), rates
    )
    prompts = forward_cost(shape, placement, prompt_tokens, rates, head_tokens=1).times(num_sequences)
    decode = Cost(
        tokens=num_sequences * new_tokens,
        flops=num_sequences * _decode_flops(shape, placement, prompt_tokens, new_tokens),
        gpu_seconds=rounds * new_tokens * step,
    )
    return prompts + decode


def _decode_flops(shape: ModelShape, placement: Sequence[str], prompt_tokens: int, new_tokens: int) -> float:
    # Read one by one or together, tokens cost the same FLOP.
    whole = layers_flops(shape, placement, prompt_tokens + new_tokens)
    return whole - layers_flops(shape, placement, prompt_tokens) + head_flops(shape, new_tokens)


def _check(placement: Sequence[str], tokens: int) -> None:
    if not placement or tokens < 1:
        raise UserError(f"{len(placement)} layers, {tokens} tokens or sequences: each must be at least 1")
