"""Mamba from attention, against plain loops over the attention's own projections."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, Phi3Config

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import FullAttentionConfig, MambaConfig, MixerOptions, SlidingWindowConfig
from apriel_assets.hybrid.conversion import convert_attention
from apriel_assets.hybrid.forward_context import ForwardContext
from apriel_assets.hybrid.mixers.recurrent_inputs import convolve
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

HIDDEN = 32
STEP = 0.25
CONTEXT = ForwardContext(placement=("mamba",))


def attention_of(kind, **sizes):
    return tiny_teacher(kind, **sizes).model.layers[1].self_attn


def mapped(attention, **options):
    return convert_attention(attention, MambaConfig(**options), init="mapped", seed=0)


def run(mixer, hidden_states):
    return mixer(CONTEXT, 0, hidden_states)[0]


def linear_attention(attention, hidden_states, state_size):
    """What the mapped mixer computes when nothing decays and every step is `STEP`, by plain loops."""
    head, groups = attention.head_dim, attention.num_key_value_groups
    q, k, v = (getattr(attention, f"{name}_proj")(hidden_states) for name in "qkv")
    if hasattr(attention, "q_norm"):
        per_head = attention.q_norm.weight.numel() == head
        if per_head:
            q, k = (t.unflatten(-1, (-1, head)) for t in (q, k))
        q, k = attention.q_norm(q), attention.k_norm(k)
        if per_head:
            q, k = q.flatten(2), k.flatten(2)
    q, k, v = (functional.silu(t) for t in (q, k, v))
    batch, seq_len, _ = hidden_states.shape
    y = torch.zeros(batch, seq_len, q.shape[-1])
    for start in range(0, q.shape[-1], state_size):
        query_head, offset = divmod(start, head)
        kv_start = (query_head // groups) * head + offset
        C, B, x = (
            t[:, :, first : first + state_size] for t, first in ((q, start), (k, kv_start), (v, kv_start))
        )
        for t in range(seq_len):
            for s in range(t + 1):
                y[:, t, start : start + state_size] += (
                    STEP * (C[:, t] * B[:, s]).sum(-1, keepdim=True) * x[:, s]
                )
            y[:, t, start : start + state_size] += x[:, t]  # D = 1
    return attention.o_proj(y)


@pytest.mark.parametrize("state_size", [None, 4, 2])
@pytest.mark.parametrize("kind", ["llama", "llama_biased", "qwen2", "qwen3", "olmo2"])
@torch.no_grad()
def test_mapped_mamba_is_the_attentions_linear_attention(kind, state_size):
    """Groups as attention does (8 query heads on 2 key-value heads), biases, QK-norms, sub-heads in order."""
    attention = attention_of(kind, num_attention_heads=8, num_key_value_heads=2, head_dim=8)
    mixer = mapped(attention, state_size=state_size)
    mixer.A_log.fill_(-torch.inf)  # exp(dt * -0) = 1
    mixer.dt_proj.weight.zero_()
    mixer.dt_proj.bias.fill_(torch.tensor(STEP).expm1().log())
    hidden_states = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))
    expected = linear_attention(attention, hidden_states, state_size or 8)
    torch.testing.assert_close(run(mixer, hidden_states), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_query_head_h_reads_kv_head_h_over_r_at_32_and_8_heads():
    attention = attention_of("llama", num_attention_heads=32, num_key_value_heads=8, head_dim=2)
    mixer = mapped(attention)
    kv_heads = torch.arange(8.0).repeat_interleave(2)[None, None]  # each channel holds its head's number
    assert mixer._to_query_heads(kv_heads)[0, 0, :, 0].tolist() == [h // 4 for h in range(32)]


@torch.no_grad()
def test_decay_and_step_size_follow_the_recurrence():
    attention = attention_of("llama")
    mixer = mapped(attention, dt_min=0.1, dt_max=0.1)
    mixer.dt_proj.weight.zero_()
    mixer.D.zero_()
    first = torch.randn(1, 1, HIDDEN, generator=torch.Generator().manual_seed(2))
    silent = torch.zeros(1, 1, HIDDEN)
    mixer.C_proj.weight.zero_()
    mixer.C_proj.bias = torch.nn.Parameter(torch.zeros(32))
    mixer.C_proj.bias[0] = 3.0  # reads only state 0 of head 0, at every token alike
    mixer.out_proj.weight.copy_(torch.eye(32))
    y = run(mixer, torch.cat([first, silent, silent], dim=1))[0, :, :8]
    x = functional.silu(attention.v_proj(first))[0, 0, :8]
    B = functional.silu(attention.k_proj(first))[0, 0, 0]
    written = functional.silu(torch.tensor(3.0)) * 0.1 * B * x
    # A = -1 for the first state, so each token takes a factor exp(-0.1).
    expected = written * torch.exp(-0.1 * torch.arange(3.0))[:, None]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_gate_starts_open_and_constant():
    mixer = mapped(attention_of("llama"))
    gate = functional.silu(mixer.z_proj(torch.randn(3, HIDDEN)))
    torch.testing.assert_close(gate, torch.ones(3, 32), rtol=0, atol=1e-6)


@torch.no_grad()
def test_convolution_starts_as_the_current_token():
    mixer = mapped(attention_of("llama"))
    values = torch.randn(2, 7, 64)
    torch.testing.assert_close(convolve(mixer.conv, values, None), functional.silu(values))


@pytest.mark.parametrize("init", ["mapped", "random"])
@pytest.mark.parametrize("state_size", [None, 4])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "olmo2"])
def test_every_parameter_has_a_gradient_at_step_zero(kind, state_size, init):
    options = MambaConfig(state_size=state_size)
    mixer = convert_attention(attention_of(kind), options, init=init, seed=0)
    run(mixer, torch.randn(2, 9, HIDDEN)).square().sum().backward()
    silent = [name for name, p in mixer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_conversion_does_not_touch_its_source():
    attention = attention_of("qwen3")
    before = copy.deepcopy(attention.state_dict())
    mixer = mapped(attention)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in attention.state_dict().items())


def test_random_start_has_the_same_shapes_and_other_weights():
    attention = attention_of("qwen3")
    ours = mapped(attention).state_dict()
    random = convert_attention(attention, MambaConfig(), init="random", seed=0).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in random.items()}
    for name in ("x_proj.weight", "B_proj.weight", "C_proj.weight", "out_proj.weight", "B_norm.weight"):
        assert not torch.equal(ours[name], random[name])


@pytest.mark.parametrize("options", [MambaConfig(), SlidingWindowConfig(window=4)])
def test_same_seed_same_bytes_and_the_global_generator_is_left_alone(options):
    attention = attention_of("llama")
    before = torch.random.get_rng_state()
    first, second, other = (
        convert_attention(attention, options, init="random", seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_fresh_weights_of_a_layer_do_not_depend_on_the_others():
    one, all_three = (HybridForCausalLM.from_teacher(tiny_teacher()) for _ in range(2))
    one.convert([1], "mamba", seed=5)
    all_three.convert([0, 1, 2], "mamba", seed=5)
    left, right = (model.banks[1].state_dict() for model in (one, all_three))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert not torch.equal(
        all_three.banks[0].mixers["mamba"].dt_proj.bias, all_three.banks[1].mixers["mamba"].dt_proj.bias
    )


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_output_starts_at_its_scale_of_the_attentions(scale):
    model = HybridForCausalLM.from_teacher(tiny_teacher())
    ids, sizes = random_ids(4, 20), {}

    def measure(name):
        def hook(bank, args, output):
            sizes[name] = output[0].square().mean().sqrt()

        handle = model.banks[1].register_forward_hook(hook)
        model.final_hidden_states(ids)
        handle.remove()

    measure("fa")
    options = MixerOptions(mamba=MambaConfig(output_scale=scale))
    model.convert([1], "mamba", options=options, calibration=ids, keep=True)
    measure("mamba")
    torch.testing.assert_close(sizes["mamba"], scale * sizes["fa"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("state_size", [3, 5, 16])
def test_state_size_that_does_not_divide_the_head_is_refused(state_size):
    with pytest.raises(UserError, match=f"state_size={state_size} does not divide the head size 8"):
        mapped(attention_of("llama"), state_size=state_size)


def test_fused_projections_are_refused_by_name():
    config = Phi3Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
    )
    model = HybridForCausalLM.from_teacher(AutoModelForCausalLM.from_config(config))
    before = model.state_dict().keys()
    with pytest.raises(UserError, match="Phi3Attention has no linear q_proj, k_proj, v_proj"):
        model.convert([0], "mamba")
    assert model.state_dict().keys() == before
    assert model.placement == ("fa", "fa")


def test_projections_that_do_not_fit_together_are_refused():
    attention = attention_of("llama")
    attention.v_proj = torch.nn.Linear(32, 8)
    with pytest.raises(UserError, match="LlamaAttention: o_proj takes 32"):
        mapped(attention)
    attention.k_proj, attention.v_proj = torch.nn.Linear(32, 24), torch.nn.Linear(32, 24)
    with pytest.raises(UserError, match="4 query heads cannot share 3 key-value heads"):
        mapped(attention)


def test_norm_of_another_width_is_refused():
    attention = attention_of("qwen3")
    attention.k_norm = torch.nn.RMSNorm(4)
    with pytest.raises(UserError, match=r"Qwen3Attention\.k_norm"):
        mapped(attention)


def test_full_attention_is_no_target():
    with pytest.raises(UserError, match="choose another mixer"):
        convert_attention(attention_of("llama"), FullAttentionConfig(), init="mapped", seed=0)
