"""Every scan against the recurrence symbol for symbol, and that against one that is not ours."""

from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional
from transformers import MambaConfig as TransformersMambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer as TransformersMamba

from apriel_assets.hybrid.mixers.mamba import chunked
from apriel_assets.hybrid.mixers.mamba.chunked import selective_scan_chunked
from apriel_assets.hybrid.mixers.mamba.reference import selective_scan_reference
from apriel_assets.hybrid.mixers.mamba.scan import choose_scan, selective_scan_mamba_ssm, selective_scan_step

LENGTHS = [1, 2, 63, 64, 65, 130]
TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def operands(seq_len, *, batch=2, channels=12, heads=3, state_size=4, dtype=torch.float32, device="cpu"):
    """x, dt, A, B, C, initial state."""
    generator = torch.Generator().manual_seed(seq_len)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    values = [
        normal(batch, seq_len, channels),
        functional.softplus(normal(batch, seq_len, channels) - 1),
        -normal(channels, state_size).exp(),
        normal(batch, seq_len, heads, state_size),
        normal(batch, seq_len, heads, state_size),
        normal(batch, channels, state_size),
    ]
    return [value.to(device, dtype).requires_grad_() for value in values]


def outputs_and_gradients(scan, values):
    y, state = scan(*values)
    generator = torch.Generator().manual_seed(7)
    loss = (y.float() * torch.randn(y.shape, generator=generator).to(y.device)).sum()
    loss = loss + (state.float() * torch.randn(state.shape, generator=generator).to(y.device)).sum()
    return [y, state, *torch.autograd.grad(loss, values)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_chunked_equals_reference(seq_len, dtype):
    values = operands(seq_len, dtype=dtype)
    ours, reference = (
        outputs_and_gradients(scan, values) for scan in (selective_scan_chunked, selective_scan_reference)
    )
    for mine, theirs in zip(ours, reference, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, **TOLERANCE[dtype])


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunked_gradients_equal_finite_differences(chunk, monkeypatch):
    monkeypatch.setattr(chunked, "_MAX_CHUNK", chunk)
    values = operands(5, batch=1, channels=4, heads=2, state_size=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(selective_scan_chunked, values)


def test_no_initial_state_means_zeros():
    *values, state = operands(9)
    torch.testing.assert_close(
        selective_scan_chunked(*values)[0], selective_scan_chunked(*values, torch.zeros_like(state))[0]
    )


@pytest.mark.parametrize("split", [1, 31, 32, 33, 64])
def test_going_on_from_a_state_equals_one_pass(split):
    x, dt, A, B, C, initial = operands(70)
    whole, final = selective_scan_chunked(x, dt, A, B, C, initial)
    head, state = selective_scan_chunked(x[:, :split], dt[:, :split], A, B[:, :split], C[:, :split], initial)
    tail, last = selective_scan_chunked(x[:, split:], dt[:, split:], A, B[:, split:], C[:, split:], state)
    torch.testing.assert_close(torch.cat([head, tail], dim=1), whole, **TOLERANCE[torch.float32])
    torch.testing.assert_close(last, final, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_state", [True, False])
def test_step_equals_reference(with_state, dtype):
    values = operands(1, dtype=dtype)[: 6 if with_state else 5]
    for mine, theirs in zip(selective_scan_step(*values), selective_scan_reference(*values), strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE[dtype])


def test_steps_of_size_zero_leave_the_state_alone():
    x, dt, A, B, C, initial = operands(6)
    _, state = selective_scan_chunked(x, torch.zeros_like(dt), A, B, C, initial)
    assert torch.equal(state, initial)


def test_state_stays_fp32_for_bf16_inputs():
    values = operands(3, dtype=torch.bfloat16)
    assert all(
        scan(*values)[1].dtype == torch.float32 for scan in (selective_scan_chunked, selective_scan_reference)
    )


@pytest.mark.skipif(
    find_spec("mamba_ssm") is not None, reason="transformers then takes its GPU kernels, on CPU too"
)
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_reference_equals_transformers_mamba(seq_len):
    """Their mixer, its convolution passing the token through, is our scan between its projections."""
    torch.manual_seed(seq_len)
    config = TransformersMambaConfig(
        hidden_size=12, expand=1, state_size=4, time_step_rank=3, use_mambapy=False
    )
    theirs = TransformersMamba(config, layer_idx=0).eval()
    with torch.no_grad():
        theirs.conv1d.weight.zero_()[..., -1] = 1.0
        theirs.conv1d.bias.zero_()
        theirs.D.normal_()
        theirs.out_proj.weight.copy_(torch.eye(12))
        hidden_states = torch.randn(2, seq_len, 12)
        x, z = theirs.in_proj(hidden_states).chunk(2, dim=-1)
        x = functional.silu(x)
        dt, B, C = theirs.x_proj(x).split([3, 4, 4], dim=-1)
        dt = functional.softplus(theirs.dt_proj(dt))
        y, _ = selective_scan_reference(x, dt, -theirs.A_log.exp(), B[:, :, None], C[:, :, None])
        ours = (y + theirs.D * x) * functional.silu(z)
        torch.testing.assert_close(ours, theirs(hidden_states), **TOLERANCE[torch.float32])


def test_one_token_takes_the_step():
    assert choose_scan(torch.device("cpu"), 1) is selective_scan_step
    assert choose_scan(torch.device("cpu"), 2) is selective_scan_chunked


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seq_len", [*LENGTHS, 2049])  # the kernel's own chunks are of 2048
def test_mamba_ssm_equals_reference(seq_len, dtype):
    pytest.importorskip("mamba_ssm")
    values = operands(seq_len, channels=48, heads=3, state_size=16, dtype=dtype, device="cuda")[:5]
    wide = [value.detach().float().requires_grad_() for value in values]
    (y, state), (kernel_y, kernel_state) = selective_scan_reference(*wide), selective_scan_mamba_ssm(*values)
    assert (kernel_y.dtype, kernel_state.dtype) == (dtype, torch.float32)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(kernel_y.float(), y, **tolerance)
    torch.testing.assert_close(kernel_state, state, rtol=1e-3, atol=1e-3)
    # Of y only: the kernel gives no gradient for its final state.
    weights = torch.randn_like(y)
    expected = torch.autograd.grad((y * weights).sum(), wide)
    found = torch.autograd.grad((kernel_y.float() * weights).sum(), values)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.float() - theirs).norm() <= (1e-3 if dtype == torch.float32 else 1e-2) * theirs.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("split", [1, 31, 100])
@torch.no_grad()
def test_mamba_ssm_goes_on_from_a_state(split):
    pytest.importorskip("mamba_ssm")
    values = operands(130, channels=48, heads=3, state_size=16, device="cuda")
    x, dt, A, B, C, initial = values
    whole, final = selective_scan_reference(*values)
    head, state = selective_scan_mamba_ssm(
        x[:, :split], dt[:, :split], A, B[:, :split], C[:, :split], initial
    )
    tail, last = selective_scan_mamba_ssm(x[:, split:], dt[:, split:], A, B[:, split:], C[:, split:], state)
    torch.testing.assert_close(torch.cat([head, tail], dim=1), whole, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(last, final, rtol=1e-3, atol=1e-3)
