"""Mixer-output matching against arithmetic done layer by layer, and who gets the gradient."""

import pytest
import torch

from apriel_assets.distillation.mixer_outputs import (
    AlignmentLoss,
    matched_outputs,
    mixer_errors,
    output_error,
)
from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import MixerOptions, SlidingWindowConfig
from tests.hybrid.tiny_teachers import tiny_teacher
from tests.scoring.tiny_hybrid import make_random_traces

MIXERS = (("fa", "swa", "gdn"),) * 3
BATCH = make_random_traces(6).batch(range(6))


def make_supernet(window=4):
    return build_supernet(
        tiny_teacher(), MIXERS, options=MixerOptions(swa=SlidingWindowConfig(window=window))
    )


def outputs_on(model, layer, placement):
    """Every mixer's output of a layer on the input that it has under a placement, each from a pass of its
    own."""
    seen = {}

    with torch.no_grad():
        for name in model.mixers[layer]:
            # The layer's own input depends only on the layers below.
            model.set_placement((*placement[:layer], name, *placement[layer + 1 :]))
            bank = model.banks[layer]
            hook = bank.register_forward_hook(
                lambda module, args, output, name=name: seen.__setitem__(name, output[0])
            )
            model.final_hidden_states(BATCH.input_ids, BATCH.attention_mask)
            hook.remove()
    model.set_placement(placement)
    return seen


def test_error_by_hand_ignores_padding():
    wanted = torch.tensor([[[1.0, 2.0], [2.0, 0.0], [50.0, 50.0]]])
    mixed = torch.tensor([[[0.0, 2.0], [2.0, 1.0], [0.0, 0.0]]])
    error = output_error(mixed, wanted, torch.tensor([[1, 1, 0]]))
    assert error.item() == pytest.approx((1 + 1) / (1 + 4 + 4))
    assert output_error(torch.zeros_like(wanted), wanted, torch.tensor([[1, 0, 1]])).item() == 1


def test_errors_are_those_of_each_layer_on_its_own_input():
    model, placement = make_supernet(), ("gdn", "fa", "swa")
    model.set_placement(placement)
    with matched_outputs(model, BATCH.attention_mask) as errors:
        model.final_hidden_states(BATCH.input_ids, BATCH.attention_mask)
    assert len(errors) == 2  # full attention has nothing to match
    real = BATCH.attention_mask.bool()
    for error, layer in zip(errors, (0, 2), strict=True):
        seen = outputs_on(model, layer, placement)
        mixed, wanted = seen[placement[layer]][real].double(), seen["fa"][real].double()
        expected = ((mixed - wanted) ** 2).sum() / (wanted**2).sum()
        assert error.item() == pytest.approx(expected.item(), rel=1e-5)
        assert error.item() > 1e-4


def test_the_gradient_stays_in_the_layers_own_mixer():
    model = make_supernet()
    model.set_placement(("gdn", "swa", "gdn"))
    with matched_outputs(model, BATCH.attention_mask) as errors:
        model.final_hidden_states(BATCH.input_ids, BATCH.attention_mask)
    errors[2].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    own = {name for name, _ in model.named_parameters() if "layers.2.self_attn.mixers.gdn." in name}
    assert reached == own


def test_every_mixer_is_measured_under_full_attention_in_one_pass():
    model = make_supernet()
    errors = mixer_errors(model, BATCH)
    assert errors.keys() == {"swa", "gdn"}
    real = BATCH.attention_mask.bool()
    for name, error in errors.items():
        layers = [outputs_on(model, layer, ("fa",) * 3) for layer in range(3)]
        expected = [output_error(seen[name], seen["fa"], real).item() for seen in layers]
        assert error == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_alignment_is_the_mean_of_all_errors_and_reaches_each_mixer_alone():
    model = make_supernet()
    loss = AlignmentLoss(model)
    shown, minimised = loss(BATCH, 2 * int(BATCH.mask.sum()))  # half of a whole batch
    errors = mixer_errors(model, BATCH)
    assert shown.item() == pytest.approx((errors["swa"] + errors["gdn"]) / 2 / 2, rel=1e-5)
    minimised.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    own = {name for name, _ in model.named_parameters() if ".mixers.swa." in name or ".mixers.gdn." in name}
    assert reached == own


def test_a_window_that_sees_everything_has_no_error():
    assert mixer_errors(make_supernet(window=64), BATCH)["swa"] == pytest.approx(0, abs=1e-10)


def test_refuses_gradient_checkpointing():
    model = make_supernet()
    model.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="mixer_matching"), matched_outputs(model, BATCH.attention_mask):
        pass
