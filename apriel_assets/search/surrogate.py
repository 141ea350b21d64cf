"""Surrogate search: fit a linear model with pairwise terms to the scores so far, solve it exactly, score what it says.

A round scores, in equal parts, the best placements of the fitted model (one for each allocation), the best ones of
models drawn from its posterior, which explore where little is known, and the neighbours of the best placement so far
that the model likes most, which correct it where a placement is more than the sum of layers and pairs.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from apriel_assets.hybrid.placement import Placement
from apriel_assets.search.history import Score, rank
from apriel_assets.search.linear_model import LinearModel, Terms
from apriel_assets.search.moves import neighbour_groups
from apriel_assets.search.space import SearchSpace

_IDLE_DRAWS = 8  # draws in a row without a new placement, before the posterior counts as exhausted
_CENTRES = 8  # placements whose neighbours are considered, if better ones have none left


class SurrogateSearch:
    """The strategy "surrogate"."""

    def __init__(self, space: SearchSpace, starts: Sequence[Placement], rng: np.random.Generator) -> None:
        """
        Args:
            space: what is searched.
            starts: scored first.
            rng: draws models.
        """
        self._space, self._starts, self._rng = space, list(starts), rng

    def propose(self, scored: Mapping[Placement, Score], num: int) -> list[Placement]:
        """Return starts until all are scored, then what the model proposes; none: nothing is left near the best."""
        if starts := [placement for placement in self._starts if placement not in scored][:num]:
            return starts
        model = fit(self._space, scored)
        sources = [optima(self._space, model.mean()), self._draws(model), self._neighbours(model, scored)]
        chosen: dict[Placement, None] = {}
        while sources and len(chosen) < num:
            for source in list(sources):
                found = next((p for p in source if p not in scored and p not in chosen), None)
                if found is None:
                    sources.remove(source)
                elif len(chosen) < num:
                    chosen[found] = None
        return list(chosen)

    def _draws(self, model: LinearModel) -> Iterator[Placement]:
        seen: set[Placement] = set()
        idle = 0
        while idle < _IDLE_DRAWS:
            terms = model.draw(self._rng)
            best, _ = max(
                self._space.arrange(terms.layers, terms.pairs), key=lambda found: (found[1], found[0])
            )
            idle = idle + 1 if best in seen else 0
            seen.add(best)
            yield best

    def _neighbours(self, model: LinearModel, scored: Mapping[Placement, Score]) -> Iterator[Placement]:
        terms = model.mean()
        for centre in rank(scored, self._space)[:_CENTRES]:
            found = [p for group in neighbour_groups(self._space, centre) for p in group if p not in scored]
            if found:
                order = np.argsort(-terms.predict(self._space.encode(found)), kind="stable")
                yield from (found[index] for index in order)


def fit(space: SearchSpace, scored: Mapping[Placement, Score]) -> LinearModel:
    """Return the linear model of the scores so far."""
    values = np.array([score.value for score in scored.values()])
    # A scorer may say -inf for a placement that puts out nonsense: as bad as the worst finite one.
    finite = values[np.isfinite(values)]
    values = np.maximum(values, finite.min() if len(finite) else 0.0)
    return LinearModel(space.encode(list(scored)), values, len(space.mixers))


def optima(space: SearchSpace, terms: Terms) -> Iterator[Placement]:
    """Yield each allocation's best placement under a model, the best of all first."""
    arranged = space.arrange(terms.layers, terms.pairs)
    return (placement for placement, _ in sorted(arranged, key=lambda found: (-found[1], found[0])))
