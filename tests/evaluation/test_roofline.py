import dataclasses
import subprocess
import sys

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import (
    DEVICES,
    ModelShape,
    cache_bytes_per_layer,
    decode_bytes_per_step,
    decode_tokens_per_s_bound,
    kv_read_intensity,
    mixer_parameters,
    modelled_speedup,
    num_parameters,
    prefill_flops,
)

# The 15B teacher of the published progression.
TEACHER_15B = ModelShape(
    hidden_size=5120,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    intermediate_size=14336,
    vocab_size=131072,
    state_size=16,
)
TINY = ModelShape(
    hidden_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_size=4,
    intermediate_size=16,
    vocab_size=10,
    window=3,
    dt_rank=1,
    conv_size=4,
)


def test_kv_cache_of_the_15b_teacher_by_hand():
    # 2 (K and V) x 8 heads x 128 x 2 bytes = 4096 bytes a token and layer.
    assert cache_bytes_per_layer(TEACHER_15B, "fa", 1) == 4096
    assert cache_bytes_per_layer(TEACHER_15B, "fa", 32768) == 4096 * 32768


def test_decode_bytes_by_hand():
    # fa: q 8x8, k 8x4, v 8x4, o 8x8 = 192. SwiGLU 3x8x16 = 384. Head 10x8 = 80.
    assert num_parameters(TINY, ("fa", "swa")) == 2 * (192 + 384) + 80 == 1232
    # KV per token: 2 x 1 x 4 x 2 bytes = 16. fa reads 5 tokens, swa the window's 3.
    assert decode_bytes_per_step(TINY, ("fa", "swa"), context=5, batch=7) == 1232 * 2 + 7 * (5 * 16 + 3 * 16)
    # Before the window is full, swa holds what there is.
    assert decode_bytes_per_step(TINY, ("swa",), 2, 1) == decode_bytes_per_step(TINY, ("fa",), 2, 1)


def test_mamba_bytes_by_hand():
    # in: z 8, x 4, B 4, C 8, dt 1 columns of 8; out 8x8; dt up 8x1; A 8x4; conv of 8 + 4 + 4 channels x 4.
    parameters = 8 * (8 + 4 + 4 + 8 + 1) + 64 + 8 + 32 + 64
    assert mixer_parameters(TINY, "mamba") == parameters
    # State [2 x 4, 4] in fp32 and 16 channels x the 3 tokens before in 2 bytes, each read and written.
    assert cache_bytes_per_layer(TINY, "mamba", 999) == 8 * 4 * 4 + 16 * 3 * 2 == 224
    weights = (parameters + 384 + 80) * 2
    assert decode_bytes_per_step(TINY, ("mamba",), 999, batch=2) == weights + 2 * 2 * 224


def test_delta_rule_parameters_by_hand():
    # Columns or rows of 8: q, k, v, out 8 each, beta 2; conv of 24 channels x 4.
    shared = 8 * (4 * 8 + 2) + 96
    assert mixer_parameters(TINY, "gdn") == shared + 8 * (8 + 2)  # output gate 8, decay 2
    # Output gate and decay each 8 -> 4 -> 8.
    assert mixer_parameters(TINY, "kda") == shared + 2 * (8 * 4 + 4 * 8)


def test_delta_rule_state_is_a_square_per_head():
    for mixer in ("gdn", "kda"):
        assert cache_bytes_per_layer(TINY, mixer, 999) == 2 * 4 * 4 * 4 + 3 * 8 * 3 * 2


def test_prefill_flops_by_hand():
    # 3 tokens of fa see 1 + 2 + 3 = 6 positions, at 4 FLOP per channel (8) each.
    assert prefill_flops(TINY, ("fa",), 3, 1) == 2 * 576 * 3 + 4 * 8 * 6 + 2 * 80
    # 5 tokens with a window of 3 see 1 + 2 + 3 + 3 + 3.
    assert prefill_flops(TINY, ("swa",), 5, 2) == 2 * (2 * 576 * 5 + 4 * 8 * 12 + 2 * 80)


def test_parameters_agree_with_a_real_model():
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=50,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2) - 50 * 32
    assert num_parameters(ModelShape.from_config(config), ("fa",) * 3) == matrices


def test_kv_read_intensity_and_ridge_points():
    assert kv_read_intensity(TEACHER_15B) == 2 * 32 / (8 * 2) == 4
    assert kv_read_intensity(dataclasses.replace(TEACHER_15B, cache_bytes=1)) == 8
    assert round(DEVICES["H100"].ridge_flops_per_byte) == 295
    assert round(DEVICES["H200"].ridge_flops_per_byte) == 206


def test_bound_is_bandwidth_over_bytes_per_token():
    placement = ("fa",) * 50
    bound = decode_tokens_per_s_bound(TEACHER_15B, placement, 1024, 16, DEVICES["H100"])
    assert bound == pytest.approx(16 * 3.35e12 / decode_bytes_per_step(TEACHER_15B, placement, 1024, 16))


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_speedup_is_one_for_all_fa_and_grows_with_k_and_context(phase):
    def speedup(k, context):
        return modelled_speedup(TEACHER_15B, ("mamba",) * k + ("fa",) * (50 - k), context, 64, phase)

    assert speedup(0, 8192) == 1
    by_k = [speedup(k, 32768) for k in (0, 10, 25, 30, 40, 50)]
    by_context = [speedup(30, context) for context in (128, 2048, 8192, 32768, 131072)]
    assert by_k == sorted(by_k)
    assert by_context == sorted(by_context)


def test_speedup_in_the_limit_of_long_contexts_is_the_share_of_fa_layers():
    placement = ("mamba",) * 30 + ("fa",) * 20
    assert modelled_speedup(TEACHER_15B, placement, 10**9, 64) == pytest.approx(50 / 20, rel=1e-3)


def test_order_of_layers_does_not_matter():
    one, other = ("fa", "mamba", "swa"), ("swa", "fa", "mamba")
    assert modelled_speedup(TINY, one, 100, 4) == modelled_speedup(TINY, other, 100, 4)


@pytest.mark.parametrize(
    ("placement", "context", "batch", "phase", "message"),
    [
        ((), 8, 1, "decode", "0 layers"),
        (("fa",), 0, 1, "decode", "context 0"),
        (("fa",), 8, 0, "decode", "batch 0"),
        (("fa",), 8, 1, "both", "unknown phase"),
        (("rwkv",), 8, 1, "decode", "no byte model for mixer 'rwkv'"),
        (("rwkv",), 8, 1, "prefill", "no byte model for mixer 'rwkv'"),
    ],
)
def test_wrong_input_is_refused(placement, context, batch, phase, message):
    with pytest.raises(UserError, match=message):
        modelled_speedup(TINY, placement, context, batch, phase)


def test_a_config_without_sizes_is_refused():
    with pytest.raises(UserError, match="has no hidden_size"):
        ModelShape.from_config(object())


@pytest.mark.parametrize("module", ["evaluation.roofline", "evaluation.config", "tables.published"])
def test_imports_no_torch(module):
    code = f"import apriel_assets.{module}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
