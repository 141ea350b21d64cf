"""Mixers give the same logits however a text reaches them: at once, in pieces, padded, token by token."""

import pytest
import torch

from apriel_assets.hybrid.config import MambaConfig, MixerOptions, SlidingWindowConfig
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2}}
OPTIONS = MixerOptions(swa=SlidingWindowConfig(window=8), mamba=MambaConfig(state_size=4))
RECURRENT = ("gdn", "kda", "mamba")

PLACEMENTS = {
    "fa": ("fa", "fa", "fa"),
    "swa": ("swa", "swa", "swa"),
    "mamba": ("mamba", "mamba", "mamba"),
    "gdn": ("gdn", "gdn", "gdn"),
    "kda": ("kda", "kda", "kda"),
    "recurrent first": ("mamba", "swa", "fa"),
    "window first": ("swa", "fa", "gdn"),
}


def hybrid(placement, kind="llama", dtype=torch.float32, attention="sdpa"):
    model = HybridForCausalLM.from_teacher(tiny_teacher(kind, attention).to(dtype))
    for mixer in ("swa", "gdn", "kda", "mamba"):
        model.convert([i for i, name in enumerate(placement) if name == mixer], mixer, options=OPTIONS)
    assert model.placement == placement
    with torch.no_grad():  # a convolution and gate at their start would hide mistakes
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if any(f".{mixer}." in name for mixer in RECURRENT):
                parameter.add_((0.1 * torch.randn(parameter.shape, generator=generator)).to(dtype))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("split", [1, 2, 63, 64, 65])
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
@torch.no_grad()
def test_prefill_then_the_rest_equals_one_pass(placement, split, dtype):
    model, ids = hybrid(placement, dtype=dtype), random_ids(2, 70)
    whole = model(ids, use_cache=False).logits
    head = model(ids[:, :split])
    tail = model(ids[:, split:], past_key_values=head.past_key_values)
    pieces = torch.cat([head.logits, tail.logits], dim=1)
    torch.testing.assert_close(pieces, whole, **TOLERANCE[dtype])
    assert tail.past_key_values.get_seq_length() == 70


@pytest.mark.parametrize("kind", ["mistral_windowed", "qwen2", "qwen3", "olmo2"])
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
@torch.no_grad()
def test_token_by_token_after_a_prefill_equals_one_pass(placement, kind):
    """The prefill of 12 is longer than the window of 8 and than mistral's own of 6."""
    model, ids = hybrid(placement, kind), random_ids(2, 24)
    whole = model(ids, use_cache=False).logits
    output = model(ids[:, :12])
    logits = [output.logits]
    for t in range(12, 24):
        output = model(ids[:, t : t + 1], past_key_values=output.past_key_values)
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pieces", [(20,), (12, 8), (13, 1, 1, 5)])
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
@torch.no_grad()
def test_left_padded_rows_equal_rows_alone(placement, pieces, attention):
    model, ids = hybrid(placement, "qwen2", attention=attention), random_ids(3, 20)
    lengths = [20, 11, 14]
    mask = torch.tensor([[0] * (20 - length) + [1] * length for length in lengths])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, logits, start = model.make_cache(), [], 0
    for piece in pieces:
        end = start + piece
        logits.append(
            model(
                ids[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=cache,
            ).logits
        )
        start = end
    batched = torch.cat(logits, dim=1)
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, 20 - length :], use_cache=False).logits[0]
        torch.testing.assert_close(batched[row, 20 - length :], alone, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
@torch.no_grad()
def test_padding_tokens_themselves_do_not_matter(placement):
    model = hybrid(placement)
    mask = torch.tensor([[0] * 6 + [1] * 10])
    one, other = random_ids(1, 16), random_ids(1, 16)
    other[:, :6] = random_ids(1, 6, seed=9)
    left, right = (model(ids, attention_mask=mask).logits[:, 6:] for ids in (one, other))
    torch.testing.assert_close(left, right, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
@torch.no_grad()
def test_later_tokens_do_not_change_earlier_ones(placement):
    model, ids = hybrid(placement), random_ids(1, 16)
    changed = torch.cat([ids[:, :9], random_ids(1, 7, seed=5)], dim=1)
    torch.testing.assert_close(
        model(ids).logits[:, :9], model(changed).logits[:, :9], **TOLERANCE[torch.float32]
    )


@pytest.mark.parametrize("mixer", RECURRENT)
@torch.no_grad()
def test_recurrent_state_is_fp32_in_a_bf16_model(mixer):
    model = hybrid(PLACEMENTS[mixer], dtype=torch.bfloat16)
    cache = model(random_ids(1, 5)).past_key_values
    assert {layer.recurrent_states[0].dtype for layer in cache.layers} == {torch.float32}
    assert {layer.conv_states[0].dtype for layer in cache.layers} == {torch.bfloat16}
