"""Whether the cost model is true: whole-model speed of placements, predicted from one layer's costs and measured.

A mixer's cost is relative to full attention, but a model also has feed-forward blocks and a head. With s the mixers'
share of the all-FA model's time (from the same two measurements), a placement of cost c takes 1 + s (c - 1) of it.
"""

import logging
import random
import statistics
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import Decoding, evaluating
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement, check_placement
from apriel_assets.progress import Progress, silent
from apriel_assets.search.config import CostPoint, CostsConfig
from apriel_assets.search.costs import CostFit, CostTable, fit_overheads, measured_costs, r_squared
from apriel_assets.search.measured import random_tokens, read_context, timed
from apriel_assets.search.measured_steps import replays, time_placements
from apriel_assets.tables.schemas import to_table

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostCheck:
    """Predicted against measured whole-model time, over placements and points."""

    table: pa.Table  # `cost_check`
    r2: float  # share of the variance of the measured times that the prediction explains
    worst_error: float  # largest |predicted - measured|, all-FA = 1
    fitted: CostFit  # overheads that fit the measured costs best, and what is left, in units of cost


def check_costs(
    model: "HybridForCausalLM",
    placements: Sequence[Placement],
    mixer_costs: Iterable[Mapping[str, Any]],
    config: CostsConfig,
    *,
    device_name: str,
    seed: int = 0,
    progress: Progress = silent,
) -> CostCheck:
    """Time the whole model under placements, in turn with all-FA, and compare with the cost model.

    Args:
        model: holds every mixer of the placements and full attention; its own placement is restored.
        placements: what is timed, see `spread_placements`.
        mixer_costs: rows of that table from the same device and points, as dicts.
        config: points and repeats.
        device_name: goes into the rows.
        seed: of the random tokens.
        progress: called with contexts done and all.

    Raises:
        UserError: no placements, or no cost for a point or a mixer.
    """
    costs = list(mixer_costs)
    placements = [check_placement(placement, model.num_layers, model.mixers) for placement in placements]
    if not placements:
        raise UserError("no placement to check the costs with; give at least one")
    for point in config.points:
        _costs_at(costs, point)  # complains before anything is timed
    rows, units = [], []
    for number, context in enumerate(config.contexts):
        seconds = [_time_pair(model, placement, context, config, seed) for placement in placements]
        for point in (point for point in config.points if point.context == context):
            table, fa_seconds = _costs_at(costs, point)
            whole = min(pair[point.phase][0] for pair in seconds)
            share = fa_seconds * model.num_layers / whole
            for placement, pair in zip(placements, seconds, strict=True):
                measured = pair[point.phase][1] / pair[point.phase][0]
                predicted = 1 + share * (table.cost(placement) - 1)
                rows.append(_row(placement, point, predicted, measured, device_name))
                units.append((placement, 1 + (measured - 1) / share))
        progress(number + 1, len(config.contexts))
    predicted, measured = (np.array([row[name] for row in rows]) for name in ("predicted", "measured"))
    return CostCheck(
        table=to_table("cost_check", rows),
        r2=r_squared(predicted, measured),
        worst_error=float(abs(predicted - measured).max()),
        fitted=_fit(costs, units),
    )


def spread_placements(available: Sequence[Collection[str]], num: int, seed: int = 0) -> list[Placement]:
    """Return random placements whose number of converted layers is spread evenly from few to all.

    Args:
        available: the mixers that each layer holds; layers without full attention count as converted anyway.
        num: how many.
        seed: of the draw.
    """
    rng = random.Random(seed)
    placements = []
    for index in range(num):
        chosen = rng.sample(range(len(available)), max(1, round((index + 1) / num * len(available))))
        placement = []
        for layer, held in enumerate(available):
            others = sorted(set(held) - {FULL_ATTENTION})
            converted = bool(others) and (layer in chosen or FULL_ATTENTION not in held)
            placement.append(rng.choice(others) if converted else FULL_ATTENTION)
        placements.append(tuple(placement))
    return placements


def _row(
    placement: Placement, point: CostPoint, predicted: float, measured: float, device_name: str
) -> dict[str, Any]:
    return {
        "placement": list(placement),
        "phase": point.phase,
        "context_tokens": point.context,
        "batch_size": point.batch_size,
        "predicted": predicted,
        "measured": measured,
        "device": device_name,
    }


def _costs_at(costs: Sequence[Mapping[str, Any]], point: CostPoint) -> tuple[CostTable, float]:
    """Return the costs at one point, and the seconds of one layer's full attention there."""
    here = [
        row
        for row in costs
        if (row["phase"], row["context_tokens"], row["batch_size"])
        == (point.phase, point.context, point.batch_size)
    ]
    if not here:
        raise UserError(
            f"no mixer cost at {point.phase}, context {point.context}, batch {point.batch_size}; measure it first"
        )
    return measured_costs(here), statistics.fmean(row["fa_seconds"] for row in here)


def _time_pair(
    model: "HybridForCausalLM", placement: Placement, context: int, config: CostsConfig, seed: int
) -> dict[str, tuple[float, float]]:
    """Return the least seconds of all-FA and of a placement, per phase: of reading the prompts, of a decode step.

    The two take turns, so that a busy machine slows both.
    """
    pair = ((FULL_ATTENTION,) * model.num_layers, placement)
    if config.phase != "prefill" and replays(model):
        try:
            decode = {"decode": time_placements(model, pair, context, config)}
        except UserError as error:
            logger.warning("%s: its calls are timed one by one, launches included", error)
        else:
            if config.phase == "decode":
                return decode
            return decode | _time_pair(model, placement, context, replace(config, phase="prefill"), seed)
    tokens = random_tokens(model, config.batch_size, context, seed)
    samples: dict[str, tuple[list[float], list[float]]] = {"prefill": ([], []), "decode": ([], [])}
    before, began = model.placement, time.perf_counter()
    steps = config.repeats * config.decode_tokens + 1 if config.phase != "prefill" else 0
    states: list[Decoding] = []
    try:
        with evaluating(model), torch.inference_mode():
            # Decoding needs one prefill, however often it is timed.
            for run in range(config.repeats + 1 if config.phase != "decode" else 1):
                if run > 1 and time.perf_counter() - began > config.max_seconds_per_point:
                    break
                states.clear()
                for active, own in zip(pair, samples["prefill"], strict=True):
                    model.set_placement(active)
                    state, seconds = timed(partial(read_context, model, tokens, config), model.device)
                    states.append(state)
                    own.append(seconds)
            for _ in range(steps):
                for active, state, own in zip(pair, states, samples["decode"], strict=True):
                    model.set_placement(active)
                    own.append(_time_step(state, model.device))
    finally:
        model.set_placement(before)
    # The first of each is left out: allocations and kernel choices.
    return {phase: (min(own[0][1:]), min(own[1][1:])) for phase, own in samples.items() if len(own[0]) > 1}


def _time_step(state: Decoding, device: torch.device) -> float:
    return timed(lambda: state.step(state.logits.argmax(-1)), device)[1]


def _fit(costs: Sequence[Mapping[str, Any]], units: Sequence[tuple[Placement, float]]) -> CostFit:
    """Fit overheads to each placement's mean measured cost over the points."""
    by_placement: dict[Placement, list[float]] = {}
    for placement, cost in units:
        by_placement.setdefault(placement, []).append(cost)
    means = [statistics.fmean(values) for values in by_placement.values()]
    return fit_overheads(measured_costs(costs), list(by_placement), means)
