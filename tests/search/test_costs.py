"""Costs: hand arithmetic of the published tables, overheads, measured tables, the fit of overheads."""

import itertools

import numpy as np
import pytest

from apriel_assets.errors import UserError
from apriel_assets.search.config import CostsConfig
from apriel_assets.search.costs import (
    PUBLISHED,
    CostTable,
    evaluate_costs,
    fit_overheads,
    measured_costs,
    published_costs,
    resolve_costs,
)


@pytest.mark.parametrize(
    ("counts", "cost"),
    [
        ({"fa": 20, "gdn": 30}, 0.454),
        ({"fa": 15, "swa": 5, "gdn": 30}, 0.370),
        ({"fa": 10, "swa": 10, "gdn": 30}, 0.286),
        ({"fa": 50}, 1.0),
        ({"fa": 0, "kda": 50}, 0.11),
    ],
)
def test_published_costs_match_hand_arithmetic(counts, cost):
    assert published_costs("published").cost(counts) == pytest.approx(cost)


def test_placement_costs_what_its_counts_cost():
    table = CostTable(
        name="t", per_mixer=PUBLISHED["published_regression"], overheads={"swa": 0.05, "gdn": 0.1}
    )
    placement = ("fa", "swa", "fa", "swa", "kda")
    assert table.cost(placement) == pytest.approx((2 + 2 * 0.48 + 0.21) / 5 + 0.05)
    assert table.cost(placement) == table.cost({"kda": 1, "swa": 2, "fa": 2, "gdn": 0})


def test_cost_of_a_mixer_without_one_names_it():
    with pytest.raises(UserError, match="published have none for mixer 'mamba', only for fa, swa"):
        published_costs("published").cost({"fa": 1, "mamba": 1})


@pytest.mark.parametrize("counts", [{}, {"fa": 0}, {"fa": 2, "swa": -1}])
def test_what_is_no_allocation_is_refused(counts):
    with pytest.raises(UserError, match="not an allocation"):
        published_costs("published").cost(counts)


@pytest.mark.parametrize(
    ("per_mixer", "overheads", "message"),
    [
        ({"fa": 2.0}, {}, "it must be 1"),
        ({"swa": 1.0}, {}, "it must be 1"),
        ({"fa": 1.0, "swa": -0.1}, {}, "swa costs -0.1"),
        ({"fa": 1.0, "swa": float("nan")}, {}, "swa costs nan"),
        ({"fa": 1.0}, {"gdn": 0.1}, "none for mixer 'gdn'"),
        ({"fa": 1.0}, {"fa": 0.1}, "fa cannot have an overhead"),
        ({"fa": 1.0, "swa": 0.5}, {"swa": -1.0}, "overhead of swa"),
    ],
)
def test_bad_tables_are_refused(per_mixer, overheads, message):
    with pytest.raises(UserError, match=message):
        CostTable(name="t", per_mixer=per_mixer, overheads=overheads)


def test_unknown_table_names_the_known_ones():
    with pytest.raises(
        UserError, match=r"no cost table 'nope'; choose measured, given .* published_regression"
    ):
        resolve_costs(CostsConfig(table="nope"))


def test_resolve_takes_given_costs_and_overheads():
    config = CostsConfig(table="given", given={"gdn": 0.25}, overheads={"gdn": 0.1})
    assert resolve_costs(config).cost(("fa", "gdn")) == pytest.approx(0.725)
    with pytest.raises(UserError, match="if and only if"):
        CostsConfig(table="given")
    with pytest.raises(UserError, match="if and only if"):
        CostsConfig(table="published", given={"gdn": 0.25})


def cost_row(mixer: str, context: int, relative: float) -> dict:
    return {
        "mixer": mixer,
        "phase": "decode",
        "context_tokens": context,
        "batch_size": 8,
        "relative": relative,
    }


def test_measured_cost_is_the_mean_over_points():
    rows = [
        cost_row("swa", 64, 0.8),
        cost_row("swa", 256, 0.2),
        cost_row("gdn", 64, 1.5),
        cost_row("gdn", 256, 0.3),
    ]
    table = resolve_costs(CostsConfig(), rows)
    assert dict(table.per_mixer) == pytest.approx({"fa": 1.0, "swa": 0.5, "gdn": 0.9})


def test_mixers_measured_at_other_points_are_not_mixed():
    with pytest.raises(UserError, match="not measured at the same points"):
        measured_costs([cost_row("swa", 64, 0.8), cost_row("gdn", 256, 0.3)])


def test_fit_recovers_overheads_and_never_goes_below_zero():
    table = CostTable(name="t", per_mixer={"fa": 1.0, "swa": 0.5, "gdn": 0.2, "kda": 0.3})
    placements = [p for p in itertools.product(table.mixers, repeat=3) if set(p) != {"fa"}]
    truth = CostTable(name="t", per_mixer=table.per_mixer, overheads={"swa": 0.2, "gdn": 0.05})
    fit = fit_overheads(table, placements, [truth.cost(p) for p in placements])
    assert {k: v for k, v in fit.table.overheads.items() if v > 1e-9} == pytest.approx(
        {"swa": 0.2, "gdn": 0.05}
    )
    assert (fit.r2, fit.worst_error) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))
    # kda is cheaper in use than its layers say: plain least squares would make its overhead negative.
    cheaper = [truth.cost(p) - 0.1 * ("kda" in p) for p in placements]
    assert fit_overheads(table, placements, cheaper).table.overheads.get("kda", 0.0) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_fit_is_the_best_of_a_grid_of_overheads(seed):
    rng = np.random.default_rng(seed)
    table = CostTable(name="t", per_mixer={"fa": 1.0, "swa": 0.5, "gdn": 0.2})
    placements = [tuple(rng.choice(table.mixers, 4)) for _ in range(8)]
    measured = [table.cost(p) + rng.normal(0, 0.1) for p in placements]

    def loss(overheads: dict[str, float]) -> float:
        shifted = CostTable(name="t", per_mixer=table.per_mixer, overheads=overheads)
        return sum((shifted.cost(p) - m) ** 2 for p, m in zip(placements, measured, strict=True))

    best = loss(dict(fit_overheads(table, placements, measured).table.overheads))
    grid = np.linspace(0, 0.4, 21)
    assert best <= min(loss({"swa": a, "gdn": b}) for a in grid for b in grid) + 1e-12


def test_fit_figures_match_hand_arithmetic():
    table = CostTable(name="t", per_mixer={"fa": 1.0, "swa": 0.5})
    fit = evaluate_costs(table, [("fa", "fa"), ("fa", "swa"), ("swa", "swa")], [1.0, 0.85, 0.5])
    mean = 2.35 / 3
    total = (1 - mean) ** 2 + (0.85 - mean) ** 2 + (0.5 - mean) ** 2
    assert fit.r2 == pytest.approx(1 - 0.01 / total)
    assert fit.worst_error == pytest.approx(0.1)


def test_fit_needs_one_cost_for_each_placement():
    with pytest.raises(UserError, match="1 measured costs for 2 placements"):
        fit_overheads(published_costs("published"), [("fa",), ("gdn",)], [1.0])
