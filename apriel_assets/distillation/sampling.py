"""Which placement a supernet trains at each step: a pure function of (seed, step).

No random state is kept, so every process of a distributed run samples the same without a word, and a resumed
run goes on as if it had never stopped.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from math import comb, prod

from apriel_assets.distillation.config import SupernetConfig
from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import Placement, check_placement


class PlacementSampler:
    """Placements of a supernet.

    - uniform: each layer takes any of its mixers, by itself. Placements then cluster near equal counts.
    - weighted: the same with a weight for each mixer.
    - allocations: uniform over the count vectors (how many layers of each mixer), then uniform over the
      arrangements with these counts. Extreme allocations come as often as balanced ones.
    - layouts: from a list, with probabilities.
    """

    def __init__(self, mixers: Sequence[Sequence[str]], config: SupernetConfig, seed: int) -> None:
        """
        Args:
            mixers: that each layer holds, first layer first.
            config: how to sample.

        Raises:
            UserError: weights of mixers that no layer holds, a layer whose mixers all weigh 0, or layouts
                that the layers cannot hold.
        """
        # Sorted: the order in which a layer's mixers were added must not change what is sampled.
        self._mixers = [tuple(sorted(names)) for names in mixers]
        self._seed = seed
        self._draw = self._method(config)

    def placement(self, step: int) -> Placement:
        """Return the placement of a step (from 0)."""
        return self._draw(random.Random(f"placement/{self._seed}/{step}"))

    def _method(self, config: SupernetConfig) -> Callable[[random.Random], Placement]:
        if config.sampling == "allocations":
            return Arrangements(self._mixers).draw
        if config.sampling == "layouts":
            layouts = [check_placement(x.placement, len(self._mixers), self._mixers) for x in config.layouts]
            probabilities = [layout.probability for layout in config.layouts]
            _check_weights(probabilities, "the layouts")
            return lambda rng: rng.choices(layouts, probabilities)[0]
        held = sorted({name for names in self._mixers for name in names})
        if unknown := sorted(config.weights.keys() - set(held)):
            raise UserError(f"weights name {', '.join(unknown)}; the supernet holds {', '.join(held)}")
        weights = [[config.weights.get(name, 1.0) for name in names] for names in self._mixers]
        for layer, row in enumerate(weights):
            _check_weights(row, f"the mixers of layer {layer}")
        pairs = list(zip(self._mixers, weights, strict=True))
        return lambda rng: tuple(rng.choices(names, row)[0] for names, row in pairs)


def sample_named(placements: Iterable[str], weights: Mapping[str, float], seed: int) -> Callable[[int], str]:
    """Return which of these named placements each step trains; a name without a weight weighs 1.

    Raises:
        UserError: no placements, weights of unknown names, or all of them 0.
    """
    names = sorted(placements)
    if unknown := sorted(weights.keys() - set(names)):
        raise UserError(
            f"placement_weights name {', '.join(unknown)}; placements: {', '.join(names) or 'none'}"
        )
    row = [weights.get(name, 1.0) for name in names]
    _check_weights(row, "the named placements")
    return lambda step: random.Random(f"named/{seed}/{step}").choices(names, row)[0]


class Arrangements:
    """Uniform draws of a count vector that the layers can hold, then of a placement with these counts.

    Layers that hold the same mixers are one kind. The number of placements with given counts is a sum over
    how many layers of each kind a mixer takes; counted exactly, mixer by mixer, it gives the probabilities of
    the draw. With one or a few kinds this takes no time; with k kinds of n layers it visits up to (n + 1)^k
    states.
    """

    def __init__(self, mixers: Sequence[tuple[str, ...]]) -> None:
        self._names = sorted({name for names in mixers for name in names})
        kinds = Counter(mixers)
        self._sizes = tuple(kinds.values())
        self._layers = [[i for i, names in enumerate(mixers) if names == kind] for kind in kinds]
        self._holds = [[name in kind for kind in kinds] for name in self._names]
        self._least = [mixers.count((name,)) for name in self._names]
        self._most = [sum(name in names for names in mixers) for name in self._names]
        self._count = lru_cache(maxsize=2**16)(self._count_placements)
        self._vectors = lru_cache(maxsize=None)(self._count_vectors)

    def draw(self, rng: random.Random) -> Placement:
        """Return one placement."""
        counts = self._draw_counts(rng)
        while not self._count(counts, self._sizes):  # fits every mixer by itself, not all together
            counts = self._draw_counts(rng)
        return self.arrange(counts, rng)

    def arrange(self, counts: tuple[int, ...], rng: random.Random) -> Placement:
        """Return one of the placements with these counts, in the order of the sorted mixer names."""
        free = [rng.sample(layers, len(layers)) for layers in self._layers]
        placement = [""] * sum(self._sizes)
        for position, name in enumerate(self._names):
            rest = counts[position:]
            sizes = tuple(map(len, free))
            splits = list(self._splits(rest, sizes))
            weights = [ways for _, ways in splits]
            taken = splits[_index(weights, rng)][0]
            for kind, number in enumerate(taken):
                for _ in range(number):
                    placement[free[kind].pop()] = name
        return tuple(placement)

    def _draw_counts(self, rng: random.Random) -> tuple[int, ...]:
        """Draw uniformly among count vectors in which every mixer by itself fits."""
        counts: list[int] = []
        for position, (least, most) in enumerate(zip(self._least, self._most, strict=True)):
            left = sum(self._sizes) - sum(counts)
            ways = [self._vectors(position + 1, left - number) for number in range(least, most + 1)]
            counts.append(least + _index(ways, rng))
        return tuple(counts)

    def _count_vectors(self, position: int, left: int) -> int:
        """Return how many ways there are to give `left` layers to the mixers from `position` on."""
        if left < 0 or position == len(self._names):
            return int(left == 0)
        wanted = range(self._least[position], self._most[position] + 1)
        return sum(self._vectors(position + 1, left - number) for number in wanted)

    def _count_placements(self, counts: tuple[int, ...], sizes: tuple[int, ...]) -> int:
        """Return how many ways there are to give the last `len(counts)` mixers to `sizes` free layers."""
        if not counts:
            return 1
        return sum(ways for _, ways in self._splits(counts, sizes))

    def _splits(self, counts: tuple[int, ...], sizes: tuple[int, ...]):
        """Yield how the first of these mixers may be split over kinds, and the number of placements then."""
        holds = self._holds[len(self._names) - len(counts)]
        ranges = [
            range(min(size, counts[0]) + 1 if held else 1) for size, held in zip(sizes, holds, strict=True)
        ]
        for taken in product(*ranges):
            if sum(taken) == counts[0]:
                rest = tuple(size - number for size, number in zip(sizes, taken, strict=True))
                here = prod(comb(size, number) for size, number in zip(sizes, taken, strict=True))
                yield taken, here * self._count(counts[1:], rest)


def _index(weights: Sequence[int], rng: random.Random) -> int:
    """Return an index drawn in proportion to exact integer weights (floats overflow at 50 layers)."""
    target = rng.randrange(sum(weights))
    for index, weight in enumerate(weights):
        target -= weight
        if target < 0:
            return index
    raise AssertionError("weights changed while drawing")


def _check_weights(weights: Sequence[float], owner: str) -> None:
    if not sum(weights) > 0:
        raise UserError(f"{owner} all have weight 0; give one of them more")
