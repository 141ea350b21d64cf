"""What searches are measured against: random placements, and every placement of a small space."""

from collections.abc import Mapping
from itertools import islice

import numpy as np

from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import Placement
from apriel_assets.search.history import Score
from apriel_assets.search.space import SearchSpace

_TRIES = 100  # draws per wanted placement, before a small space counts as exhausted


class RandomSearch:
    """The strategy "random": a uniform allocation, arranged at random."""

    def __init__(self, space: SearchSpace, rng: np.random.Generator) -> None:
        self._space, self._rng = space, rng

    def propose(self, scored: Mapping[Placement, Score], num: int) -> list[Placement]:
        """Return placements drawn anew; fewer when hardly any is left."""
        chosen: dict[Placement, None] = {}
        for _ in range(_TRIES * num):
            if len(chosen) == num:
                break
            placement = self._space.random(self._rng)
            if placement not in scored:
                chosen[placement] = None
        return list(chosen)


class ExhaustiveSearch:
    """The strategy "exhaustive": all of them, in an order in which neighbours share their first layers."""

    def __init__(self, space: SearchSpace, max_candidates: int) -> None:
        """
        Raises:
            UserError: the space has more placements than may be scored.
        """
        placements = list(islice(space.enumerate(), max_candidates + 1))
        if len(placements) > max_candidates:
            raise UserError(
                f"exhaustive search needs more than the {max_candidates} placements that max_candidates allows; "
                "raise it, narrow the allocations, or use beam or surrogate"
            )
        self._placements = placements

    def propose(self, scored: Mapping[Placement, Score], num: int) -> list[Placement]:
        """Return the next placements."""
        return list(islice((placement for placement in self._placements if placement not in scored), num))
