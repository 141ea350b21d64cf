"""The best arrangement of every allocation under a model that is linear in layers and adjacent pairs: solved exactly.

Dynamic programming over layers. A state is how many layers of each mixer the layers so far have used, and the mixer of
the last one; the cost of a placement follows from its counts alone, so no cost is rounded.
"""

import numpy as np


def best_arrangements(
    layer_values: np.ndarray, pair_values: np.ndarray | None, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the placement with the largest value for every allocation, and that value.

    The value of a placement is the sum of its layers' and of its adjacent pairs' values.

    Args:
        layer_values: `[layers, mixers]`; -inf where the layer does not hold the mixer.
        pair_values: `[layers - 1, mixers, mixers]`, of the mixers of a layer and of the next; None: zeros.
        counts: allocations, `[allocations, mixers]`, each adding up to the number of layers.

    Returns:
        Mixer numbers `[allocations, layers]` and values `[allocations]`; -inf: the layers cannot hold it.
    """
    num_layers, num_mixers = layer_values.shape
    assert counts.size
    assert (counts.sum(1) == num_layers).all()
    if pair_values is None:
        pair_values = np.zeros((num_layers - 1, num_mixers, num_mixers))
    digits = (num_layers + 1) ** np.arange(
        num_mixers, dtype=np.int64
    )  # a state is a number with these digits
    states, came_from, values = _run_forward(layer_values, pair_values, counts.max(0), digits)
    keys = counts @ digits
    rows, known = _find(states[-1], keys)
    last = values[rows]
    last[~known] = -np.inf
    mixers = last.argmax(1)
    best = last[np.arange(len(counts)), mixers]
    placements = np.zeros((len(counts), num_layers), dtype=np.int64)
    for layer in range(num_layers - 1, -1, -1):
        placements[:, layer] = mixers
        previous = came_from[layer][rows, mixers]
        keys = keys - digits[mixers]
        if layer:
            rows, _ = _find(states[layer - 1], keys)
        mixers = previous
    return placements, best


def _run_forward(
    layer_values: np.ndarray, pair_values: np.ndarray, most: np.ndarray, digits: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Return, per layer, the states after it and each one's best previous mixer, and the last states' values."""
    num_layers, num_mixers = layer_values.shape
    states, came_from = [], []
    keys, values = np.zeros(1, dtype=np.int64), np.zeros((1, num_mixers))
    for layer in range(num_layers):
        room = [keys // digit % (num_layers + 1) < limit for digit, limit in zip(digits, most, strict=True)]
        room = [fits & np.isfinite(layer_values[layer, mixer]) for mixer, fits in enumerate(room)]
        following = np.unique(np.concatenate([keys[room[m]] + digits[m] for m in range(num_mixers)]))
        ahead = np.full((len(following), num_mixers), -np.inf)
        previous = np.zeros((len(following), num_mixers), dtype=np.int8)
        for mixer in range(num_mixers):
            rows = np.searchsorted(following, keys[room[mixer]] + digits[mixer])
            reached = values[room[mixer]]  # [states, mixer of the layer before]
            if layer:
                reached = reached + pair_values[layer - 1][:, mixer]
            previous[rows, mixer] = reached.argmax(1)
            ahead[rows, mixer] = reached.max(1) + layer_values[layer, mixer]
        keys, values = following, ahead
        states.append(keys)
        came_from.append(previous)
    return states, came_from, values


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each wanted key's row in the sorted keys, and whether it is there."""
    if not len(keys):
        raise AssertionError("no state is left: the allocations were not checked against the layers")
    rows = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return rows, keys[rows] == wanted
