import time

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation import throughput
from apriel_assets.evaluation.config import ThroughputConfig
from apriel_assets.evaluation.roofline import cache_bytes_per_layer, mixer_parameters, modelled_speedup
from apriel_assets.evaluation.throughput import measure_throughput, model_shape
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


def test_tokens_per_s_is_all_sequences_tokens_over_the_median(hybrid, monkeypatch):
    config = ThroughputConfig(
        contexts=(8,), batch_size=3, decode_tokens=4, repeats=3, max_seconds_per_point=1e9
    )
    # Warm-up 9 and 9 seconds, then prefills of 2, 4, 3 seconds and decodes of 1, 2, 6 seconds.
    times = [9, 9, 2, 1, 4, 2, 3, 6]
    monkeypatch.setattr(throughput, "_timed", lambda work, device: (work(), float(times.pop(0))))
    prefill, decode = measure(hybrid, config)
    assert (prefill["tokens_per_s"], prefill["seconds_low"], prefill["seconds_high"]) == (3 * 8 / 3, 2, 4)
    assert (decode["tokens_per_s"], decode["seconds_low"], decode["seconds_high"]) == (3 * 4 / 2, 1, 6)


def test_decode_starts_from_a_cache_of_the_context(hybrid, monkeypatch):
    seen = []
    decode = throughput._decode

    def spy(state, steps):
        seen.append((state.cache.get_seq_length(), steps))
        decode(state, steps)
        assert state.cache.get_seq_length() == seen[-1][0] + steps

    monkeypatch.setattr(throughput, "_decode", spy)
    measure(hybrid)
    assert seen == [(8, 1), (8, 4), (8, 4), (24, 1), (24, 4), (24, 4)]


def test_byte_model_agrees_with_the_cache_and_weights_of_a_real_model(hybrid):
    shape, decode = model_shape(hybrid), measure(hybrid)[3]
    modelled = {mixer: 3 * cache_bytes_per_layer(shape, mixer, 24) for mixer in hybrid.placement}
    # A window of 6 keeps the 5 tokens before the current one.
    kept = modelled["fa"] + modelled["swa"] * 5 / 6 + modelled["mamba"]
    assert decode["cache_bytes"] == kept
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
    monkeypatch.setattr(throughput, "_decode", lambda state, steps: (rounds.append(steps), time.sleep(0.02)))
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
        {"decode_tokens": 0},
        {"repeats": 0},
    ],
)
def test_wrong_settings_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        ThroughputConfig(**changes)
