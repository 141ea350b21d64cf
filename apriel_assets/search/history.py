"""What a search has scored so far, and what it asks of scores and strategies."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from apriel_assets.hybrid.placement import Placement
from apriel_assets.search.space import SearchSpace


class Score(Protocol):
    """How good a placement is; higher is better. `low` and `high` bound the value's interval.

    `reliable` is False where the value stands in for an estimate that could not be trusted.
    """

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def reliable(self) -> bool: ...


class Scorer(Protocol):
    """Scores placements, in the order given. It may work in any order: sets of placements come sharing prefixes."""

    def __call__(self, placements: Sequence[Placement], /) -> Sequence[Score]: ...


class Strategy(Protocol):
    """Decides what is scored next."""

    def propose(self, scored: Mapping[Placement, Score], num: int) -> list[Placement]:
        """Return at most `num` placements of the space, distinct and not scored yet; none: it is done."""
        ...


def rank(scored: Mapping[Placement, Score], space: SearchSpace) -> list[Placement]:
    """Return the scored placements, best first: by value, then by lower cost, then by name.

    Unreliable ones come after all others: their values are another estimator's, so the two do not compare.
    """

    def key(placement: Placement) -> tuple:
        score = scored[placement]
        return (not score.reliable, -score.value, space.cost(placement), placement)

    return sorted(scored, key=key)
