import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation import peak_memory as peak_memory_module
from apriel_assets.evaluation import throughput
from apriel_assets.evaluation.config import ThroughputConfig
from apriel_assets.evaluation.peak_memory import peak_memory
from apriel_assets.evaluation.roofline import (
    Device,
    cache_bytes_per_layer,
    decode_bytes_per_step,
    mixer_parameters,
    modelled_speedup,
    prefill_flops,
)
from apriel_assets.evaluation.throughput import measure_throughput, model_shape
from apriel_assets.evaluation.timed_decoding import timed_steps
from apriel_assets.hybrid.config import MambaConfig, MixerOptions, SlidingWindowConfig
from apriel_assets.hybrid.model import HybridForCausalLM

CONFIG = ThroughputConfig(contexts=(8, 24), batch_size=3, decode_tokens=4, repeats=2)


@pytest.fixture(scope="module")
def hybrid(tiny_llama):
    """Full attention, a window of 6 and Mamba, one layer each."""
    model = HybridForCausalLM.from_teacher(tiny_llama(num_hidden_layers=3))
    options = MixerOptions(swa=SlidingWindowConfig(window=6), mamba=MambaConfig(state_size=4, dt_rank=3))
    model.convert([1], "swa", options=options)
    model.convert([2], "mamba", options=options)
    return model.eval()


def measure(model, config=CONFIG, **options):
    return measure_throughput(model, config, model_name="h2", device_name="this one", **options).to_pylist()


def test_one_row_a_phase_and_context_with_the_modelled_speedup(hybrid):
    rows = measure(hybrid)
    assert [(r["phase"], r["context_tokens"]) for r in rows] == [
        ("prefill", 8),
        ("decode", 8),
        ("prefill", 24),
        ("decode", 24),
    ]
    for row in rows:
        assert (row["model"], row["batch_size"], row["device"]) == ("h2", 3, "this one")
        assert 0 < row["seconds_low"] <= row["seconds_high"]
        expected = modelled_speedup(
            model_shape(hybrid), hybrid.placement, row["context_tokens"], 3, row["phase"]
        )
        assert row["modelled_speedup"] == expected


def test_further_contexts_are_decoded_only_from_a_lengthened_cache(hybrid):
    config = ThroughputConfig(
        contexts=(8,), decode_contexts=(40, 80), batch_size=3, decode_tokens=4, repeats=2
    )
    rows = measure(hybrid, config)
    assert [(r["phase"], r["context_tokens"]) for r in rows] == [
        ("prefill", 8),
        ("decode", 8),
        ("decode", 40),
        ("decode", 80),
    ]
    bytes_at = {row["context_tokens"]: row["cache_bytes"] for row in rows}
    shape = model_shape(hybrid)
    # Only the full-attention layer's cache grows, by the keys and values of 40 tokens of 3 sequences.
    assert bytes_at[80] - bytes_at[40] == 3 * 40 * cache_bytes_per_layer(shape, "fa", 1)


@pytest.mark.parametrize("longer", [(8,), (40, 30), (4,)])
def test_further_contexts_must_go_on_from_the_others(longer):
    with pytest.raises(UserError, match="decode_contexts"):
        ThroughputConfig(contexts=(8,), decode_contexts=longer)


class Clock:
    """A clock that goes on by the next of these seconds whenever it is looked at a second time."""

    def __init__(self, seconds):
        self.seconds, self.now, self.running = list(seconds), 0.0, False

    def perf_counter(self):
        self.now += self.seconds.pop(0) if self.running else 0.0
        self.running = not self.running
        return self.now


def test_tokens_per_s_and_latencies_by_hand(hybrid, monkeypatch):
    config = ThroughputConfig(contexts=(8,), batch_size=3, decode_tokens=2, repeats=3)
    # Decodes of 1 step, unmeasured, then of 2 steps each.
    steps = [[9.0], [0.5, 0.5], [1.0, 1.0], [1.0, 5.0]]
    monkeypatch.setattr(throughput, "timed_steps", lambda step, num_steps, device: steps.pop(0))
    monkeypatch.setattr(throughput, "_repeats", lambda config: iter(range(4)))
    monkeypatch.setattr(throughput, "time", Clock([9, 2, 4, 3]))
    prefill, decode = measure(hybrid, config)
    assert (prefill["tokens_per_s"], prefill["seconds_low"], prefill["seconds_high"]) == (3 * 8 / 3, 2, 4)
    assert (prefill["latency_p50_seconds"], prefill["num_latencies"]) == (3, 3)
    assert (decode["tokens_per_s"], decode["seconds_low"], decode["seconds_high"]) == (3 * 2 / 2, 1, 6)
    # Of 0.5 0.5 1 1 1 5: the fifth and the sixth lie at 80 and 100 of 100, so 95 is 1 + 0.75 * 4.
    assert (decode["latency_p50_seconds"], decode["latency_p95_seconds"]) == (1, pytest.approx(4))
    assert decode["num_latencies"] == 6


def test_the_teacher_decodes_in_turn_and_the_median_of_the_ratios_counts(hybrid, tiny_llama, monkeypatch):
    teacher = HybridForCausalLM.from_teacher(tiny_llama(num_hidden_layers=3)).eval()
    config = ThroughputConfig(contexts=(8,), batch_size=3, decode_tokens=3, repeats=3)
    # The machine is ten times slower in the second round, for both. Teacher's ratios: 2, 3, 4.
    own, others = (
        [[9.0], [1.0, 1.0, 700.0], [10.0] * 3, [1.0] * 3],
        [[9.0], [2.0, 2.0], [30.0] * 2, [4.0] * 2],
    )
    order = []

    def timed(step, num_steps, device):
        whose = "teacher" if step.__self__._runner.model is teacher else "own"
        order.append((whose, num_steps))
        return (others if whose == "teacher" else own).pop(0)

    monkeypatch.setattr(throughput, "timed_steps", timed)
    prefill, decode = measure(hybrid, config, teacher=teacher)
    assert decode["speedup"] == 3.0
    assert prefill["speedup"] is None
    assert order == [("own", 1), ("teacher", 1), *[("own", 3), ("teacher", 2)] * 3]


def test_a_model_timed_alone_has_no_speedup(hybrid, tiny_llama):
    teacher = HybridForCausalLM.from_teacher(tiny_llama(num_hidden_layers=3)).eval()
    for options in ({}, {"teacher": hybrid}):
        assert {row["speedup"] for row in measure(hybrid, **options)} == {None}
    alone = replace(CONFIG, in_turn=False)
    assert {row["speedup"] for row in measure(hybrid, alone, teacher=teacher)} == {None}


def test_the_same_model_in_turn_with_its_copy_is_about_as_fast(hybrid, tiny_llama):
    teacher = HybridForCausalLM.from_teacher(tiny_llama(num_hidden_layers=3)).eval()
    copy = HybridForCausalLM.from_teacher(tiny_llama(num_hidden_layers=3)).eval()
    found = [row["speedup"] for row in measure(copy, teacher=teacher) if row["phase"] == "decode"]
    assert all(0.02 < speedup < 50 for speedup in found)  # a number of the right kind, on any machine


@pytest.mark.parametrize("decoder", ["runner", "model"])
def test_every_repeat_decodes_from_the_context(hybrid, decoder, monkeypatch):
    seen = []

    def spy(step, num_steps, device):
        state = step.__self__
        length = (
            int(state._runner.lengths.max()) if decoder == "runner" else state._state.cache.get_seq_length()
        )
        seen.append((length, num_steps))
        return timed_steps(step, num_steps, device)

    monkeypatch.setattr(throughput, "timed_steps", spy)
    measure(hybrid, replace(CONFIG, decoder=decoder))
    # A recurrent state cannot go back, so the model's own cache grows by the steps that were timed.
    later = [(8, 1), (8, 4), (8, 4), (24, 1), (24, 4), (24, 4)]
    grown = [(8, 1), (9, 4), (13, 4), (24, 1), (25, 4), (29, 4)]
    assert seen == (later if decoder == "runner" else grown)


def test_every_batch_size_is_timed_at_every_context(hybrid):
    rows = measure(hybrid, replace(CONFIG, batch_size=(1, 3)))
    points = [(row["batch_size"], row["context_tokens"]) for row in rows if row["phase"] == "decode"]
    assert points == [(1, 8), (1, 24), (3, 8), (3, 24)]
    held = {(row["batch_size"], row["context_tokens"]): row["cache_bytes"] for row in rows}
    assert held[3, 24] == 3 * held[1, 24]
    for row in rows:
        assert row["cache_bytes_per_token"] == row["cache_bytes"] / row["batch_size"] / row["context_tokens"]


def test_what_decodes_is_named_and_a_model_that_the_runner_does_not_know_decodes_itself(hybrid, tiny_llama):
    assert {row["decoder"] for row in measure(hybrid)} == {None, "static caches"}
    unknown = HybridForCausalLM.from_teacher(tiny_llama()).eval()
    unknown.backbone.model.norm = torch.nn.LayerNorm(32)
    prefill, decode, *_ = measure(unknown)
    assert decode["decoder"] == "the model's forward pass"
    assert decode["kernels"] == prefill["kernels"]
    assert prefill["kernels"].startswith("fa: torch")
    with pytest.raises(UserError, match="RMSNorm"):
        measure(unknown, replace(CONFIG, decoder="runner"))


def test_bound_is_the_devices_rates_over_the_byte_model(hybrid, monkeypatch):
    device = Device(flops_per_s=1e9, bytes_per_s=1e6)
    monkeypatch.setattr(throughput, "measured_device", lambda *_: device)
    prefill, decode = measure(hybrid)[2:]
    shape = model_shape(hybrid)
    moved = decode_bytes_per_step(shape, hybrid.placement, 24, 3)
    assert decode["bound_tokens_per_s"] == pytest.approx(3 * 1e6 / moved)
    flops = prefill_flops(shape, hybrid.placement, 24, 3)
    assert prefill["bound_tokens_per_s"] == pytest.approx(3 * 24 * 1e9 / flops)
    assert (decode["device_bytes_per_s"], decode["device_flops_per_s"]) == (1e6, 1e9)


@torch.enable_grad()
def test_a_timed_model_can_still_be_trained_and_saved(tiny_llama, tmp_path):
    model = HybridForCausalLM.from_teacher(tiny_llama()).eval()
    ids = torch.arange(10)[None]
    before = model(ids).logits.detach()
    measure(model)
    model(ids).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(HybridForCausalLM.from_pretrained(tmp_path)(ids).logits, before)


def test_peak_memory_sees_what_a_block_took(monkeypatch):
    with peak_memory(torch.device("cpu")) as before:
        pass
    with peak_memory(torch.device("cpu")) as found:
        held = torch.ones(2**24)  # 64 MiB
        del held
    if found.num_bytes is None:
        pytest.skip("the system does not say")
    assert before.num_bytes is not None
    assert found.num_bytes > before.num_bytes + 2**25
    monkeypatch.setattr(peak_memory_module, "_PROCESS", Path("/nowhere"))
    with peak_memory(torch.device("cpu")) as unknown:
        pass
    assert unknown.num_bytes is None


def test_byte_model_agrees_with_the_cache_and_weights_of_a_real_model(hybrid):
    shape, decode = model_shape(hybrid), measure(hybrid)[3]
    modelled = {mixer: 3 * cache_bytes_per_layer(shape, mixer, 24) for mixer in hybrid.placement}
    assert decode["cache_bytes"] == sum(modelled.values())
    # In the model's own cache a window of 6 keeps the 5 tokens before the current one.
    own = measure(hybrid, replace(CONFIG, decoder="model"))[3]
    assert own["cache_bytes"] == modelled["fa"] + modelled["swa"] * 5 / 6 + modelled["mamba"]
    for bank, mixer in zip(hybrid.banks, hybrid.placement, strict=True):
        found = sum(p.numel() for name, p in bank.named_parameters() if p.ndim > 1)
        assert found == mixer_parameters(shape, mixer)


@pytest.mark.parametrize("mixer", ["gdn", "kda"])
def test_byte_model_agrees_with_a_delta_rule_mixer(tiny_llama, mixer):
    model = HybridForCausalLM.from_teacher(tiny_llama(num_hidden_layers=1))
    model.convert([0], mixer, options={"kda": {"gate_rank": 6}})
    shape = model_shape(model)
    assert sum(p.numel() for p in model.banks[0].parameters() if p.ndim > 1) == mixer_parameters(shape, mixer)
    decode = measure(model.eval())[3]
    assert decode["cache_bytes"] == 3 * cache_bytes_per_layer(shape, mixer, 24)


def test_shape_takes_element_sizes_and_options_from_the_model(hybrid):
    shape = model_shape(hybrid)
    assert (shape.window, shape.state_size, shape.dt_rank, shape.cache_bytes) == (6, 4, 3, 4)


def test_no_further_repeat_after_the_time_limit(hybrid, monkeypatch):
    rounds = []

    def slow(step, num_steps, device):
        rounds.append(num_steps)
        time.sleep(0.02)
        return [0.02]

    monkeypatch.setattr(throughput, "timed_steps", slow)
    config = ThroughputConfig(contexts=(8,), batch_size=1, repeats=50, max_seconds_per_point=0.05)
    measure(hybrid, config)
    assert 2 <= len(rounds) < 20


def test_contexts_longer_than_the_models_positions_are_timed(tiny_llama):
    model = HybridForCausalLM.from_teacher(tiny_llama(max_position_embeddings=16))
    config = ThroughputConfig(contexts=(40,), batch_size=1, decode_tokens=1, repeats=1)
    assert len(measure(model, config)) == 2


def test_seed_and_training_mode(hybrid):
    first, again = (throughput._random_tokens(hybrid, 2, 9, seed=4) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, throughput._random_tokens(hybrid, 2, 9, seed=5))
    hybrid.train()
    measure(hybrid, ThroughputConfig(contexts=(4,), batch_size=1, decode_tokens=1, repeats=1))
    assert hybrid.training
    hybrid.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"contexts": ()},
        {"contexts": (8, 8)},
        {"contexts": (0, 8)},
        {"batch_size": 0},
        {"batch_size": ()},
        {"batch_size": (4, 2)},
        {"decoder": "graph"},
        {"decode_tokens": 0},
        {"repeats": 0},
    ],
)
def test_wrong_settings_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        ThroughputConfig(**changes)
