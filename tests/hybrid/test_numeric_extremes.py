"""Mixers at the edges of their numbers: half precision, rows that are all padding, long drift, the smallest models."""

import pytest
import torch
from torch.nn import functional

from apriel_assets.evaluation.token_choice import choose_tokens
from apriel_assets.hybrid.mixers.delta.chunked import delta_rule_chunked
from apriel_assets.hybrid.mixers.delta.reference import delta_rule_reference
from apriel_assets.hybrid.mixers.mamba.chunked import selective_scan_chunked
from apriel_assets.hybrid.mixers.mamba.reference import selective_scan_reference
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.serving.sampling import Sampling, probabilities
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

MIXERS = ("fa", "swa", "gdn", "kda", "mamba")


def converted(mixer, **sizes):
    model = HybridForCausalLM.from_teacher(tiny_teacher(**sizes), copy=False).eval()
    if mixer != "fa":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.convert(range(model.num_layers), mixer, options={"swa": {"window": 4}})
    return model


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
@torch.no_grad()
def test_half_precision_is_near_and_finite(mixer, dtype, tolerance):
    model, ids = converted(mixer), random_ids(2, 40)
    expected = model(ids).logits
    found = model.to(dtype)(ids).logits.float()
    assert found.isfinite().all()
    assert (found - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_a_row_of_padding_alone_is_finite_and_harms_no_other(mixer):
    model, ids = converted(mixer), random_ids(3, 9)
    mask = torch.ones_like(ids)
    mask[1] = 0
    found = model(ids, attention_mask=mask).logits
    assert found.isfinite().all()
    torch.testing.assert_close(found[[0, 2]], model(ids[[0, 2]]).logits)


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_one_layer_one_head_two_words_one_token(mixer):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 2}
    model = converted(
        mixer, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=1, max_position_embeddings=1
    )
    logits = model(torch.ones(1, 1, dtype=torch.long)).logits
    assert logits.shape == (1, 1, 2)
    assert logits.isfinite().all()


def drift(chunked, reference, operands, num_steps, piece):
    """Return how far the state of `chunked`, piece after piece in fp32, is from the reference in fp64, relatively."""
    state = exact = None
    for start in range(0, num_steps, piece):
        values = operands(start, piece)
        _, state = chunked(*(own.float() for own in values), state)
        _, exact = reference(*values, exact)
    return ((state - exact).norm() / exact.norm()).item()


def delta_operands(start, length):
    """Decays from 1e-4 nats a token, as mixers start with: the state remembers 10,000 tokens."""
    generator = torch.Generator().manual_seed(start)
    q, k, v = torch.randn(3, 1, length, 2, 8, generator=generator, dtype=torch.float64)
    decay = -torch.tensor([1e-4, 1e-2], dtype=torch.float64).view(1, 1, 2, 1).expand(1, length, 2, 1)
    beta = torch.rand(1, length, 2, generator=generator, dtype=torch.float64)
    return functional.normalize(q, dim=-1), functional.normalize(k, dim=-1), v, decay, beta


def scan_operands(start, length):
    generator = torch.Generator().manual_seed(start)
    x, dt = torch.randn(2, 1, length, 6, generator=generator, dtype=torch.float64)
    B, C = torch.randn(2, 1, length, 2, 4, generator=generator, dtype=torch.float64)
    A = -torch.arange(1, 5, dtype=torch.float64).expand(6, 4)
    return x, 1e-3 * functional.softplus(dt), A, B, C


@pytest.mark.parametrize(
    "num_steps", [pytest.param(2_000, id="short"), pytest.param(100_000, id="long", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("rule", ["delta", "scan"])
def test_the_state_does_not_drift(rule, num_steps):
    if rule == "delta":
        found = drift(delta_rule_chunked, delta_rule_reference, delta_operands, num_steps, 500)
    else:
        found = drift(selective_scan_chunked, selective_scan_reference, scan_operands, num_steps, 500)
    print(f"{rule}: {found:.2g} after {num_steps} steps")
    assert found < 1e-5


@pytest.mark.parametrize("temperature", [1e-300, 1e-38, 1e-6, 10.0])
def test_any_temperature_gives_a_distribution(temperature):
    logits = torch.tensor([[5.0, -3.0, 4.9, -float("inf")]]) * 100
    found = probabilities(logits, [Sampling(max_new_tokens=1, temperature=temperature)])
    assert found.sum().item() == pytest.approx(1)
    assert found.argmax().item() == 0
    tokens, log_probs = choose_tokens(logits, temperature, torch.tensor([0.01], dtype=torch.float64))
    assert tokens.tolist() == [0]
    assert log_probs.isfinite().all()
