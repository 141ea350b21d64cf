"""Beam search: try neighbours of the best placements so far, seeded with several starts.

A round draws groups of neighbours at random, in turn for each member of the beam, and a few members of each group:
these share their first layers (see `moves`), which is what makes scoring them together cheap. Groups whose first change
lies deep are drawn more often, for the same reason; what the search finds did not suffer (docs/search.md).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from apriel_assets.hybrid.placement import Placement
from apriel_assets.search.history import Score, rank
from apriel_assets.search.moves import neighbour_groups
from apriel_assets.search.space import SearchSpace

_FROM_GROUP = 8  # members of a group scored at once: more would share more work and explore less


class BeamSearch:
    """The strategy "beam"."""

    def __init__(
        self, space: SearchSpace, starts: Sequence[Placement], beam: int, rng: np.random.Generator
    ) -> None:
        """
        Args:
            space: what is searched.
            starts: scored first.
            beam: how many placements' neighbours are tried in a round.
            rng: draws neighbours.
        """
        self._space, self._starts, self._beam, self._rng = space, list(starts), beam, rng

    def propose(self, scored: Mapping[Placement, Score], num: int) -> list[Placement]:
        """Return starts until all are scored, then unscored neighbours of the beam; none: all are scored."""
        if starts := [placement for placement in self._starts if placement not in scored][:num]:
            return starts
        chosen: dict[Placement, None] = {}
        queues = [self._unscored_groups(member, scored) for member in rank(scored, self._space)[: self._beam]]
        while len(chosen) < num and any(queues):
            for groups in queues:
                if not groups:
                    continue
                group = [placement for placement in groups.pop() if placement not in chosen]
                taken = group[: min(_FROM_GROUP, num - len(chosen))]
                chosen.update(dict.fromkeys(taken))
                if rest := group[len(taken) :]:
                    groups.insert(0, rest)
        return list(chosen)

    def _unscored_groups(self, member: Placement, scored: Mapping[Placement, Score]) -> list[list[Placement]]:
        """Return the member's neighbours that are not scored, grouped, in random order; the last group is next."""
        groups, depths = [], []
        for group in neighbour_groups(self._space, member):
            if unscored := [placement for placement in group if placement not in scored]:
                groups.append([unscored[index] for index in self._rng.permutation(len(unscored))])
                depths.append(_first_difference(member, unscored[0]))
        # Sorting by log(weight) + Gumbel noise draws without replacement, in proportion to the weights.
        keys = np.log1p(np.array(depths, dtype=float)) + self._rng.gumbel(size=len(groups))
        return [groups[index] for index in np.argsort(keys)]


def _first_difference(a: Placement, b: Placement) -> int:
    return next(layer for layer, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
