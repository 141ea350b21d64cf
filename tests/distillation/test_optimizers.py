"""Optimisers: stacked Muon against torch.optim.Muon, who trains, learning rates by hand."""

import pytest
import torch
from torch import nn

from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.optimizers import (
    StackedMuon,
    choose_trained,
    learning_rate_factor,
    make_optimizers,
    orthogonalize,
)
from apriel_assets.errors import UserError
from tests.distillation.tiny_llama import make_llama

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("nesterov", [True, False])
def test_stacked_muon_moves_like_torch_muon(nesterov):
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 12), (12, 8), (8, 12), (16, 16), (8, 12)]
    mine = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in mine]
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    stacked, plain = StackedMuon(mine, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(3):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        if step == 1:
            mine[0].grad = theirs[0].grad = None  # unused in this step: it must not move at all
            before = mine[0].detach().clone()
        stacked.step()
        plain.step()
        if step == 1:
            assert torch.equal(mine[0], before)
    for a, b in zip(mine, theirs, strict=True):
        # torch iterates in bf16 (8 significant bits); updates have entries of 0.1 * 0.3, three steps of them.
        torch.testing.assert_close(a, b, atol=4e-3, rtol=0)
        torch.testing.assert_close(
            stacked.state[a]["momentum_buffer"], plain.state[b]["momentum_buffer"], atol=1e-6, rtol=1e-5
        )


def test_orthogonalize_keeps_singular_vectors_and_levels_singular_values():
    matrices = torch.randn(4, 10, 6, generator=torch.Generator().manual_seed(1))
    result = orthogonalize(matrices, COEFFICIENTS, steps=5, eps=1e-7)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    aligned = u.mT @ result @ vt.mT  # diagonal if the singular vectors are the same
    torch.testing.assert_close(aligned, torch.diag_embed(aligned.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)


def test_muon_takes_linear_weights_only():
    student = make_llama(tie_word_embeddings=True)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    muon, adam = make_optimizers(student, DistillConfig(optimizer="muon"))
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adam.param_groups for p in group["params"]}
    assert taken | rest == set(names.values())
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-2] for name in taken} == projections
    assert all("norm" in name or "embed" in name or "head" in name for name in rest)


def test_adamw_decays_matrices_alone():
    (adam,) = make_optimizers(make_llama(), DistillConfig(optimizer="adamw", weight_decay=0.3))
    for group in adam.param_groups:
        assert group["weight_decay"] in (0.0, 0.3)
        assert all(parameter.ndim == 2 for parameter in group["params"] if group["weight_decay"])


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rate_by_hand(decay, expected):
    config = DistillConfig(steps=6, warmup_fraction=1 / 3, decay=decay)
    assert [learning_rate_factor(step, config) for step in range(6)] == pytest.approx(expected, abs=1e-6)


def test_refuses_to_train_mixers_where_there_are_none():
    with pytest.raises(UserError, match="convert a layer first"):
        choose_trained(make_llama(), "mixers")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("temperature", 0.0),
        ("warmup_fraction", 1.5),
        ("grad_clip_norm", 0.0),
        ("gradient_accumulation", 3),
        ("max_tokens", 1),
    ],
)
def test_config_refuses(field, value):
    with pytest.raises(UserError, match=field):
        DistillConfig(**{"batch_size": 16, field: value})


def test_config_refuses_temperature_without_a_teacher():
    with pytest.raises(UserError, match="temperature"):
        DistillConfig(loss="cross_entropy", temperature=2.0)
