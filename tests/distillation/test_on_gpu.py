"""The same claims on a GPU, where the loss is compiled and Muon iterates in bf16."""

import math
from dataclasses import replace

import pytest
import torch

from apriel_assets.distillation.batches import Traces
from apriel_assets.distillation.losses import TeacherHead, token_loss
from apriel_assets.distillation.optimizers import StackedMuon
from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.distillation.trainer import train
from tests.distillation.test_losses import gradients, make_case, plain_loss
from tests.distillation.test_trainer import CONFIG, make_llama, make_traces
from tests.hybrid.tiny_teachers import tiny_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "cross_entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_losses_equal_the_plain_formula(dtype, kind, temperature):
    hidden, head, teacher, mask, targets = make_case(dtype)
    hidden = hidden.detach().cuda().requires_grad_()
    head, mask, targets = head.cuda(), mask.cuda(), targets.cuda()
    teacher = TeacherHead(teacher.hidden_states.cuda(), teacher.head.cuda())
    actual = token_loss(
        hidden,
        head,
        mask,
        loss=kind,
        teacher=teacher,
        targets=targets,
        temperature=temperature,
        chunk_tokens=4,
    )
    expected = plain_loss(kind, hidden, head, teacher, mask, targets, temperature, int(mask.sum()))
    torch.testing.assert_close(actual, expected)
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 4e-3, "rtol": 2e-2}
    for mine, plain in zip(gradients(actual, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(mine, plain, **tolerance)


def test_stacked_muon_moves_like_torch_muon():
    mine = [torch.randn(48, 32, device="cuda", requires_grad=True) for _ in range(3)]
    theirs = [parameter.detach().clone().requires_grad_() for parameter in mine]
    for a, b in zip(mine, theirs, strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    StackedMuon(mine, lr=0.1, weight_decay=0.1).step()
    torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1).step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)  # bf16 iterations


def test_a_resumed_run_goes_on(tmp_path):
    def stop(done, total, **figures):
        if done == 4:
            raise KeyboardInterrupt

    resumed, whole = make_llama(1), make_llama(1)
    config = replace(CONFIG, optimizer="muon")
    with pytest.raises(KeyboardInterrupt):
        train(
            resumed, make_traces(), config, teacher=make_llama(0), seed=0, resume_dir=tmp_path, progress=stop
        )
    resumed = make_llama(1)
    rows = train(resumed, make_traces(), config, teacher=make_llama(0), seed=0, resume_dir=tmp_path)
    expected = train(whole, make_traces(), config, teacher=make_llama(0), seed=0)
    assert rows.num_rows == CONFIG.steps
    assert rows.column("loss_nats").to_pylist() == pytest.approx(
        expected.column("loss_nats").to_pylist(), rel=1e-3
    )
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=0)  # atomic additions of a GPU come in any order


@pytest.mark.parametrize("settings", [{}, {"compile": True}, {"activation_checkpointing": True}], ids=str)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_bf16_student_follows_the_fp32_curve(optimizer, settings):
    curves = []
    for dtype in (torch.float32, torch.bfloat16):
        config = replace(
            CONFIG, steps=20, optimizer=optimizer, **(settings if dtype == torch.bfloat16 else {})
        )
        student, teacher = make_llama(1).to(dtype), make_llama(0).to(dtype)
        curves.append(
            train(student, make_traces(), config, teacher=teacher, seed=0).column("loss_nats").to_pylist()
        )
    assert curves[0][-1] < 0.9 * curves[0][0]
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=0.03, atol=2e-3)


def test_windows_whose_logits_are_all_low_have_finite_gradients():
    """At 64 tokens cuDNN's attention gave NaN: a supernet's training ended at its 22nd step."""
    model = build_supernet(
        tiny_teacher(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32),
        [("fa", "swa")] * 3,
        options={"swa": {"window": 8}},
    ).bfloat16()
    model.set_placement(("swa",) * 3)
    with torch.no_grad():  # a far key that all queries like, and near ones that none does
        for layer in model.banks:
            for name in ("q_proj", "k_proj"):
                getattr(layer.mixers["swa"].attention, name).weight.mul_(60)
    traces = Traces(prompts=((5,) * 9,) * 4, completions=(tuple(range(3, 59)),) * 4)
    rows = train(model, traces, replace(CONFIG, steps=2, loss="cross_entropy"), seed=0)
    assert all(math.isfinite(row["grad_norm"]) for row in rows.to_pylist())
