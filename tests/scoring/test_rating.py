"""Which value ranks a placement, where it must not be trusted, and the rows of the `candidates` table."""

import logging

import pytest

from apriel_assets.scoring.config import EstimatorConfig
from apriel_assets.scoring.placements import PlacementScorer
from apriel_assets.scoring.rating import to_rows, warn_of_thin
from tests.scoring.tiny_supernet import make_store, make_supernet

ALL_FA = ("fa", "fa", "fa")


@pytest.fixture(scope="module")
def supernet():
    return make_supernet()


@pytest.fixture(scope="module")
def store(supernet):
    return make_store(supernet)


def test_snis_does_not_rank_where_the_ess_is_too_small(supernet, store, caplog):
    wanted = [ALL_FA, ("mamba", "mamba", "swa")]
    trusting = EstimatorConfig(resamples=50, estimator="snis", ess_floor=0.0)
    wary = EstimatorConfig(resamples=50, estimator="snis", ess_floor=0.99)
    intact, broken = PlacementScorer(supernet, store, trusting).score(wanted)
    assert (intact.reliable, broken.reliable) == (True, True)
    assert broken.value == broken.figures["snis"]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        intact, broken = PlacementScorer(supernet, store, wary).score(wanted)
        PlacementScorer(supernet, store, wary).score(wanted[1:])
    assert (intact.reliable, intact.estimator) == (True, "snis")
    assert (broken.reliable, broken.estimator) == (False, "ois_clipped")
    assert broken.value == broken.figures["ois_clipped"] < intact.value
    assert "1 of 2 placements" in caplog.text
    assert "all of 1 placements" in caplog.text


def test_rows_hold_every_estimator(supernet, store):
    config = EstimatorConfig(resamples=50, estimator="reverse_kl")
    scores = PlacementScorer(supernet, store, config).score([("swa", "fa", "fa"), ALL_FA])
    row, intact = to_rows(scores, budget=0.5, costs=[0.4, 1.0]).to_pylist()
    assert row["placement"] == ["swa", "fa", "fa"]
    assert (row["budget"], row["cost"], row["estimator"], row["reliable"]) == (0.5, 0.4, "reverse_kl", True)
    assert row["value"] == -row["reverse_kl_nats"] < intact["value"]
    assert row["low"] <= row["value"] <= row["high"]
    assert row["num_problems"] == 6
    assert {name for name, value in row.items() if value is None} == set()


@pytest.mark.parametrize("estimator", ["snis", "ois_clipped"])
def test_a_search_in_which_every_ess_is_small_says_so(estimator, supernet, store, caplog):
    wanted = [("mamba", "mamba", "swa"), ("mamba", "swa", "swa")]
    config = EstimatorConfig(resamples=50, estimator=estimator, ess_floor=0.99)
    scores = PlacementScorer(supernet, store, config).score(wanted)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert warn_of_thin(scores, config, 0.5) == 2
        assert "budget 0.5: all 2 candidates" in caplog.text
        assert "ranked by ois_clipped" in caplog.text
        caplog.clear()
        intact = PlacementScorer(supernet, store, config).score([ALL_FA])
        assert warn_of_thin([*scores, *intact], config, 0.5) == 2
        assert "candidates" not in caplog.text
