"""What a search may propose: the placements of the admitted allocations that the layers can hold."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import Placement
from apriel_assets.search.allocations import Allocation, pinned_layers
from apriel_assets.search.arrangement import best_arrangements
from apriel_assets.search.config import AllocationConfig
from apriel_assets.search.costs import CostTable


class SearchSpace:
    """Placements within a budget.

    Attributes:
        mixers: names, in the order of the columns of `counts`.
        layers: the mixers that each layer may have, first layer first; one only where it is pinned.
        counts: admitted allocations, `[allocations, mixers]`, most full attention first.
    """

    def __init__(
        self,
        allocations: Sequence[Allocation],
        costs: CostTable,
        available: Sequence[Collection[str]],
        config: AllocationConfig | None = None,
    ) -> None:
        """
        Args:
            allocations: of one budget, from `enumerate_allocations` with the same config.
            costs: of the placements.
            available: the mixers that each layer of the supernet holds.
            config: pinned layers, and whether only allocations on the Pareto front are searched.

        Raises:
            UserError: no allocation, or a pinned layer that does not hold its mixer.
        """
        config = config or AllocationConfig()
        chosen = [a for a in allocations if a.pareto or not config.pareto]
        if not chosen:
            raise UserError("no allocation to search; enumerate those that the budget admits first")
        self.costs = costs
        self.mixers = tuple(chosen[0].counts)
        self.layers = pinned_layers(available, config)
        self.counts = np.array([[a.counts[mixer] for mixer in self.mixers] for a in chosen], dtype=np.int64)
        self._admitted = set(map(tuple, self.counts.tolist()))

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def admits(self, counts: Sequence[int]) -> bool:
        """Tell whether layers of each mixer, in the order of `mixers`, are an admitted allocation."""
        return tuple(counts) in self._admitted

    def count(self, placement: Placement) -> list[int]:
        """Return the layers of each mixer, in the order of `mixers`."""
        counts = Counter(placement)
        return [counts[mixer] for mixer in self.mixers]

    def __contains__(self, placement: Placement) -> bool:
        if len(placement) != self.num_layers:
            return False
        held = all(mixer in layer for mixer, layer in zip(placement, self.layers, strict=True))
        return held and self.admits(self.count(placement))

    def cost(self, placement: Placement) -> float:
        """Return what a placement costs, all-FA = 1."""
        return self.costs.cost(placement)

    def encode(self, placements: Sequence[Placement]) -> np.ndarray:
        """Return mixer numbers, `[placements, layers]`."""
        number = {mixer: index for index, mixer in enumerate(self.mixers)}
        codes = [[number[mixer] for mixer in placement] for placement in placements]
        return np.array(codes, dtype=np.int64).reshape(-1, self.num_layers)

    def arrange(
        self,
        layer_values: np.ndarray,
        pair_values: np.ndarray | None = None,
        allocations: slice | list[int] | None = None,
    ) -> list[tuple[Placement, float]]:
        """Return the placement with the largest value in each allocation, exactly, in the order of `counts`.

        Args:
            layer_values: `[layers, mixers]`, what each mixer is worth in each layer.
            pair_values: `[layers - 1, mixers, mixers]`, what adjacent mixers add; None: nothing.
            allocations: rows of `counts`; None: all.
        """
        held = np.array([[mixer in layer for mixer in self.mixers] for layer in self.layers])
        counts = self.counts if allocations is None else self.counts[allocations]
        codes, values = best_arrangements(np.where(held, layer_values, -np.inf), pair_values, counts)
        return [
            (tuple(self.mixers[code] for code in row), value)
            for row, value in zip(codes.tolist(), values.tolist(), strict=True)
        ]

    def random(self, rng: np.random.Generator, allocation: int | None = None) -> Placement:
        """Return a random arrangement of an allocation, by default of one drawn uniformly.

        Arrangements are equally likely where all layers that are not pinned hold the same mixers. Elsewhere every
        arrangement is possible, but not equally likely.
        """
        allocation = int(rng.integers(len(self.counts))) if allocation is None else allocation
        open_layers = [index for index, layer in enumerate(self.layers) if len(layer) > 1]
        placement = [layer[0] for layer in self.layers]
        left = self.counts[allocation] - [
            sum(len(layer) == 1 and layer[0] == mixer for layer in self.layers) for mixer in self.mixers
        ]
        if left.min() >= 0:
            pool = np.repeat(np.arange(len(self.mixers)), left)
            for index, mixer in zip(open_layers, rng.permutation(pool), strict=True):
                placement[index] = self.mixers[mixer]
        if tuple(placement) in self:
            return tuple(placement)
        drawn = rng.random((self.num_layers, len(self.mixers)))
        return self.arrange(drawn, allocations=[allocation])[0][0]

    def enumerate(self) -> Iterator[Placement]:
        """Yield every placement, neighbours in the list sharing their first layers."""
        most = self.counts.max(0).tolist()
        number = {mixer: index for index, mixer in enumerate(self.mixers)}

        def extend(prefix: list[str], used: list[int]) -> Iterator[Placement]:
            if len(prefix) == self.num_layers:
                if self.admits(used):
                    yield tuple(prefix)
                return
            for mixer in self.layers[len(prefix)]:
                column = number.get(mixer)
                if column is None or used[column] == most[column]:
                    continue
                used[column] += 1
                yield from extend([*prefix, mixer], used)
                used[column] -= 1

        yield from extend([], [0] * len(self.mixers))
