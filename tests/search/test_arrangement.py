"""Exact arrangements against brute force, and random ones against the space they are drawn from."""

import itertools
from collections import Counter

import numpy as np
import pytest

from apriel_assets.errors import UserError
from apriel_assets.search.allocations import enumerate_allocations
from apriel_assets.search.arrangement import best_arrangements
from apriel_assets.search.config import AllocationConfig
from apriel_assets.search.moves import neighbour_groups
from apriel_assets.search.space import SearchSpace
from apriel_assets.search.starts import rank_arrangements, starting_placements
from tests.search.landscapes import COSTS, make_space


def value_of(placement, layer_values, pair_values) -> float:
    pairs = enumerate(itertools.pairwise(placement))
    return sum(layer_values[layer, m] for layer, m in enumerate(placement)) + sum(
        pair_values[layer, a, b] for layer, (a, b) in pairs
    )


@pytest.mark.parametrize(("num_layers", "num_mixers"), [(1, 2), (2, 3), (5, 3), (6, 2), (4, 4)])
@pytest.mark.parametrize("held_share", [1.0, 0.7])
def test_arrangements_equal_brute_force(num_layers, num_mixers, held_share):
    rng = np.random.default_rng([num_layers, num_mixers])
    layer_values = rng.normal(size=(num_layers, num_mixers))
    layer_values[rng.random(layer_values.shape) > held_share] = -np.inf
    layer_values[:, 0] = np.where(np.isinf(layer_values[:, 0]), 0.0, layer_values[:, 0])
    pair_values = rng.normal(size=(num_layers - 1, num_mixers, num_mixers))
    best: dict[tuple, float] = {}
    for placement in itertools.product(range(num_mixers), repeat=num_layers):
        counts = tuple(placement.count(m) for m in range(num_mixers))
        best[counts] = max(best.get(counts, -np.inf), value_of(placement, layer_values, pair_values))
    counts = np.array(list(best))
    placements, values = best_arrangements(layer_values, pair_values, counts)
    np.testing.assert_allclose(values, list(best.values()), atol=1e-12)
    for row, wanted, value in zip(placements, counts, values, strict=True):
        if np.isfinite(value):
            assert np.bincount(row, minlength=num_mixers).tolist() == wanted.tolist()
            assert value_of(row, layer_values, pair_values) == pytest.approx(value)


def test_arrangements_at_published_size():
    counts = np.array([[20, 5, 10, 15], [12, 26, 6, 6]])
    rng = np.random.default_rng(0)
    layer_values = rng.normal(size=(50, 4))
    placements, values = best_arrangements(layer_values, None, counts)
    for row, wanted in zip(placements, counts, strict=True):
        assert np.bincount(row).tolist() == wanted.tolist()
    # No swap of two layers is better: the optimum of an assignment problem is one of swaps, too.
    for row, value in zip(placements, values, strict=True):
        own = layer_values[np.arange(50), row]
        crossed = layer_values[np.arange(50)[:, None], row[None]]
        assert (crossed + crossed.T <= own[:, None] + own[None] + 1e-9).all()
        assert value == pytest.approx(own.sum())


UNEVEN = [("fa", "swa"), ("fa",), ("gdn", "kda", "fa"), ("fa", "gdn", "kda"), ("kda", "swa", "fa")]


def uneven_space(budget: float = 0.75) -> SearchSpace:
    config = AllocationConfig(pareto=False, pinned={4: "swa"})
    return SearchSpace(enumerate_allocations(COSTS, budget, UNEVEN, config), COSTS, UNEVEN, config)


@pytest.mark.parametrize("space", [uneven_space(), make_space(5, 0.6)], ids=["uneven", "even"])
def test_space_enumerates_what_it_contains(space):
    listed = list(space.enumerate())
    every = itertools.product(*[COSTS.mixers] * space.num_layers)
    assert sorted(listed) == sorted(placement for placement in every if placement in space)
    assert len(set(listed)) == len(listed) > 10
    assert {space.random(np.random.default_rng(seed)) for seed in range(50)} <= set(listed)


def test_random_arrangements_are_uniform():
    space = make_space(4, 0.6, AllocationConfig(minimum={"fa": 2}, maximum={"swa": 0, "kda": 0}))
    rng = np.random.default_rng(0)
    drawn = Counter(space.random(rng) for _ in range(1200))
    assert len(drawn) == 6  # 2 of 4 layers
    assert max(abs(count - 200) for count in drawn.values()) < 50  # four standard deviations


@pytest.mark.parametrize(
    "space", [uneven_space(), make_space(6, 0.5), make_space(4, 2.0)], ids=["a", "b", "c"]
)
def test_neighbours_stay_within_the_space_and_group_by_first_change(space):
    for seed in range(5):
        placement = space.random(np.random.default_rng(seed))
        groups = neighbour_groups(space, placement)
        for group in groups:
            changed = [
                [i for i, (a, b) in enumerate(zip(p, placement, strict=True)) if a != b] for p in group
            ]
            assert all(p in space and 1 <= len(c) <= 2 for p, c in zip(group, changed, strict=True))
            assert len({(c[0], p[c[0]]) for p, c in zip(group, changed, strict=True)}) == 1
        flat = [p for group in groups for p in group]
        assert len(set(flat)) == len(flat)
        swaps = set()
        for i, j in itertools.combinations(range(space.num_layers), 2):
            swapped = list(placement)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            if tuple(swapped) != placement and tuple(swapped) in space:
                swaps.add(tuple(swapped))
        assert swaps <= set(flat)


def test_every_placement_is_reached_by_moves():
    space = make_space(4, 0.6)
    reached, border = set(), {space.random(np.random.default_rng(0))}
    while border:
        reached |= border
        border = {p for b in border for group in neighbour_groups(space, b) for p in group} - reached
    assert reached == set(space.enumerate())


def test_ranking_gives_dear_mixers_to_important_layers():
    space = make_space(5, 0.6, AllocationConfig(maximum={"swa": 0, "kda": 0}))
    assert rank_arrangements(space, [3, 0, 4, 1, 2], 1) == [("gdn", "fa", "fa", "gdn", "gdn")]


def test_starts_are_distinct_and_spread_over_allocations():
    space = make_space(6, 0.6)
    for ranking in (None, [5, 4, 3, 2, 1, 0]):
        starts = starting_placements(space, 12, ranking, np.random.default_rng(0))
        assert len(starts) == len(set(starts)) == 12
        assert all(start in space for start in starts)
        assert len({tuple(space.count(start)) for start in starts}) >= 8


@pytest.mark.parametrize("ranking", [[0, 1, 2], [0, 1, 2, 3, 4, 4], [1, 2, 3, 4, 5, 6]])
def test_bad_ranking_is_refused(ranking):
    with pytest.raises(UserError, match="must name each of the layers 0 to 5 once"):
        starting_placements(make_space(6, 0.6), 4, ranking, np.random.default_rng(0))


def test_space_without_allocations_is_refused():
    with pytest.raises(UserError, match="no allocation to search"):
        SearchSpace([], COSTS, UNEVEN)
