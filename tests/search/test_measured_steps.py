"""Decode steps timed as a GPU's are, here without graphs: exact under a clock that only mixers advance."""

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation import timed_decoding
from apriel_assets.search import cost_check, measured, measured_steps
from apriel_assets.search.config import CostsConfig
from apriel_assets.search.cost_check import check_costs
from apriel_assets.search.measured import measure_mixer
from tests.hybrid.tiny_teachers import random_ids
from tests.search.test_measured_costs import make_hybrid

CONFIG = CostsConfig(phase="both", contexts=(8, 600), batch_size=2, repeats=2, decode_tokens=3)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    for module in (measured, cost_check):
        monkeypatch.setattr(module, "replays", lambda model: True)


@pytest.fixture
def clock(monkeypatch):
    """Let every static mixer take the seconds that its kind is given."""
    now, took = [0.0], {"_AttentionStep": 2.0, "_DeltaStep": 0.5}
    monkeypatch.setattr(timed_decoding.time, "perf_counter", lambda: now[0])
    build = measured_steps.static_mixer

    def timed_mixer(*args):
        mixer = build(*args)
        step = mixer.step

        def slow(hidden_states, clock):
            now[0] += took[type(mixer).__name__]
            return step(hidden_states, clock)

        mixer.step = slow
        return mixer

    monkeypatch.setattr(measured_steps, "static_mixer", timed_mixer)
    return took


def decode_rows(mixer, model):
    return measure_mixer(model, mixer, replace(CONFIG, phase="decode"), device_name="test").to_pylist()


def test_a_layers_seconds_are_the_groups_over_its_layers(clock):
    rows = decode_rows("gdn", make_hybrid(4, ("gdn",)))
    assert [(row["seconds"], row["fa_seconds"], row["relative"]) for row in rows] == [(0.5, 2.0, 0.25)] * 2


def test_full_attention_costs_one(clock):
    rows = decode_rows("fa", make_hybrid(4))
    assert [row["relative"] for row in rows] == [1.0, 1.0]


@pytest.mark.parametrize("mixer", ["swa", "gdn", "kda", "mamba"])
def test_every_mixer_has_its_points_and_the_model_ends_as_it_came(mixer):
    model = make_hybrid()
    ids = random_ids(2, 12)
    before, names = model(ids).logits, model.mixers
    rows = measure_mixer(model, mixer, CONFIG, device_name="test").to_pylist()
    assert sorted((row["phase"], row["context_tokens"]) for row in rows) == sorted(
        (point.phase, point.context) for point in CONFIG.points
    )
    assert all(row["seconds"] > 0 for row in rows)
    assert (model.mixers, model.placement) == (names, ("fa",) * 5)
    torch.testing.assert_close(model(ids).logits, before)  # projections were put into one matrix


def test_whole_models_are_checked_against_what_their_layers_took():
    model = make_hybrid(4, ("swa", "gdn"))
    costs = [
        row
        for mixer in ("swa", "gdn")
        for row in measure_mixer(model, mixer, CONFIG, device_name="t").to_pylist()
    ]
    placements = [("fa", "gdn", "fa", "swa"), ("gdn",) * 4]
    found = check_costs(model, placements, costs, CONFIG, device_name="t")
    rows = [row for row in found.table.to_pylist() if row["phase"] == "decode"]
    assert [(row["context_tokens"], tuple(row["placement"])) for row in rows] == [
        (context, placement) for context in CONFIG.contexts for placement in placements
    ]
    assert all(row["measured"] > 0 for row in rows)
    assert model.placement == ("fa",) * 4


def test_only_models_on_a_gpu_that_the_runner_knows_are_timed_so(monkeypatch):
    monkeypatch.undo()
    assert not measured_steps.replays(make_hybrid())


def test_what_a_graph_writes_to_lives_as_long_as_its_replay(monkeypatch):
    """A graph knows addresses alone: caches that nobody else held were freed before the first replay."""
    held = []
    build = measured_steps.static_mixer

    def noted(*args):
        mixer = build(*args)
        held.append(weakref.ref(mixer))
        return mixer

    class Graph:
        def replay(self):
            gc.collect()
            assert held
            assert all(mixer() is not None for mixer in held)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": nullcontext,
        "graph": nullcontext,
        "CUDAGraph": Graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(measured_steps, "static_mixer", noted)
    monkeypatch.setattr(measured_steps, "_on_gpu", lambda model: True)
    once = replace(CONFIG, phase="decode", contexts=(8,), repeats=1, decode_tokens=1)
    measure_mixer(make_hybrid(4, ("gdn",)), "gdn", once, device_name="test")


def test_whole_models_are_there_one_at_a_time(monkeypatch):
    """A runner that refers to itself, as one with a graph does, is gone before the next one takes its caches."""
    seen = []

    class Runner:
        def __init__(self, *_):
            assert all(other() is None for other in seen)
            self.step = self.advance
            seen.append(weakref.ref(self))

        def advance(self):
            pass

    monkeypatch.setattr(measured_steps, "ByRunner", Runner)
    gc.disable()
    try:
        measured_steps.time_placements(make_hybrid(4, ("gdn",)), (("fa",) * 4, ("gdn",) * 4), 8, CONFIG)
    finally:
        gc.enable()
    assert len(seen) == 4


def test_attention_that_the_runner_refuses_is_timed_call_by_call(monkeypatch):
    def refuse(*args):
        raise UserError("no causal attention with a scale")

    monkeypatch.setattr(measured_steps, "static_mixer", refuse)
    rows = measure_mixer(make_hybrid(4), "gdn", CONFIG, device_name="test").to_pylist()
    assert len(rows) == len(CONFIG.points)
