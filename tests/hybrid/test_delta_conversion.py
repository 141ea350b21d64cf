"""GDN and KDA from attention (DIL, KIL), against plain loops over the attention's own projections."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers.cache_utils import DynamicCache

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import GatedDeltaNetConfig, KimiDeltaConfig, MixerOptions
from apriel_assets.hybrid.conversion import convert_attention
from apriel_assets.hybrid.forward_context import ForwardContext
from apriel_assets.hybrid.mixers.recurrent_inputs import convolve
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

HIDDEN = 32
CONFIGS = {"gdn": GatedDeltaNetConfig, "kda": KimiDeltaConfig}
EVERY_MIXER = pytest.mark.parametrize("mixer", CONFIGS)


def attention_of(kind, **sizes):
    return tiny_teacher(kind, **sizes).model.layers[1].self_attn


def made(attention, mixer, init="mapped", **options):
    return convert_attention(attention, CONFIGS[mixer](**options), init=init, seed=0)


def run(module, hidden_states):
    return module(ForwardContext(placement=("gdn",)), 0, hidden_states)[0]


def delta_rule_attention(attention, hidden_states, decay):
    """What the mapped mixer computes when half of each value is written, by plain loops.

    decay: what is left of the state after a token, `[heads, head size]`.
    """
    head, groups = attention.head_dim, attention.num_key_value_groups
    q, k, v = (getattr(attention, f"{name}_proj")(hidden_states) for name in "qkv")
    if hasattr(attention, "q_norm"):
        per_head = attention.q_norm.weight.numel() == head
        if per_head:
            q, k = (t.unflatten(-1, (-1, head)) for t in (q, k))
        q, k = attention.q_norm(q), attention.k_norm(k)
        if per_head:
            q, k = q.flatten(2), k.flatten(2)
    q, k, v = (functional.silu(t).unflatten(-1, (-1, head)) for t in (q, k, v))
    batch, seq_len, heads, _ = q.shape
    o = torch.zeros(batch, seq_len, heads, head)
    for b in range(batch):
        for h in range(heads):
            S = torch.zeros(head, head)
            for t in range(seq_len):
                key, value = k[b, t, h // groups], v[b, t, h // groups]
                key, query = key / key.norm(), q[b, t, h] / q[b, t, h].norm() / head**0.5
                S = decay[h][:, None] * S
                S = S - 0.5 * torch.outer(key, key @ S) + 0.5 * torch.outer(key, value)
                o[b, t, h] = query @ S
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()  # gate 1/2 times norm weight 2
    return attention.o_proj(o.flatten(2))


@EVERY_MIXER
@pytest.mark.parametrize("kind", ["llama", "llama_biased", "qwen2", "qwen3", "olmo2"])
@torch.no_grad()
def test_mapped_mixer_is_the_attentions_delta_rule(kind, mixer):
    """Heads grouped as attention does (8 query heads on 2 key-value heads), biases, QK-norms, spread decay."""
    attention = attention_of(kind, num_attention_heads=8, num_key_value_heads=2, head_dim=8)
    module = made(attention, mixer, rate_min=0.1, rate_max=2.0)
    hidden_states = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))
    rates = torch.exp(torch.linspace(torch.tensor(0.1).log(), torch.tensor(2.0).log(), 8))
    decay = torch.exp(-rates)[:, None].expand(8, 8) if mixer == "gdn" else torch.exp(-rates).expand(8, 8)
    expected = delta_rule_attention(attention, hidden_states, decay)
    torch.testing.assert_close(run(module, hidden_states), expected, rtol=1e-3, atol=1e-4)


@EVERY_MIXER
@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 8), (4, 1), (4, 4)])
@torch.no_grad()
def test_query_head_h_reads_kv_head_h_over_r(heads, kv_heads, mixer):
    attention = attention_of("qwen2", num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=2)
    module = made(attention, mixer)
    for name in ("k_proj", "v_proj"):
        target, source = getattr(module, name), getattr(attention, name)
        for h in range(heads):
            kv = h // (heads // kv_heads)
            mine, theirs = slice(2 * h, 2 * h + 2), slice(2 * kv, 2 * kv + 2)
            assert torch.equal(target.weight[mine], source.weight[theirs])
            assert torch.equal(target.bias[mine], source.bias[theirs])


@EVERY_MIXER
@torch.no_grad()
def test_gate_write_decay_and_convolution_start_constant(mixer):
    module = made(attention_of("llama"), mixer, rate_min=0.01, rate_max=0.5)
    hidden_states = torch.randn(3, 6, HIDDEN, generator=torch.Generator().manual_seed(2))
    gate = module.gate(hidden_states).sigmoid()
    torch.testing.assert_close(gate, torch.full((3, 6, 32), 0.5), rtol=0, atol=1e-6)
    assert module.norm.weight.tolist() == [2.0] * 8  # 2 * 1/2: open
    assert module.beta_proj(hidden_states).abs().max() == 0
    log_decay = module.log_decay(hidden_states)
    assert log_decay.shape == (3, 6, 4, 1 if mixer == "gdn" else 8)
    torch.testing.assert_close(log_decay, log_decay[:1, :1].expand_as(log_decay))
    assert log_decay.max().item() == pytest.approx(-0.01, rel=1e-3)
    assert log_decay.min().item() == pytest.approx(-0.5, rel=1e-3)
    values = torch.randn(2, 7, 96)
    torch.testing.assert_close(convolve(module.conv, values, None), functional.silu(values))


@EVERY_MIXER
@pytest.mark.parametrize("init", ["mapped", "random"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "olmo2"])
def test_every_parameter_has_a_gradient_at_step_zero(kind, init, mixer):
    module = made(attention_of(kind), mixer, init)
    run(module, torch.randn(2, 9, HIDDEN)).square().sum().backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@EVERY_MIXER
def test_conversion_does_not_touch_its_source(mixer):
    attention = attention_of("olmo2")
    before = copy.deepcopy(attention.state_dict())
    module = made(attention, mixer)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in attention.state_dict().items())


@EVERY_MIXER
def test_random_start_has_the_same_shapes_and_other_weights(mixer):
    attention = attention_of("qwen3")
    ours, random = (made(attention, mixer, init).state_dict() for init in ("mapped", "random"))
    assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in random.items()}
    for name in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight", "k_norm.weight"):
        assert not torch.equal(ours[name], random[name])


@EVERY_MIXER
def test_same_seed_same_bytes_and_the_global_generator_is_left_alone(mixer):
    attention, before = attention_of("llama"), torch.random.get_rng_state()
    first, second, other = (
        convert_attention(attention, CONFIGS[mixer](), init="random", seed=seed).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@EVERY_MIXER
@torch.no_grad()
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_output_starts_at_its_scale_of_the_attentions(scale, mixer):
    model = HybridForCausalLM.from_teacher(tiny_teacher())
    ids, sizes = random_ids(4, 20), {}

    def measure(name):
        def hook(bank, args, output):
            sizes[name] = output[0].square().mean().sqrt()

        handle = model.banks[1].register_forward_hook(hook)
        model.final_hidden_states(ids)
        handle.remove()

    measure("fa")
    model.convert([1], mixer, options={mixer: {"output_scale": scale}}, calibration=ids, keep=True)
    measure("mixer")
    torch.testing.assert_close(sizes["mixer"], scale * sizes["fa"], rtol=1e-4, atol=0)


@EVERY_MIXER
@torch.no_grad()
def test_padding_leaves_the_state_alone_wherever_it_stands(mixer):
    """Behind real tokens the convolution still sees them, so a padded position has a key to write with."""
    module = made(attention_of("qwen2"), mixer, rate_min=0.2, rate_max=0.5)
    module.conv.weight.add_(0.1)
    hidden_states = torch.randn(1, 9, HIDDEN, generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0, 0]])
    states = []
    for length in (5, 9):
        cache = DynamicCache()
        cache.layers = [module.make_cache_layer()]
        context = ForwardContext(placement=(mixer,), padding_mask=mask[:, :length])
        module(context, 0, hidden_states[:, :length], past_key_values=cache)
        states.append(cache.layers[0].recurrent_states[0])
    torch.testing.assert_close(states[1], states[0])


@EVERY_MIXER
def test_shapes_that_do_not_fit_are_refused_and_nothing_changes(mixer):
    model = HybridForCausalLM.from_teacher(tiny_teacher())
    before = model.state_dict().keys()
    model.banks[1].mixers["fa"].v_proj = torch.nn.Linear(32, 8)
    with pytest.raises(UserError, match="LlamaAttention: o_proj takes 32"):
        model.convert([0, 1], mixer)
    assert model.state_dict().keys() - {"backbone.model.layers.1.self_attn.mixers.fa.v_proj.bias"} == before
    assert model.placement == ("fa", "fa", "fa")


@EVERY_MIXER
def test_norm_of_another_width_is_refused(mixer):
    attention = attention_of("qwen3")
    attention.k_norm = torch.nn.RMSNorm(4)
    with pytest.raises(UserError, match=r"Qwen3Attention\.k_norm"):
        made(attention, mixer)


@EVERY_MIXER
@pytest.mark.parametrize("init", ["mapped", "random"])
def test_a_few_steps_bring_the_mixer_closer_to_its_attention(mixer, init):
    teacher = HybridForCausalLM.from_teacher(tiny_teacher()).requires_grad_(False)
    student = HybridForCausalLM.from_teacher(tiny_teacher())
    student.convert([0, 2], mixer, init=init, options=MixerOptions())
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    ids, losses = random_ids(8, 20), []
    wanted = teacher.final_hidden_states(ids)
    for _ in range(12):
        loss = functional.mse_loss(student.final_hidden_states(ids), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
