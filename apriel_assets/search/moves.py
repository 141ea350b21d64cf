"""The neighbours of a placement: two layers swapped, one reassigned, or two reassigned where one alone will not do.

Every neighbour stays within the admitted allocations. Neighbours are grouped by the first layer that they change and
its new mixer: members of a group share all activations up to the second changed layer, so that scoring a few of a group
costs little more than one.
"""

from collections.abc import Iterator

import numpy as np

from apriel_assets.hybrid.placement import Placement
from apriel_assets.search.space import SearchSpace


def neighbour_groups(space: SearchSpace, placement: Placement) -> list[list[Placement]]:
    """Return all neighbours of a placement, grouped by their first change."""
    number = {mixer: index for index, mixer in enumerate(space.mixers)}
    counts = np.array(space.count(placement))
    step = np.eye(len(space.mixers), dtype=np.int64)
    alone = {
        (old, new): space.admits((counts - step[number[old]] + step[number[new]]).tolist())
        for old in space.mixers
        for new in space.mixers
    }
    together: dict[tuple[int, ...], bool] = {}

    def admits_both(*changes: tuple[str, str]) -> bool:
        """Whether two reassignments keep the counts admitted, each being refused alone or their sum being zero."""
        change = sum(step[number[new]] - step[number[old]] for old, new in changes)
        if not np.any(change):
            return True
        key = tuple(np.asarray(change).tolist())
        if key not in together:
            together[key] = space.admits((counts + change).tolist())
        return together[key] and not any(alone[pair] for pair in changes)

    allowed: dict[tuple[tuple[str, str], tuple[str, str]], bool] = {}
    groups = []
    for first, old in enumerate(placement):
        for new in _others(space, first, old):
            group = [_replaced(placement, {first: new})] if alone[old, new] else []
            for second in range(first + 1, space.num_layers):
                for other in _others(space, second, placement[second]):
                    pair = (old, new), (placement[second], other)
                    if pair not in allowed:
                        allowed[pair] = admits_both(*pair)
                    if allowed[pair]:
                        group.append(_replaced(placement, {first: new, second: other}))
            if group:
                groups.append(group)
    return groups


def _others(space: SearchSpace, layer: int, mixer: str) -> Iterator[str]:
    return (name for name in space.layers[layer] if name != mixer and name in space.mixers)


def _replaced(placement: Placement, changes: dict[int, str]) -> Placement:
    return tuple(changes.get(layer, mixer) for layer, mixer in enumerate(placement))
