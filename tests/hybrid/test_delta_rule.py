"""Every form of the gated delta rule against the recurrence symbol for symbol, and that against others' code."""

import pytest
import torch
from torch.nn import functional
from transformers.models.qwen3_next import modeling_qwen3_next

from apriel_assets.hybrid.mixers.delta import chunked
from apriel_assets.hybrid.mixers.delta.chunked import delta_rule_chunked
from apriel_assets.hybrid.mixers.delta.reference import delta_rule_reference
from apriel_assets.hybrid.mixers.delta.rule import choose_rule, delta_rule_fla, delta_rule_step

LENGTHS = [1, 2, 15, 16, 17, 50]
HEAD_SIZE = 6
TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def NEEDS_GPU(test):  # noqa: N802  a mark like the one below
    needed = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(needed(test))


PER_CHANNEL = pytest.mark.parametrize("per_channel", [False, True], ids=["gdn", "kda"])


def operands(seq_len, per_channel, *, rate=1.0, dtype=torch.float32, device="cpu", head_size=HEAD_SIZE):
    """q, k, v, log_decay, beta, initial state; values wider than keys, so that mixing them up fails."""
    generator = torch.Generator().manual_seed(seq_len)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    batch, heads, value_size = 2, 3, head_size + 2 if device == "cpu" else head_size
    values = [
        functional.normalize(normal(batch, seq_len, heads, head_size), dim=-1) * head_size**-0.5,
        functional.normalize(normal(batch, seq_len, heads, head_size), dim=-1),
        normal(batch, seq_len, heads, value_size),
        -rate * functional.softplus(normal(batch, seq_len, heads, head_size if per_channel else 1)),
        normal(batch, seq_len, heads).sigmoid(),
        normal(batch, heads, head_size, value_size),
    ]
    return [value.to(device, dtype).requires_grad_() for value in values]


def outputs_and_gradients(rule, values):
    o, state = rule(*values)
    generator = torch.Generator().manual_seed(7)
    loss = (o.float() * torch.randn(o.shape, generator=generator).to(o.device)).sum()
    loss = loss + (state.float() * torch.randn(state.shape, generator=generator).to(o.device)).sum()
    return [o, state, *torch.autograd.grad(loss, values)]


@PER_CHANNEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_chunked_equals_reference(seq_len, dtype, per_channel):
    values = operands(seq_len, per_channel, dtype=dtype)
    ours, reference = (
        outputs_and_gradients(rule, values) for rule in (delta_rule_chunked, delta_rule_reference)
    )
    for mine, theirs in zip(ours, reference, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, **TOLERANCE[dtype])


@PER_CHANNEL
@pytest.mark.parametrize("rate", [1e-4, 4.0, 40.0, 1e4])
def test_chunked_equals_reference_at_any_decay(rate, per_channel):
    """From next to none to all of it at every token; exp() of a chunk's decay would overflow from 6 on."""
    values = operands(40, per_channel, rate=rate)
    ours, reference = (
        outputs_and_gradients(rule, values) for rule in (delta_rule_chunked, delta_rule_reference)
    )
    for mine, theirs in zip(ours, reference, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@PER_CHANNEL
def test_the_same_key_at_every_token_stays_stable(per_channel):
    q, k, v, log_decay, _, _ = operands(100, per_channel)
    values = [q, k[:, :1].expand_as(k), v, torch.zeros_like(log_decay), torch.ones(2, 100, 3)]
    o, state = delta_rule_chunked(*values)
    torch.testing.assert_close(o, delta_rule_reference(*values)[0], **TOLERANCE[torch.float32])
    # A full write replaces what was there: the state answers the key with the last value alone.
    torch.testing.assert_close((state.mT @ k[:, 0, ..., None])[..., 0], v[:, -1], **TOLERANCE[torch.float32])


@PER_CHANNEL
@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("max_span", [80.0, -1.0], ids=["factored", "pairwise"])
def test_chunked_gradients_equal_finite_differences(chunk, max_span, per_channel, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", chunk)
    monkeypatch.setattr(chunked, "_MAX_SPAN", max_span)
    *values, initial = operands(5, per_channel, dtype=torch.float64, head_size=3)
    values = [value[:1, :, :1] for value in values] + [initial[:1, :1]]
    assert torch.autograd.gradcheck(delta_rule_chunked, [value.detach().requires_grad_() for value in values])


@PER_CHANNEL
@pytest.mark.parametrize("split", [1, 15, 16, 17, 40])
def test_going_on_from_a_state_equals_one_pass(split, per_channel):
    *values, initial = operands(50, per_channel)
    whole, final = delta_rule_chunked(*values, initial)
    head, state = delta_rule_chunked(*(value[:, :split] for value in values), initial)
    tail, last = delta_rule_chunked(*(value[:, split:] for value in values), state)
    torch.testing.assert_close(torch.cat([head, tail], dim=1), whole, **TOLERANCE[torch.float32])
    torch.testing.assert_close(last, final, **TOLERANCE[torch.float32])


@PER_CHANNEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_state", [True, False])
def test_step_equals_reference(with_state, dtype, per_channel):
    values = operands(1, per_channel, dtype=dtype)[: 6 if with_state else 5]
    for mine, theirs in zip(delta_rule_step(*values), delta_rule_reference(*values), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, **TOLERANCE[dtype])


@PER_CHANNEL
def test_no_initial_state_means_zeros_and_no_write_leaves_the_state_alone(per_channel):
    q, k, v, log_decay, beta, initial = operands(20, per_channel)
    torch.testing.assert_close(
        delta_rule_chunked(q, k, v, log_decay, beta)[0],
        delta_rule_chunked(q, k, v, log_decay, beta, torch.zeros_like(initial))[0],
    )
    nothing = torch.zeros_like(log_decay), torch.zeros_like(beta)
    assert torch.equal(delta_rule_chunked(q, k, v, *nothing, initial)[1], initial)


@PER_CHANNEL
def test_state_stays_fp32_for_bf16_inputs(per_channel):
    *values, _ = operands(1, per_channel, dtype=torch.bfloat16)
    for rule in (delta_rule_reference, delta_rule_chunked, delta_rule_step):
        o, state = rule(*values)
        assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_two_tokens_by_hand():
    """One head of key size 1: S1 = b v1, S2 = a (1 - b) S1 + b v2 with k = 1."""
    one, half = torch.ones(1, 2, 1, 1), torch.full((1, 2, 1), 0.5)
    v = torch.tensor([8.0, 4.0]).view(1, 2, 1, 1)
    o, state = delta_rule_reference(one, one, v, one * torch.tensor(0.25).log(), half)
    assert o.flatten().tolist() == pytest.approx([4.0, 0.25 * 0.5 * 4.0 + 2.0])
    assert state.item() == pytest.approx(2.5)


@pytest.mark.parametrize("theirs", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_gdn_equals_transformers_qwen3_next(seq_len, theirs):
    function = getattr(modeling_qwen3_next, theirs)

    def their_rule(q, k, v, log_decay, beta, initial):
        scaled = q * HEAD_SIZE**0.5  # they scale queries themselves
        return function(scaled, k, v, log_decay[..., 0], beta, initial_state=initial, output_final_state=True)

    compare(their_rule, operands(seq_len, per_channel=False))


@pytest.mark.parametrize("theirs", ["chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_kda_equals_transformers_kimi_linear(seq_len, theirs):
    module = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    function = getattr(module, theirs)

    def their_rule(q, k, v, log_decay, beta, initial):
        scaled = q * HEAD_SIZE**0.5
        return function(scaled, k, v, log_decay, beta, initial_state=initial, output_final_state=True)

    compare(their_rule, operands(seq_len, per_channel=True))


def compare(their_rule, values):
    for ours in (delta_rule_reference, delta_rule_chunked):
        mine, theirs = (outputs_and_gradients(rule, values) for rule in (ours, their_rule))
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, **TOLERANCE[torch.float32])


def test_one_token_takes_the_step_and_a_cpu_no_gpu_kernel():
    for dtype in (torch.float32, torch.bfloat16):
        assert choose_rule(torch.device("cpu"), dtype, 1) is delta_rule_step
        assert choose_rule(torch.device("cpu"), dtype, 2) is delta_rule_chunked


def gpu_operands(seq_len, per_channel):
    """With heads of 64 and a decay as mixers start with: fla's chunks are made for these."""
    return operands(seq_len, per_channel, rate=0.1, dtype=torch.bfloat16, device="cuda", head_size=64)


def assert_close_in_norm(mine, theirs, most):
    """bf16 matrix products differ by a few rounding steps anywhere; as a whole they must not."""
    error = (mine.float() - theirs.float()).norm() / theirs.float().norm()
    assert error < most, f"relative error {error:.1e}"


@NEEDS_GPU
@PER_CHANNEL
@pytest.mark.parametrize("seq_len", [2, 63, 64, 65, 200])
def test_fla_kernels_equal_reference(seq_len, per_channel):
    pytest.importorskip("fla")
    values = gpu_operands(seq_len, per_channel)
    ours = outputs_and_gradients(delta_rule_fla, values)
    reference = outputs_and_gradients(
        delta_rule_reference, [v.detach().float().requires_grad_() for v in values]
    )
    for mine, theirs in zip(ours, reference, strict=True):
        assert_close_in_norm(mine, theirs, 2e-2)


@NEEDS_GPU
@PER_CHANNEL
@torch.no_grad()
def test_fla_decode_step_equals_reference(per_channel):
    pytest.importorskip("fla")
    values = gpu_operands(1, per_channel)
    for mine, theirs in zip(delta_rule_fla(*values), delta_rule_reference(*values), strict=True):
        assert_close_in_norm(mine, theirs, 1e-2)


@NEEDS_GPU
def test_a_gpu_takes_fla_in_16_bits_unless_told_otherwise():
    pytest.importorskip("fla")
    device = torch.device("cuda")
    assert choose_rule(device, torch.bfloat16, 100) is delta_rule_fla
    assert choose_rule(device, torch.bfloat16, 100, "torch") is delta_rule_chunked
    assert choose_rule(device, torch.float32, 100) is delta_rule_chunked
