"""Allocations: how many layers of each mixer fit a budget. Enumerated exactly, all of them.

Whether the layers can hold an allocation at all (pinned layers, layers that lack a mixer) is Hall's condition: for
every set of mixers, no more layers are asked for than hold one of them.

Pareto filter: an allocation is dominated if another admitted one has full attention in some of its converted layers and
is otherwise the same, that is: at most as many layers of every other mixer. Full attention is the teacher's own, so
only this order is known before anything is scored; nothing is assumed about which other mixer is better.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, repeat
from json import dumps
from typing import Any, NamedTuple

import numpy as np

from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import FULL_ATTENTION
from apriel_assets.search.config import AllocationConfig
from apriel_assets.search.costs import CostTable

_ROUNDING = 1e-9  # costs are sums of a few floats; a budget of exactly an allocation's cost admits it


class Allocation(NamedTuple):
    """How many layers have which mixer, and what that costs. A tuple: there can be hundreds of thousands."""

    counts: Mapping[str, int]  # mixers of the supernet, zeros included
    cost: float  # all-FA = 1
    pareto: bool  # no other allocation within the budget dominates it


def enumerate_allocations(
    costs: CostTable,
    budget: float,
    available: Sequence[Collection[str]],
    config: AllocationConfig | None = None,
) -> list[Allocation]:
    """Return every allocation that the budget admits, most full attention first.

    Args:
        costs: what a layer of each mixer costs.
        budget: most that an allocation may cost, all-FA = 1.
        available: the mixers that each layer holds, first layer first.
        config: slack, least and most layers, pinned layers; `pareto` only filters what a search uses, not this list.

    Raises:
        UserError: nothing is admitted; names the cheapest possible cost. Or a mixer that no layer holds, or that
            has no cost.
    """
    config = config or AllocationConfig()
    layers = pinned_layers(available, config)
    costs.require(sorted({mixer for held in layers for mixer in held}))
    # In the table's order, whatever the order in the layers, so that equal inputs give equal lists.
    mixers = [mixer for mixer in costs.mixers if any(mixer in held for held in layers)]
    counts = _count_vectors(len(layers), _least_and_most(mixers, len(layers), config))
    counts = counts[_fits_layers(counts, mixers, layers)]
    if not len(counts):
        raise UserError(
            f"no allocation of {len(layers)} layers meets pinned layers {_show(config.pinned)}, minimum "
            f"{_show(config.minimum)} and maximum {_show(config.maximum)}; loosen one of them"
        )
    cost = _costs(counts, mixers, costs)
    admitted = _within(cost, budget, config.slack)
    counts, cost = counts[admitted], cost[admitted]
    pareto = ~_dominated(counts, mixers)
    # Most full attention first, then by the other counts.
    full = counts[:, mixers.index(FULL_ATTENTION)] if FULL_ATTENTION in mixers else np.zeros(len(counts))
    order = np.lexsort((*(-counts.T[::-1]), -full))
    rows, prices, flags = counts[order].tolist(), cost[order].tolist(), pareto[order].tolist()
    # Hundreds of thousands of them: built without a Python-level loop.
    dicts = map(dict, map(zip, repeat(mixers), rows))
    return list(map(Allocation._make, zip(dicts, prices, flags, strict=True)))


def pinned_layers(available: Sequence[Collection[str]], config: AllocationConfig) -> list[tuple[str, ...]]:
    """Return the mixers that each layer may have, once pinned layers are pinned.

    Raises:
        UserError: no layers, a pinned layer that does not exist or hold its mixer, or a mixer that no layer holds.
    """
    layers = [tuple(held) for held in available]
    held = {mixer for names in layers for mixer in names}
    if not layers or not all(layers):
        raise UserError("every layer must hold a mixer; give the supernet's mixers, one collection per layer")
    for mixer in {**config.minimum, **config.maximum}:
        if mixer not in held:
            raise UserError(
                f"no layer holds mixer {mixer!r}, only {', '.join(sorted(held))}; add it to the supernet"
            )
    for layer, mixer in config.pinned.items():
        if not 0 <= layer < len(layers):
            raise UserError(f"pinned layer {layer} does not exist; the layers are 0 to {len(layers) - 1}")
        if mixer not in layers[layer]:
            raise UserError(
                f"pinned layer {layer} holds no {mixer!r}, only {', '.join(layers[layer])}; pin one of these"
            )
        layers[layer] = (mixer,)
    return layers


def allocation_rows(budget: float, allocations: Sequence[Allocation]) -> list[dict[str, Any]]:
    """Return rows of table `allocations`."""
    return [
        {"budget": budget, "counts": dumps(dict(a.counts)), "cost": a.cost, "pareto": a.pareto}
        for a in allocations
    ]


def _least_and_most(
    mixers: Sequence[str], num_layers: int, config: AllocationConfig
) -> list[tuple[int, int]]:
    return [
        (config.minimum.get(mixer, 0), min(config.maximum.get(mixer, num_layers), num_layers))
        for mixer in mixers
    ]


def _count_vectors(num_layers: int, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return every vector of counts in the ranges that adds up, `[vectors, mixers]`."""
    vectors = np.zeros((1, 0), dtype=np.int64)
    for least, most in ranges[:-1]:
        left = num_layers - vectors.sum(1)
        choices = np.arange(least, most + 1)
        fits = choices[None, :] <= left[:, None]
        parent, choice = np.nonzero(fits)
        vectors = np.column_stack([vectors[parent], choices[choice]])
    last = num_layers - vectors.sum(1)
    least, most = ranges[-1]
    return np.column_stack([vectors, last])[(last >= least) & (last <= most)]


def _fits_layers(counts: np.ndarray, mixers: Sequence[str], layers: Sequence[Collection[str]]) -> np.ndarray:
    """Return which count vectors the layers can hold, `[vectors]`."""
    fits = np.ones(len(counts), dtype=bool)
    for size in range(1, len(mixers) + 1):
        for chosen in combinations(range(len(mixers)), size):
            holders = sum(any(mixers[i] in held for i in chosen) for held in layers)
            if holders < len(layers):
                fits &= counts[:, chosen].sum(1) <= holders
    return fits


def _costs(counts: np.ndarray, mixers: Sequence[str], costs: CostTable) -> np.ndarray:
    linear = counts @ np.array([costs.per_mixer[mixer] for mixer in mixers]) / counts[0].sum()
    return linear + (counts > 0) @ np.array([costs.overheads.get(mixer, 0.0) for mixer in mixers])


def _within(cost: np.ndarray, budget: float, slack: float | None) -> np.ndarray:
    """Return which costs the budget admits.

    Raises:
        UserError: none.
    """
    affordable = cost <= budget + _ROUNDING
    if not affordable.any():
        raise UserError(
            f"no allocation costs {budget:g} or less; the cheapest possible one costs {cost.min():.4g}: raise the "
            "budget, or allow more layers of a cheaper mixer"
        )
    if slack is None:
        return affordable
    admitted = affordable & (cost >= budget - slack - _ROUNDING)
    if not admitted.any():
        raise UserError(
            f"no allocation costs between {budget - slack:g} and {budget:g}; the dearest within the budget costs "
            f"{cost[affordable].max():.4g}, the cheapest possible {cost.min():.4g}: raise the slack"
        )
    return admitted


def _dominated(counts: np.ndarray, mixers: Sequence[str]) -> np.ndarray:
    """Return which vectors have another one that is nowhere above them but in full attention, `[vectors]`."""
    others = [index for index, mixer in enumerate(mixers) if mixer != FULL_ATTENTION]
    if FULL_ATTENTION not in mixers or not others:
        return np.zeros(len(counts), dtype=bool)
    points = tuple(counts[:, others].T)
    # A grid over the other mixers' counts (full attention is the rest): one more than the largest along each axis,
    # and a border of False in front, so that "one step back" always exists.
    below = np.zeros([int(axis.max()) + 2 for axis in points], dtype=bool)
    below[tuple(axis + 1 for axis in points)] = True
    for axis in range(below.ndim):
        np.logical_or.accumulate(below, axis=axis, out=below)
    dominated = np.zeros(len(counts), dtype=bool)
    for stepped in range(len(points)):
        dominated |= below[tuple(axis + (number != stepped) for number, axis in enumerate(points))]
    return dominated


def _show(values: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items()) or "none"
