"""A walk equals whole passes bit for bit, computes each shared prefix once and keeps no more than it needs."""

import itertools
from random import Random

import pytest
import torch

from apriel_assets.scoring import prefix_walk
from apriel_assets.scoring.prefix import count_layers
from apriel_assets.scoring.prefix_walk import layer_evaluations, plan_walk, walk
from tests.scoring.tiny_hybrid import make_random_traces
from tests.scoring.tiny_supernet import make_supernet

BATCH = make_random_traces().batch([0, 1, 2, 3])  # ragged: padding is in it


def draw_placements(model, num, seed=0):
    rng = Random(seed)
    return [tuple(rng.choice(held) for held in model.mixers) for _ in range(num)]


@pytest.mark.parametrize("kind", ["llama", "mistral_windowed", "qwen3"])
@torch.no_grad()
def test_every_step_equals_a_whole_pass(kind):
    model = make_supernet(kind)
    steps = plan_walk(draw_placements(model, 12))
    assert any(step.start for step in steps)
    found = list(walk(model, steps, BATCH))
    for step, hidden in zip(steps, found, strict=True):
        model.set_placement(step.placement)
        assert torch.equal(hidden, model.final_hidden_states(BATCH.input_ids))
        masked = model.final_hidden_states(BATCH.input_ids, BATCH.attention_mask)
        real = BATCH.attention_mask.bool()
        torch.testing.assert_close(hidden[real], masked[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_layers_computed_are_the_nodes_of_the_trie():
    model = make_supernet()
    placements = draw_placements(model, 10)
    nodes = {p[:depth] for p in placements for depth in range(1, len(p) + 1)}
    steps = plan_walk([*placements, *placements[:3]])
    with count_layers(model) as counts:
        list(walk(model, steps, BATCH))
    assert counts.decoder_layers == layer_evaluations(steps) == len(nodes)


def test_all_placements_of_a_supernet_cost_little_more_than_their_last_layers():
    steps = plan_walk(list(itertools.product(("fa", "gdn", "swa"), repeat=6)))
    assert layer_evaluations(steps) == sum(3**depth for depth in range(1, 7))


def test_a_walk_keeps_what_later_steps_start_from_and_nothing_else():
    for seed in range(20):
        rng = Random(seed)
        steps = plan_walk([tuple(rng.choice(("fa", "swa")) for _ in range(7)) for _ in range(30)])
        kept = frozenset()
        for number, step in enumerate(steps):
            assert step.start == 0 or step.start in kept
            kept = step.keep
            for layer in kept:  # somebody starts there, before the path below it changes
                user = next(later for later in steps[number + 1 :] if later.start <= layer)
                assert user.start == layer


@torch.no_grad()
def test_a_walk_holds_no_more_activations_than_it_needs(monkeypatch):
    model, held = make_supernet(), []
    steps = plan_walk(draw_placements(model, 12))
    kept = prefix_walk._inputs_kept

    def spy(model, layers, inputs):
        held.append(set(inputs))
        return kept(model, layers, inputs)

    monkeypatch.setattr(prefix_walk, "_inputs_kept", spy)
    list(walk(model, steps, BATCH))
    assert held[1:] == [set(step.keep) for step in steps[:-1]]


@torch.no_grad()
def test_the_model_is_put_back_after_an_error(monkeypatch):
    model = make_supernet()
    layers, before = list(model.decoder_layers), model.placement
    steps = plan_walk(draw_placements(model, 6))
    walking = walk(model, steps, BATCH)
    next(walking)
    monkeypatch.setattr(type(model), "final_hidden_states", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(walking)
    assert model.placement == before
    assert all(a is b for a, b in zip(layers, model.decoder_layers, strict=True))
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_no_placements_make_no_steps():
    assert plan_walk([]) == []
    assert prefix_walk.layer_evaluations([]) == 0
