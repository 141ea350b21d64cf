"""Measured costs on a tiny model: rows by value where a clock can be faked, the model left as it came."""

import itertools

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import cache_bytes_per_layer, mixer_parameters
from apriel_assets.evaluation.throughput import model_shape
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.search import measured
from apriel_assets.search.config import CostPoint, CostsConfig
from apriel_assets.search.cost_check import check_costs, spread_placements
from apriel_assets.search.costs import measured_costs
from apriel_assets.search.measured import measure_mixer, mixer_amount
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

CONFIG = CostsConfig(phase="both", contexts=(8, 16), batch_size=2, repeats=1, decode_tokens=2)
MIXERS = ("swa", "gdn", "mamba")


def make_hybrid(num_layers: int = 5, mixers: tuple[str, ...] = ()) -> HybridForCausalLM:
    model = HybridForCausalLM.from_teacher(tiny_teacher(num_hidden_layers=num_layers), copy=False).eval()
    for mixer in mixers:
        model.convert(range(num_layers), mixer, keep=True)
    model.set_placement(("fa",) * num_layers)
    return model


@pytest.mark.parametrize("mixer", ["fa", *MIXERS])
def test_one_row_a_point_and_the_model_ends_as_it_came(mixer):
    model = make_hybrid()
    ids = random_ids(2, 12)
    before, names = model(ids).logits, model.mixers
    rows = measure_mixer(model, mixer, CONFIG, device_name="test").to_pylist()
    points = [(row["phase"], row["context_tokens"], row["batch_size"]) for row in rows]
    assert sorted(points) == sorted((p.phase, p.context, p.batch_size) for p in CONFIG.points)
    for row in rows:
        assert row["relative"] == pytest.approx(row["seconds"] / row["fa_seconds"])
        assert row["seconds"] > 0
        assert (row["relative"] == 1) == (mixer == "fa")
    assert model.mixers == names
    assert model.placement == ("fa",) * 5
    assert torch.equal(model(ids).logits, before)


def test_seconds_are_those_of_the_mixers_calls(monkeypatch):
    """With a clock that only the mixers advance, the figures are exact."""
    now = itertools.count(0)
    clock = [0.0]
    monkeypatch.setattr(measured.time, "perf_counter", lambda: clock[0] + next(now) * 1e-9)
    model = make_hybrid(4, ("gdn",))
    for layer, bank in enumerate(model.banks):
        for name, mixer in bank.mixers.items():
            took = {"fa": 2.0, "gdn": 0.5}[name] * (1 if layer % 2 else 3)
            mixer.register_forward_hook(lambda *_, took=took: clock.__setitem__(0, clock[0] + took))
    rows = measure_mixer(model, "gdn", CONFIG, device_name="test").to_pylist()
    for row in rows:  # means over layers 0 and 1 (fa), 2 and 3 (gdn)
        assert row["fa_seconds"] == pytest.approx(4.0, abs=1e-6)
        assert row["seconds"] == pytest.approx(1.0, abs=1e-6)
        assert row["relative"] == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("mixer", ["fa", "swa", "gdn", "kda", "mamba"])
def test_roofline_beside_it_counts_one_mixer(mixer):
    shape = model_shape(make_hybrid())
    point = CostPoint(phase="decode", context=100, batch_size=3)
    passes = 1 if mixer in ("fa", "swa") else 2  # recurrent states are read and written
    expected = mixer_parameters(shape, mixer) * shape.weight_bytes
    expected += 3 * passes * cache_bytes_per_layer(shape, mixer, 100)
    assert mixer_amount(shape, mixer, point) == pytest.approx(expected)
    prompt = CostPoint(phase="prefill", context=100, batch_size=3)
    assert mixer_amount(shape, mixer, prompt) > 3 * 100 * 2 * mixer_parameters(shape, mixer)


@pytest.mark.parametrize(
    ("num_layers", "lost", "message"), [(1, (), "has one layer"), (4, (0,), r"layers \[0\]")]
)
def test_models_without_full_attention_to_compare_with_are_refused(num_layers, lost, message):
    model = make_hybrid(num_layers)
    if lost:
        model.convert(lost, "swa")
    with pytest.raises(UserError, match=message):
        measure_mixer(model, "swa", CONFIG, device_name="test")


def test_check_is_perfect_when_the_cost_model_is_true(monkeypatch):
    """A clock on which mixers take what they take and the rest of the model a constant: linear by construction."""
    from apriel_assets.search import cost_check

    model = make_hybrid(4, ("swa", "gdn"))
    seconds = {"fa": 2.0, "swa": 1.0, "gdn": 0.5}
    monkeypatch.setattr(
        cost_check, "timed", lambda work, device: (work(), 10 + sum(seconds[m] for m in model.placement))
    )
    rows = [
        {
            "mixer": mixer,
            "phase": point.phase,
            "context_tokens": point.context,
            "batch_size": point.batch_size,
            "fa_seconds": 2.0,
            "relative": seconds[mixer] / 2,
        }
        for mixer in seconds
        for point in CONFIG.points
    ]
    placements = spread_placements(model.mixers, 4)
    check = check_costs(model, placements, rows, CONFIG, device_name="test")
    assert check.table.num_rows == 4 * len(CONFIG.points)
    assert check.r2 == pytest.approx(1.0)
    assert check.worst_error == pytest.approx(0.0, abs=1e-12)
    assert check.fitted.worst_error == pytest.approx(0.0, abs=1e-12)
    assert model.placement == ("fa",) * 4
    # What the model leaves out shows: 3 s more wherever a window is in use.
    monkeypatch.setattr(
        cost_check,
        "timed",
        lambda work, device: (
            work(),
            10 + sum(seconds[m] for m in model.placement) + 3 * ("swa" in model.placement),
        ),
    )
    check = check_costs(model, placements, rows, CONFIG, device_name="test")
    assert check.worst_error == pytest.approx(3 / 18)
    assert check.fitted.table.overheads["swa"] == pytest.approx(3 / 8)  # all-FA's mixers take 8 s
    assert check.fitted.worst_error == pytest.approx(0.0, abs=1e-9)


def test_check_runs_on_a_real_clock():
    model = make_hybrid(4, ("swa", "gdn"))
    tables = [measure_mixer(model, mixer, CONFIG, device_name="test") for mixer in ("swa", "gdn")]
    rows = [row for table in tables for row in table.to_pylist()]
    assert set(measured_costs(rows).per_mixer) == {"fa", "swa", "gdn"}
    check = check_costs(model, spread_placements(model.mixers, 2), rows, CONFIG, device_name="test")
    assert check.table.num_rows == 2 * len(CONFIG.points)
    with pytest.raises(UserError, match="no mixer cost at prefill, context 9"):
        check_costs(
            model,
            [("swa",) * 4],
            rows,
            CostsConfig(phase="prefill", contexts=(9,), repeats=1),
            device_name="t",
        )
    with pytest.raises(UserError, match="no placement to check"):
        check_costs(model, [], rows, CONFIG, device_name="test")


def test_spread_placements_reach_from_few_to_all_layers():
    available = [("fa", "swa", "gdn")] * 10
    placements = spread_placements(available, 5, seed=1)
    assert [10 - placement.count("fa") for placement in placements] == [2, 4, 6, 8, 10]
    assert placements == spread_placements(available, 5, seed=1)
    assert placements != spread_placements(available, 5, seed=2)
    assert spread_placements([("fa",), ("gdn",), ("fa", "swa")], 1) == [("fa", "gdn", "swa")]
