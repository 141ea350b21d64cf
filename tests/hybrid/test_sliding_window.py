"""The window against plain softmax over the keys inside it."""

import copy

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from apriel_assets.errors import UserError
from apriel_assets.hybrid import window_attention
from apriel_assets.hybrid.attention import PACKABLE
from apriel_assets.hybrid.config import MixerOptions, SlidingWindowConfig
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


def windowed_attention(attention, hidden_states, position_embeddings, window):
    """softmax(q_t K^T / sqrt(d_h)) V over t - window < s <= t, one query at a time."""
    batch, seq_len, _ = hidden_states.shape
    q, k, v = (
        getattr(attention, f"{name}_proj")(hidden_states)
        .view(batch, seq_len, -1, attention.head_dim)
        .transpose(1, 2)
        for name in "qkv"
    )
    q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
    k, v = (values.repeat_interleave(attention.num_key_value_groups, dim=1).float() for values in (k, v))
    outputs = []
    for t in range(seq_len):
        seen = slice(max(0, t - window + 1), t + 1)
        weights = (q[:, :, t, None].float() @ k[:, :, seen].mT * attention.head_dim**-0.5).softmax(-1)
        outputs.append(weights @ v[:, :, seen])
    o = torch.cat(outputs, dim=2).transpose(1, 2).reshape(batch, seq_len, -1)
    return attention.o_proj(o.to(hidden_states.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("seq_len", [1, 2, 63, 64, 65, 130])
def test_window_equals_plain_softmax_in_outputs_and_gradients(seq_len, implementation, dtype):
    model = HybridForCausalLM.from_teacher(tiny_teacher(attention=implementation).to(dtype))
    model.convert([1], "swa", options=MixerOptions(swa=SlidingWindowConfig(window=16)))
    attention, call = model.banks[1].mixers["swa"].attention, {}
    model.banks[1].register_forward_hook(
        lambda bank, args, kwargs, output: call.update(kwargs, output=output[0]), with_kwargs=True
    )
    model.final_hidden_states(random_ids(2, seq_len))
    x = call["hidden_states"]
    expected = windowed_attention(attention, x, call["position_embeddings"], window=16)
    torch.testing.assert_close(call["output"], expected, **TOLERANCE[dtype])
    weights = torch.randn(expected.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    parameters = [x, *attention.parameters()]
    for mine, plain in zip(
        torch.autograd.grad((call["output"] * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        # Gradients of weights sum over the tokens, and so do their rounding errors.
        scale = plain.abs().max().clamp(min=1.0)
        torch.testing.assert_close(mine / scale, plain / scale, **TOLERANCE[dtype])


@torch.no_grad()
def test_a_window_wider_than_the_text_is_full_attention():
    teacher, ids = tiny_teacher(), random_ids(2, 20)
    model = HybridForCausalLM.from_teacher(teacher)
    model.convert(range(3), "swa", options=MixerOptions(swa=SlidingWindowConfig(window=20)))
    assert torch.equal(model(ids).logits, teacher(ids).logits)


def test_window_is_a_copy_of_the_attention():
    model = HybridForCausalLM.from_teacher(tiny_teacher("qwen3"))
    full = copy.deepcopy(model.banks[0].mixers["fa"].state_dict())
    model.convert([0], "swa", keep=True)
    copied = model.banks[0].mixers["swa"].attention
    assert all(torch.equal(full[name], value) for name, value in copied.state_dict().items())
    assert copied.q_proj.weight.data_ptr() != model.banks[0].mixers["fa"].q_proj.weight.data_ptr()


def test_attention_that_takes_no_mask_is_refused():
    model = HybridForCausalLM.from_teacher(tiny_teacher())
    model.convert([0], "swa")
    config = copy.deepcopy(model.backbone.config)
    config._attn_implementation_internal = "flash_attention_2"
    model.banks[0].mixers["swa"]._shared_config = config
    with pytest.raises(UserError, match="sdpa or eager, not flash_attention_2"):
        model(random_ids(1, 4))


def test_long_texts_go_by_blocks_and_come_out_the_same(monkeypatch):
    model = HybridForCausalLM.from_teacher(tiny_teacher())
    model.convert([0, 2], "swa", options={"swa": {"window": 4}})
    ids = random_ids(2, 40)
    by_mask, calls = model(ids).logits, []
    attend = ALL_ATTENTION_FUNCTIONS[PACKABLE]
    noting = lambda *args, **options: calls.append(args[1].shape) or attend(*args, **options)  # noqa: E731
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, PACKABLE, noting)
    monkeypatch.setattr(window_attention, "_LEAST_BLOCK", 4)
    torch.testing.assert_close(model(ids).logits, by_mask)
    assert len(calls) == 2  # layers 0 and 2
    padding = torch.ones_like(ids)
    padding[0, 0] = 0
    model(ids, attention_mask=padding)
    model(ids[:, :16])
    assert len(calls) == 2  # neither with padding nor for short texts
