"""Allocations against brute force over all placements of small models, and what is refused."""

import itertools
from collections import Counter

import pytest

from apriel_assets.errors import UserError
from apriel_assets.search.allocations import Allocation, allocation_rows, enumerate_allocations
from apriel_assets.search.config import AllocationConfig
from apriel_assets.search.costs import CostTable, published_costs

MIXERS = ("fa", "swa", "gdn", "kda")
COSTS = CostTable(name="test", per_mixer={"fa": 1.0, "swa": 0.45, "gdn": 0.2, "kda": 0.3})
WITH_OVERHEADS = CostTable(name="test", per_mixer=COSTS.per_mixer, overheads={"swa": 0.3, "kda": 0.05})


def as_set(allocations: list[Allocation]) -> set[tuple]:
    return {tuple(sorted((m, n) for m, n in a.counts.items() if n)) for a in allocations}


def brute_force(costs, budget, available, config=None) -> set[tuple]:
    config = config or AllocationConfig()
    found = set()
    for placement in itertools.product(*available):
        counts = Counter(placement)
        cost = costs.cost(placement)
        admitted = cost <= budget + 1e-9 and (config.slack is None or cost >= budget - config.slack - 1e-9)
        admitted &= all(counts[m] >= n for m, n in config.minimum.items())
        admitted &= all(counts[m] <= n for m, n in config.maximum.items())
        admitted &= all(placement[layer] == mixer for layer, mixer in config.pinned.items())
        if admitted:
            found.add(tuple(sorted(counts.items())))
    return found


def brute_force_pareto(allocations: set[tuple]) -> set[tuple]:
    def dominates(a: tuple, b: tuple) -> bool:
        a_counts, b_counts = Counter(dict(a)), Counter(dict(b))
        return a != b and all(a_counts[m] <= b_counts[m] for m in MIXERS if m != "fa")

    return {b for b in allocations if not any(dominates(a, b) for a in allocations)}


CASES = [
    pytest.param(6, None, None, id="all layers alike"),
    pytest.param(6, AllocationConfig(slack=0.1), None, id="slack"),
    pytest.param(
        6, AllocationConfig(minimum={"gdn": 2, "kda": 1}, maximum={"swa": 1, "gdn": 3}), None, id="bounds"
    ),
    pytest.param(5, AllocationConfig(pinned={0: "fa", 3: "swa", 4: "gdn"}), None, id="pinned"),
    pytest.param(
        5,
        None,
        [("fa", "swa"), ("fa",), ("gdn", "kda"), ("fa", "gdn", "kda"), ("kda", "swa")],
        id="layers hold different mixers",
    ),
    pytest.param(
        4,
        AllocationConfig(pinned={2: "gdn"}),
        [("fa", "gdn"), ("swa", "gdn"), ("fa", "gdn"), ("fa",)],
        id="both",
    ),
]


@pytest.mark.parametrize("costs", [COSTS, WITH_OVERHEADS], ids=["linear", "overheads"])
@pytest.mark.parametrize("budget", [0.55, 0.71, 0.8, 2.0])
@pytest.mark.parametrize(("num_layers", "config", "available"), CASES)
def test_enumeration_equals_brute_force(costs, budget, num_layers, config, available):
    available = available or [MIXERS] * num_layers
    expected = brute_force(costs, budget, available, config)
    if not expected:
        with pytest.raises(UserError, match="no allocation costs"):
            enumerate_allocations(costs, budget, available, config)
        return
    found = enumerate_allocations(costs, budget, available, config)
    assert as_set(found) == expected
    assert len(found) == len(expected)
    assert as_set([a for a in found if a.pareto]) == brute_force_pareto(expected)
    for allocation in found:
        assert allocation.cost == pytest.approx(costs.cost(allocation.counts))


def test_budget_of_exactly_an_allocations_cost_admits_it():
    found = enumerate_allocations(published_costs("published"), 0.454, [("fa", "gdn")] * 50)
    assert found[0].counts == {"fa": 20, "gdn": 30}


def test_only_the_most_full_attention_is_on_the_front_of_two_mixers():
    found = enumerate_allocations(COSTS, 0.7, [("fa", "gdn")] * 8)
    assert [dict(a.counts) for a in found if a.pareto] == [{"fa": 5, "gdn": 3}]


def test_rows_are_counts_as_json():
    row = allocation_rows(0.7, enumerate_allocations(COSTS, 0.7, [("fa", "gdn")] * 4))[0]
    assert row == {"budget": 0.7, "counts": '{"fa": 2, "gdn": 2}', "cost": pytest.approx(0.6), "pareto": True}


def test_budget_that_nothing_meets_names_the_cheapest_cost():
    with pytest.raises(
        UserError, match=r"no allocation costs 0\.1 or less; the cheapest possible one costs 0\.2"
    ):
        enumerate_allocations(COSTS, 0.1, [MIXERS] * 4)
    pinned = AllocationConfig(pinned={0: "fa", 1: "fa"})
    with pytest.raises(UserError, match=r"cheapest possible one costs 0\.6"):
        enumerate_allocations(COSTS, 0.5, [MIXERS] * 4, pinned)


def test_slack_that_nothing_meets_names_the_dearest_cost():
    with pytest.raises(UserError, match=r"between 0\.69 and 0\.7; the dearest within the budget costs 0\.6"):
        enumerate_allocations(COSTS, 0.7, [("fa", "gdn")] * 4, AllocationConfig(slack=0.01))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AllocationConfig(pinned={9: "fa"}), "pinned layer 9 does not exist; the layers are 0 to 3"),
        (AllocationConfig(pinned={1: "mamba"}), "pinned layer 1 holds no 'mamba', only fa, swa, gdn, kda"),
        (AllocationConfig(minimum={"mamba": 1}), "no layer holds mixer 'mamba'"),
        (AllocationConfig(minimum={"gdn": 3, "kda": 2}), "loosen one of them"),
        (
            AllocationConfig(pinned={0: "fa", 1: "fa"}, maximum={"fa": 1}),
            "pinned layers 0: fa, 1: fa.*maximum fa: 1",
        ),
    ],
)
def test_impossible_constraints_are_named(config, message):
    with pytest.raises(UserError, match=message):
        enumerate_allocations(COSTS, 0.7, [MIXERS] * 4, config)


def test_mixer_without_a_cost_is_refused():
    with pytest.raises(UserError, match="none for mixer 'mamba'"):
        enumerate_allocations(COSTS, 0.7, [("fa", "mamba")] * 4)


@pytest.mark.parametrize(
    "values", [{"slack": -0.1}, {"minimum": {"fa": 3}, "maximum": {"fa": 2}}, {"minimum": {"fa": -1}}]
)
def test_bad_configs_are_refused(values):
    with pytest.raises(UserError):
        AllocationConfig(**values)


def test_published_size_is_enumerated_whole():
    table = CostTable(name="test", per_mixer={**COSTS.per_mixer, "mamba": 0.1})
    found = enumerate_allocations(table, 0.454, [tuple(table.mixers)] * 50)
    assert len(found) > 100_000
    assert max(own.cost for own in found) <= 0.454 + 1e-9
    assert len({tuple(sorted(own.counts.items())) for own in found}) == len(found)
