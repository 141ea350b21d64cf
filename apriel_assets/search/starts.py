"""Where beam and surrogate begin: arrangements of allocations spread over all that the budget admits."""

from collections.abc import Sequence

import numpy as np

from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import Placement
from apriel_assets.search.space import SearchSpace

_RANKED_SHARE = 2 / 3  # of the starts, when there is a ranking; the others are random: a ranking can mislead


def starting_placements(
    space: SearchSpace, num: int, layer_ranking: Sequence[int] | None, rng: np.random.Generator
) -> list[Placement]:
    """Return at most `num` distinct placements to begin with.

    Args:
        space: what is searched.
        num: how many are wanted; a small space may have fewer.
        layer_ranking: layers, least important first, as leave-one-out scores give them: cheap mixers go to the
            least important layers. None: all starts are random.

    Raises:
        UserError: a ranking that does not name every layer once.
    """
    starts: dict[Placement, None] = {}
    if layer_ranking is not None:
        ranked = rank_arrangements(space, layer_ranking, max(1, round(num * _RANKED_SHARE)))
        starts.update(dict.fromkeys(ranked))
    spread = _spread(len(space.counts), num)
    for number in range(20 * num):
        if len(starts) >= num:
            break
        starts[space.random(rng, spread[number % len(spread)])] = None
    return list(starts)[:num]


def rank_arrangements(space: SearchSpace, layer_ranking: Sequence[int], num: int) -> list[Placement]:
    """Return arrangements of `num` allocations in which dearer mixers stand in more important layers.

    Raises:
        UserError: a ranking that does not name every layer once.
    """
    if sorted(layer_ranking) != list(range(space.num_layers)):
        raise UserError(
            f"layer ranking {list(layer_ranking)} must name each of the layers 0 to {space.num_layers - 1} once"
        )
    importance = np.empty(space.num_layers)
    importance[list(layer_ranking)] = np.arange(space.num_layers)
    # The sum of importance * cost is largest when both are in the same order.
    worth = np.outer(importance, [space.costs.per_mixer[mixer] for mixer in space.mixers])
    return [placement for placement, _ in space.arrange(worth, allocations=_spread(len(space.counts), num))]


def _spread(length: int, num: int) -> list[int]:
    """Return `num` indices, both ends included, fewer if there are not so many."""
    return sorted(set(np.linspace(0, length - 1, min(num, length)).round().astype(int).tolist()))
