"""Speed on a GPU: the runner's graph decodes, latencies come from the device's clock, rates are a GPU's."""

from dataclasses import replace

import pytest
import torch

from apriel_assets.evaluation.config import ThroughputConfig
from apriel_assets.evaluation.device_rates import measured_device
from apriel_assets.evaluation.peak_memory import peak_memory
from apriel_assets.evaluation.throughput import measure_throughput
from tests.evaluation.test_decode_runner import make_hybrid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIG = ThroughputConfig(
    contexts=(256,), decode_contexts=(4096,), batch_size=(1, 8), decode_tokens=8, repeats=3
)


def measure(decoder):
    model = make_hybrid(("swa", "fa", "gdn"), **SIZES).to("cuda", torch.bfloat16)
    config = replace(CONFIG, decoder=decoder)
    return measure_throughput(model, config, model_name="m", device_name="gpu").to_pylist()


def test_rows_name_the_graph_and_it_is_faster_than_the_models_own_forward():
    by_runner = [row for row in measure("auto") if row["phase"] == "decode"]
    by_model = [row for row in measure("model") if row["phase"] == "decode"]
    assert {row["decoder"] for row in by_runner} == {"static caches, one CUDA graph a step"}
    assert {row["kernels"] for row in by_runner} == {"Triton"}
    for graph, own in zip(by_runner, by_model, strict=True):
        assert graph["latency_p50_seconds"] < own["latency_p50_seconds"]
        # A full-attention layer's cache is the same in both; the runner's window holds a token more.
        assert graph["cache_bytes"] >= own["cache_bytes"]


def test_figures_fit_together():
    for row in measure("auto"):
        assert 0 < row["latency_p50_seconds"] <= row["latency_p95_seconds"] < 1
        assert row["peak_memory_bytes"] >= row["cache_bytes"]
        if row["phase"] == "decode":
            # A mean holds the time slices of whatever else is on the GPU, as the slowest steps do; a median does not.
            seconds = row["batch_size"] / row["tokens_per_s"]
            assert 0.5 * row["latency_p50_seconds"] < seconds < 1.05 * row["latency_p95_seconds"]


def test_rates_are_a_gpus():
    device = measured_device(torch.device("cuda", 0), torch.bfloat16)
    assert 0.5e12 < device.bytes_per_s < 1e13
    assert 50 < device.ridge_flops_per_byte < 1000


def test_peak_is_that_of_the_block():
    device = torch.device("cuda", 0)
    with peak_memory(device) as found:
        held = torch.ones(2**24, device=device)
        del held
    with peak_memory(device) as after:
        pass
    assert found.num_bytes is not None
    assert after.num_bytes is not None
    assert found.num_bytes >= after.num_bytes + 2**26
