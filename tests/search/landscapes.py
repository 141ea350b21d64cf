"""Made-up scores of placements: layers differ in importance, neighbours interact, and every score has its own noise."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apriel_assets.hybrid.placement import Placement
from apriel_assets.search.allocations import enumerate_allocations
from apriel_assets.search.config import AllocationConfig
from apriel_assets.search.costs import CostTable
from apriel_assets.search.space import SearchSpace

COSTS = CostTable(name="test", per_mixer={"fa": 1.0, "swa": 0.4, "gdn": 0.2, "kda": 0.3})
_DAMAGE = {"fa": 0.0, "swa": 0.5, "gdn": 0.8, "kda": 0.7}


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float
    reliable: bool = True


class Landscape:
    """Scores placements; counts how many, and how many layers a scorer that reuses prefixes would evaluate."""

    def __init__(self, num_layers: int, seed: int, *, noise: float = 0.01, width: float = 0.02) -> None:
        rng = np.random.default_rng(seed)
        self.importance = rng.gamma(0.6, 1.0, num_layers)
        self._damage = {
            m: d * self.importance * rng.uniform(0.5, 1.5, num_layers) for m, d in _DAMAGE.items()
        }
        mixers = list(_DAMAGE)
        self._pairs = {
            (layer, a, b): float(rng.normal(0, 0.15))
            for layer in range(num_layers)
            for a in mixers
            for b in mixers
        }
        self._seed, self._noise, self._width = seed, noise, width
        self.scored: list[Placement] = []
        self.evaluated_layers = 0

    def value(self, placement: Placement) -> float:
        """Like accuracy: it falls with the damage, ever more slowly."""
        damage = sum(self._damage[mixer][layer] for layer, mixer in enumerate(placement))
        pairs = itertools.pairwise(placement)
        damage += sum(self._pairs[layer, a, b] for layer, (a, b) in enumerate(pairs))
        key = [self._seed, *(list(_DAMAGE).index(mixer) for mixer in placement)]
        return float(np.exp(-0.6 * damage) + self._noise * np.random.default_rng(key).normal())

    def __call__(self, placements: Sequence[Placement]) -> list[Interval]:
        self.scored += placements
        self.evaluated_layers += len({p[:end] for p in placements for end in range(1, len(p) + 1)})
        return [
            Interval(value, value - self._width, value + self._width)
            for value in (self.value(placement) for placement in placements)
        ]

    def ranking(self) -> list[int]:
        """Layers, least important first."""
        return np.argsort(self.importance).tolist()


def make_space(num_layers: int, budget: float, config: AllocationConfig | None = None) -> SearchSpace:
    available = [tuple(COSTS.mixers)] * num_layers
    return SearchSpace(enumerate_allocations(COSTS, budget, available, config), COSTS, available, config)
