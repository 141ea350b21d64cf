"""Resumed forwards equal whole ones, on every kind of backbone, and leave the model alone."""

import pytest
import torch

from apriel_assets.distillation.causal_lm import decoder_layers, final_hidden_states
from apriel_assets.scoring.prefix import capture_prefix, count_layers, resume_forward, resumed_at
from tests.hybrid.tiny_teachers import TEACHERS, tiny_teacher
from tests.scoring.tiny_hybrid import make_hybrid, make_random_traces


@pytest.fixture
def batch():
    return make_random_traces().batch([0, 1, 2, 3])  # ragged: padding is in it


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", list(TEACHERS))
def test_resuming_at_any_layer_equals_the_whole_pass(kind, wrapped, batch):
    model = make_hybrid(kind) if wrapped else tiny_teacher(kind)
    with torch.no_grad():
        prefix = capture_prefix(model, batch.input_ids, batch.attention_mask)
        whole = final_hidden_states(model, batch.input_ids, batch.attention_mask)
        assert torch.equal(prefix.final_hidden_states, whole)
        for layer in range(3):
            resumed = resume_forward(model, prefix, layer, batch.input_ids, batch.attention_mask)
            assert torch.equal(resumed, whole)


def test_resuming_below_a_recurrent_mixer_equals_the_whole_pass(batch):
    model = make_hybrid()
    model.convert([0, 2], "mamba")
    with torch.no_grad():
        prefix = capture_prefix(model, batch.input_ids, batch.attention_mask)
        resumed = resume_forward(model, prefix, 2, batch.input_ids, batch.attention_mask)
    assert torch.equal(resumed, prefix.final_hidden_states)


def test_a_changed_layer_shows_and_layers_below_are_not_run(batch):
    model = make_hybrid()
    with torch.no_grad():
        prefix = capture_prefix(model, batch.input_ids, batch.attention_mask)
        model.decoder_layers[0].mlp.up_proj.weight.fill_(torch.nan)  # would poison a whole pass
        model.decoder_layers[2].mlp.up_proj.weight.mul_(2)
        resumed = resume_forward(model, prefix, 1, batch.input_ids, batch.attention_mask)
    assert resumed.isfinite().all()
    assert not torch.allclose(resumed, prefix.final_hidden_states)


def test_gradients_reach_the_resumed_layers_alone(batch):
    model = make_hybrid()
    with torch.no_grad():
        prefix = capture_prefix(model, batch.input_ids, batch.attention_mask)
    resume_forward(model, prefix, 1, batch.input_ids, batch.attention_mask).square().sum().backward()
    has_gradient = [layer.mlp.up_proj.weight.grad is not None for layer in decoder_layers(model)]
    assert has_gradient == [False, True, True]


def test_counts_layers_and_mixers(batch):
    model = make_hybrid()
    with torch.no_grad(), count_layers(model) as counts:
        prefix = capture_prefix(model, batch.input_ids, batch.attention_mask)
        resume_forward(model, prefix, 2, batch.input_ids, batch.attention_mask)
        with model.skip_mixers([1]):
            final_hidden_states(model, batch.input_ids, batch.attention_mask)
    assert (counts.decoder_layers, counts.mixers) == (3 + 1 + 3, 3 + 1 + 2)


def test_the_model_is_put_back_even_after_an_error():
    model = make_hybrid()
    layers, names = list(model.decoder_layers), list(model.state_dict())
    with resumed_at(model, 2, torch.zeros(1, 1, 32)):
        assert model.decoder_layers[0].self_attn is layers[0].self_attn  # a forward may read attributes
        assert model.decoder_layers[0] is not layers[0]

    def fail():
        with resumed_at(model, 2, torch.zeros(1, 1, 32)):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert all(a is b for a, b in zip(layers, model.decoder_layers, strict=True))
    assert list(model.state_dict()) == names
