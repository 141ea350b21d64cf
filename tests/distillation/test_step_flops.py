"""FLOP of a step against what torch counts while it runs, and what becomes of them."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from apriel_assets.distillation import step_flops
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.step_flops import StepFlops, peak_flops_per_s
from apriel_assets.distillation.trainer import train
from apriel_assets.evaluation.roofline import DEVICES
from tests.distillation.tiny_llama import make_llama, make_traces

CONFIG = DistillConfig(steps=1, batch_size=2, optimizer="adamw")


def test_counts_what_torch_counts():
    student, teacher = (make_llama(seed, hidden_size=64) for seed in (1, 0))
    prompt, completion, batch = 12, 20, 3
    ids = torch.randint(3, 29, (batch, prompt + completion))
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            teacher.lm_head(teacher.model(ids).last_hidden_state[:, prompt:])
        student.lm_head(student.model(ids).last_hidden_state[:, prompt:]).sum().backward()
    mine = StepFlops(student, CONFIG, teacher=True).rates([(prompt, completion)] * batch, 1.0, 1)[
        "flops_per_s"
    ]
    # torch leaves out attention on a CPU: scores and values, the causal half, of two layers of 4 heads of 8; the
    # student's forward and twice as much backward, the teacher's forward.
    length = prompt + completion
    attention = 4 * 32 * length * (length + 1) // 2 * 2 * batch * (3 + 1)
    assert mine == counter.get_total_flops() + attention
    alone = StepFlops(student, CONFIG, teacher=False).rates([(prompt, completion)] * batch, 1.0, 1)[
        "flops_per_s"
    ]
    assert alone == pytest.approx(mine * 3 / 4)
    frozen = StepFlops(student, replace(CONFIG, trains="mixers"), teacher=False)
    assert frozen.rates([(prompt, completion)] * batch, 1.0, 1)["flops_per_s"] == pytest.approx(alone * 2 / 3)


def test_a_share_of_all_devices_peaks(monkeypatch):
    monkeypatch.setattr(step_flops, "peak_flops_per_s", lambda device: 1e9)
    flops = StepFlops(make_llama(), CONFIG, teacher=True)
    one, two = (flops.rates([(5, 5)], 0.5, devices) for devices in (1, 2))
    assert one["mfu"] == pytest.approx(one["flops_per_s"] / 1e9)
    assert two["mfu"] == pytest.approx(one["mfu"] / 2)


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops_per_s(torch.device("cuda")) == DEVICES["H100"].flops_per_s
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert peak_flops_per_s(torch.device("cuda")) is None
    assert peak_flops_per_s(torch.device("cpu")) is None


def test_every_row_has_them():
    row = train(make_llama(1), make_traces(), CONFIG, teacher=make_llama(0), seed=0).to_pylist()[0]
    assert row["flops_per_s"] > 0
    assert row["mfu"] is None
