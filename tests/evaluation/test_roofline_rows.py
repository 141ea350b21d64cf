"""The byte model as rows: sums by hand, levers that read less, devices with their ridge points."""

from dataclasses import replace

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation import device_rates
from apriel_assets.evaluation.config import RooflineConfig
from apriel_assets.evaluation.device_rates import copy_bandwidth, matmul_rate, measured_device
from apriel_assets.evaluation.roofline import (
    DEVICES,
    Device,
    decode_bytes_per_step,
    decode_flops_per_step,
    decode_tokens_per_s_bound,
    num_parameters,
)
from apriel_assets.evaluation.roofline_rows import AS_IT_IS, device_rows, layer_rows, lever_rows
from tests.evaluation.test_roofline import TEACHER_15B, TINY

CPU = torch.device("cpu")


def test_decode_flops_by_hand():
    # 1232 parameters at 2 FLOP; fa sees 5 positions, swa 3, at 4 FLOP per channel (8) each; for 7 sequences.
    assert decode_flops_per_step(TINY, ("fa", "swa"), 5, 7) == 7 * (2 * 1232 + 4 * 8 * 5 + 4 * 8 * 3)
    # Mamba's state is 8 x 4 at 6 FLOP, the delta rule's at 8.
    base = 2 * num_parameters(TINY, ("mamba",))
    assert decode_flops_per_step(TINY, ("mamba",), 5, 1) == base + 6 * 8 * 4
    base = 2 * num_parameters(TINY, ("gdn",))
    assert decode_flops_per_step(TINY, ("gdn",), 500, 1) == base + 8 * 8 * 4


@pytest.mark.parametrize("placement", [("fa", "swa", "gdn"), ("kda", "mamba", "mamba"), ("fa",) * 4])
@pytest.mark.parametrize("batch", [1, 7])
def test_layers_and_head_add_up_to_the_models_step(placement, batch):
    rows = {(row["mixer"], row["context_tokens"]): row for row in layer_rows(TINY, (2, 50))}
    for context in (2, 50):
        own = [rows[mixer, context] for mixer in placement]
        moved = sum(row["weight_bytes"] + batch * row["moved_bytes"] for row in own)
        assert moved + own[0]["head_weight_bytes"] == decode_bytes_per_step(TINY, placement, context, batch)
        flops = batch * (sum(row["flops"] for row in own) + own[0]["head_flops"])
        assert flops == decode_flops_per_step(TINY, placement, context, batch)


def test_bound_is_what_takes_longer_moving_or_computing():
    slow_memory, slow_maths = (
        Device(flops_per_s=1e30, bytes_per_s=1e6),
        Device(flops_per_s=1e6, bytes_per_s=1e30),
    )
    args = (TINY, ("fa", "swa"), 5, 7)
    assert decode_tokens_per_s_bound(*args, slow_memory) == pytest.approx(
        7 * 1e6 / decode_bytes_per_step(*args)
    )
    assert decode_tokens_per_s_bound(*args, slow_maths) == pytest.approx(
        7 * 1e6 / decode_flops_per_step(*args)
    )


def test_levers_of_the_15b_teacher():
    rows = lever_rows(TEACHER_15B, 48, (1024, 10**8), 16)
    at_length = {row["lever"]: row["speedup"] for row in rows if row["context_tokens"] == 10**8}
    # Where nothing but the KV cache counts, a lever is worth what it leaves out.
    assert at_length[AS_IT_IS] == 1
    assert at_length["8-bit KV cache"] == pytest.approx(2, rel=1e-3)
    assert at_length["half of the KV heads"] == pytest.approx(2, rel=1e-3)
    assert at_length["full attention in half, GDN in the rest"] == pytest.approx(2, rel=1e-3)
    assert at_length["full attention in a quarter, GDN in the rest"] == pytest.approx(4, rel=1e-3)
    assert at_length["GDN in all layers"] > 1000
    short = {row["lever"]: row["speedup"] for row in rows if row["context_tokens"] == 1024}
    assert all(short[lever] <= at_length[lever] for lever in short)
    assert all(row["bytes_per_token"] > 0 for row in rows)


def test_a_lever_that_there_is_not_is_left_out():
    odd = replace(TINY, num_kv_heads=1, cache_bytes=1)
    levers = {row["lever"] for row in lever_rows(odd, 4, (8,), 1)}
    assert not {"8-bit KV cache", "half of the KV heads"} & levers


def test_devices_have_their_ridge_points():
    rows = device_rows(TEACHER_15B, "here", Device(flops_per_s=100.0, bytes_per_s=10.0), ("H200", "B200"))
    assert [(row["device"], row["source"]) for row in rows] == [
        ("here", "measured"),
        ("H200", "datasheet"),
        ("B200", "datasheet"),
    ]
    assert [round(row["ridge_flops_per_byte"]) for row in rows] == [10, 206, 281]
    assert {row["kv_read_intensity"] for row in rows} == {4}


def test_this_cpu_is_measured_once_and_the_figures_are_possible():
    found = measured_device(CPU, torch.float32)
    assert measured_device(CPU, torch.float32) is found
    # Between a very slow core and far more than any CPU.
    assert 1e8 < found.bytes_per_s < 2e12
    assert 1e8 < found.flops_per_s < 1e14


def test_a_rate_is_the_work_over_the_least_time(monkeypatch):
    seconds = iter([0, 9, 10, 14, 20, 22, 30, 37, 40, 43])  # five repeats: 9, 4, 2, 7 and 3 s
    monkeypatch.setattr(device_rates.time, "perf_counter", lambda: next(seconds))
    assert copy_bandwidth(CPU) == 2 * 2**26 * 8 / 2  # read and written, eight copies in 2 s
    seconds = iter([0, 9, 10, 14, 20, 22, 30, 37, 40, 43])
    assert matmul_rate(CPU, torch.float32) == 2 * 1024**3 * 2 / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": ("H100", "TPU")}, "no datasheet of device 'TPU'; known: H100, H200, B200"),
        ({"contexts": (8, 4)}, "contexts"),
        ({"contexts": ()}, "contexts"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        RooflineConfig(**changes)


def test_every_named_device_is_faster_than_the_one_before():
    rates = [(device.flops_per_s, device.bytes_per_s) for device in DEVICES.values()]
    assert rates == sorted(rates)
