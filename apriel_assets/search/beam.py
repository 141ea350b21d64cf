"""Beam search: try neighbours of the best placements so far, seeded with several starts.

A round first scores the optima of a linear model of the scores so far: further starts, which depend on what was seen.
The rest are neighbours of the beam's members, in turn. They come in groups that share their first layers (see `moves`),
which is what makes scoring them together cheap; the model says which groups, and which of a group, come first.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from apriel_assets.hybrid.placement import Placement
from apriel_assets.search.history import Score, rank
from apriel_assets.search.linear_model import Terms
from apriel_assets.search.moves import neighbour_groups
from apriel_assets.search.space import SearchSpace
from apriel_assets.search.surrogate import fit, optima

_FROM_GROUP = 6  # members of a group scored at once: more would share more work and explore less
_START_SHARE = 4  # one in so many candidates of a round is a start


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
            rng: draws the models by which neighbours are ordered.
        """
        self._space, self._starts, self._beam, self._rng = space, list(starts), beam, rng

    def propose(self, scored: Mapping[Placement, Score], num: int) -> list[Placement]:
        """Return starts until all are scored, then new starts and unscored neighbours; none: all are scored."""
        if starts := [placement for placement in self._starts if placement not in scored][:num]:
            return starts
        model = fit(self._space, scored)
        new = (placement for placement in optima(self._space, model.mean()) if placement not in scored)
        chosen = dict.fromkeys(islice(new, max(1, num // _START_SHARE)))
        members = rank(scored, self._space)[: self._beam]
        queues = [list(self._groups(member, scored, model.draw(self._rng)))[::-1] for member in members]
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

    def _groups(
        self, member: Placement, scored: Mapping[Placement, Score], terms: Terms
    ) -> Iterator[list[Placement]]:
        """Yield the member's neighbours that are not scored, the most promising group and placement first."""
        groups, promise = [], []
        for group in neighbour_groups(self._space, member):
            if unscored := [placement for placement in group if placement not in scored]:
                predicted = terms.predict(self._space.encode(unscored))
                groups.append([unscored[index] for index in np.argsort(-predicted, kind="stable")])
                promise.append(np.sort(predicted)[::-1][:_FROM_GROUP].mean())
        return (groups[index] for index in np.argsort(-np.array(promise), kind="stable"))
