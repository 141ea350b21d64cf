"""Strategies against the exhaustive optimum and against random search; budgets, seeds, ties, limits."""

from collections.abc import Sequence

import numpy as np
import pytest

from apriel_assets.errors import UserError
from apriel_assets.search.beam import BeamSearch
from apriel_assets.search.config import AllocationConfig, SearchConfig
from apriel_assets.search.history import rank
from apriel_assets.search.moves import neighbour_groups
from apriel_assets.search.placement_search import SearchResult, curve_rows, search_placements
from apriel_assets.search.surrogate import fit, optima
from apriel_assets.tables.schemas import to_table
from tests.search.landscapes import COSTS, Interval, Landscape, make_space

STRATEGIES = ("beam", "surrogate", "random", "exhaustive")


def run(strategy: str, landscape, space, max_candidates: int, **settings) -> SearchResult:
    config = SearchConfig(
        strategy=strategy, max_candidates=max_candidates, **{"patience": None, "batch": 24, **settings}
    )
    ranking = landscape.ranking() if isinstance(landscape, Landscape) else None
    return search_placements(space, landscape, config, layer_ranking=ranking, seed=0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("strategy", ["beam", "surrogate"])
def test_reaches_the_exhaustive_optimum_within_its_interval(strategy, seed):
    space = make_space(5, 0.6)
    best = run("exhaustive", Landscape(5, seed), space, 500).best
    found = run(strategy, Landscape(5, seed), space, 128)
    assert found.num_scored <= 128 < sum(1 for _ in space.enumerate())
    assert found.best.score.value >= best.score.low


@pytest.mark.parametrize("strategy", ["beam", "surrogate"])
def test_reaches_the_optimum_itself_when_it_may_score_most(strategy):
    space = make_space(4, 0.6)
    for seed in range(4):
        best = run("exhaustive", Landscape(4, seed), space, 500).best
        assert run(strategy, Landscape(4, seed), space, 500).best.placement == best.placement


@pytest.mark.parametrize("strategy", ["beam", "surrogate"])
def test_beats_random_at_equal_candidates(strategy):
    space = make_space(12, 0.5)
    gains = []
    for seed in range(6):
        own, random = (run(name, Landscape(12, seed), space, 96) for name in (strategy, "random"))
        assert own.num_scored == random.num_scored == 96
        gains.append(own.best.score.value - random.best.score.value)
    assert min(gains) > -0.05
    assert np.mean(gains) > 0.15


def test_what_cannot_be_trusted_ranks_below_all_that_can():
    space = make_space(3, 0.9)
    placements = list(space.enumerate())
    scored = {p: Interval(number, number, number, number % 2 == 0) for number, p in enumerate(placements)}
    values = [scored[placement].value for placement in rank(scored, space)]
    even = [value for value in range(len(placements)) if value % 2 == 0]
    odd = [value for value in range(len(placements)) if value % 2]
    assert values == [*reversed(even), *reversed(odd)]


def test_beam_evaluates_few_layers_when_prefixes_are_reused():
    shares = []
    for seed in range(4):
        landscape = Landscape(12, seed)
        run("beam", landscape, make_space(12, 0.5), 128, batch=32)
        shares.append(landscape.evaluated_layers / (12 * len(landscape.scored)))
    assert np.mean(shares) <= 0.6
    assert max(shares) <= 0.7


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_candidate_is_within_the_budget_and_scored_once(strategy):
    rng = np.random.default_rng(0)
    for _ in range(6):
        num_layers, budget = int(rng.integers(3, 6)), float(rng.uniform(0.45, 0.9))
        config = AllocationConfig(
            pareto=bool(rng.integers(2)),
            pinned={int(rng.integers(num_layers)): str(rng.choice(["fa", "gdn"]))},
            maximum={"swa": int(rng.integers(1, 4))},
        )
        space = make_space(num_layers, budget, config)
        landscape = Landscape(num_layers, 0)
        result = run(strategy, landscape, space, 2000 if strategy == "exhaustive" else 40)
        assert len(set(landscape.scored)) == len(landscape.scored) == result.num_scored
        for placement in landscape.scored:
            assert COSTS.cost(placement) <= budget + 1e-9
            assert all(placement[layer] == mixer for layer, mixer in config.pinned.items())
            assert placement.count("swa") <= config.maximum["swa"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_reproduces_a_search(strategy):
    space = make_space(5, 0.6)
    config = SearchConfig(strategy=strategy, max_candidates=300 if strategy == "exhaustive" else 60)
    runs = []
    for seed in (3, 3, 4):
        landscape = Landscape(5, 0)
        result = search_placements(space, landscape, config, seed=seed)
        runs.append((landscape.scored, [found.placement for found in result.ranked]))
    assert runs[0] == runs[1]
    assert strategy == "exhaustive" or runs[0] != runs[2]


def constant(placements: Sequence) -> list[Interval]:
    return [Interval(0.5, 0.4, 0.6) for _ in placements]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ties_go_to_the_cheaper_placement(strategy):
    result = run(strategy, constant, make_space(4, 0.6, AllocationConfig(pareto=False)), 500)
    order = [(found.cost, found.placement) for found in result.ranked]
    assert order == sorted(order)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_small_spaces_are_used_up(strategy):
    space = make_space(3, 0.6)
    result = run(strategy, Landscape(3, 0), space, 500)
    assert {found.placement for found in result.ranked} == set(space.enumerate())
    assert result.stopped_because == "no placement is left to try"


def test_stops_early_when_the_finalists_are_stable():
    wide = run("beam", constant, make_space(8, 0.6), 500, patience=2)
    assert wide.num_scored < 120
    assert wide.stopped_because == "the best 4 were stable for 2 rounds"
    patient = run("beam", constant, make_space(8, 0.6), 200, patience=None)
    assert patient.stopped_because == "all 200 candidates are used up"


def test_exact_scores_count_every_rise_as_news():
    rising = iter(range(1000))

    def scorer(placements: Sequence) -> list[Interval]:
        return [Interval(value, value, value) for value, _ in zip(rising, placements, strict=False)]

    assert run("random", scorer, make_space(8, 0.6), 240, patience=1).num_scored == 240


def test_stops_when_the_time_is_over():
    result = run("random", constant, make_space(8, 0.6), 500, max_seconds=1e-9)
    assert result.num_scored == 24
    assert result.stopped_because == "1e-09 s are over"


def test_infinitely_bad_scores_do_no_harm_and_nan_is_refused():
    landscape = Landscape(6, 0)

    def broken(placements: Sequence) -> list[Interval]:
        return [
            Interval(-np.inf, -np.inf, -np.inf) if placement[0] == "gdn" else score
            for placement, score in zip(placements, landscape(placements), strict=True)
        ]

    assert run("surrogate", broken, make_space(6, 0.6), 72).best.placement[0] != "gdn"
    with pytest.raises(UserError, match="scored nan"):
        run("random", lambda placements: [Interval(np.nan, 0, 0)] * len(placements), make_space(6, 0.6), 24)


def test_exhaustive_refuses_what_it_may_not_finish():
    with pytest.raises(UserError, match="more than the 100 placements that max_candidates allows"):
        run("exhaustive", constant, make_space(8, 0.6), 100)


def test_curve_rises_and_fits_its_table():
    result = run("beam", Landscape(8, 0), make_space(8, 0.6), 96)
    table = to_table("search_curve", curve_rows(0.6, result))
    best = table["best_value"].to_pylist()
    assert best == sorted(best)
    assert table["candidates"].to_pylist()[-1] == result.num_scored == 96
    assert table["best_value"][-1].as_py() == result.best.score.value


def test_progress_reports_candidates_and_the_best():
    seen = []
    config = SearchConfig(strategy="random", max_candidates=48, batch=24)
    search_placements(
        make_space(6, 0.6), constant, config, progress=lambda done, total, **f: seen.append((done, total, f))
    )
    assert seen == [(24, 48, {"best": 0.5}), (48, 48, {"best": 0.5})]


@pytest.mark.parametrize(
    "values", [{"beam": 0}, {"max_candidates": 0}, {"max_seconds": 0.0}, {"stability": -1.0}]
)
def test_bad_configs_are_refused(values):
    with pytest.raises(UserError, match="search"):
        SearchConfig(**values)


def test_beam_proposes_neighbours_of_the_best_and_the_models_optima():
    space = make_space(8, 0.6)
    rng = np.random.default_rng(0)
    placements = list({space.random(rng): None for _ in range(30)})
    scored = {placement: Interval(value, value, value) for value, placement in enumerate(placements)}
    proposed = BeamSearch(space, [], 1, rng).propose(scored, 24)
    neighbours = {placement for group in neighbour_groups(space, placements[-1]) for placement in group}
    assert len(proposed) == 24
    assert not set(proposed) & set(scored)
    assert len(set(proposed) - neighbours) <= 24 // 4
    assert len(set(proposed) & set(optima(space, fit(space, scored).mean()))) >= 1
