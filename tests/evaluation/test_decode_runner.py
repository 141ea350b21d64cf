"""The decode runner against the model's own forward pass and transformers' generate, for every mixer and teacher."""

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation.decode_runner import DecodeRunner
from apriel_assets.evaluation.decode_runner_report import measure_decode
from apriel_assets.evaluation.roofline import decode_bytes_per_step
from apriel_assets.evaluation.throughput import model_shape
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

OPTIONS = {"swa": {"window": 6}, "mamba": {"state_size": 4}}
PLACEMENTS = {
    "fa": ("fa", "fa", "fa"),
    "swa": ("swa", "fa", "swa"),
    "gdn": ("gdn", "fa", "gdn"),
    "kda": ("kda", "kda", "fa"),
    "mamba": ("mamba", "fa", "mamba"),
    "all": ("swa", "gdn", "mamba"),
    "no attention": ("kda", "gdn", "mamba"),
}
TEACHERS = ("llama", "llama_biased", "llama_tied", "mistral_windowed", "qwen2", "qwen3")
EVERY_PLACEMENT = pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
PROMPTS = [random_ids(length, seed=length).tolist() for length in (3, 17, 9)]
NUM_NEW = 12


def make_hybrid(placement, kind="llama", **sizes):
    """A hybrid with every mixer's weights moved off their start, which hides mistakes."""
    model = HybridForCausalLM.from_teacher(tiny_teacher(kind, **sizes), copy=False).eval()
    for mixer in set(placement) - {"fa"}:
        layers = [layer for layer, name in enumerate(placement) if name == mixer]
        model.convert(layers, mixer, options=OPTIONS, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mixers." in name and ".fa." not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def generate_alone(model, prompt, num_tokens=NUM_NEW):
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(ids, max_new_tokens=num_tokens, do_sample=False, eos_token_id=None)
    return out[0, len(prompt) :].tolist()


@EVERY_PLACEMENT
@pytest.mark.parametrize("chunk_tokens", [5, 8192])
def test_greedy_tokens_are_those_of_generate(placement, chunk_tokens):
    model = make_hybrid(placement)
    expected = [generate_alone(model, prompt) for prompt in PROMPTS]
    runner = DecodeRunner(model, batch_size=3, capacity=40)
    runner.prefill(PROMPTS, chunk_tokens=chunk_tokens)
    decoded = runner.decode(NUM_NEW)
    assert [row.token_ids for row in decoded] == expected


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("placement", [("fa", "fa", "fa"), ("swa", "gdn", "mamba"), ("kda", "fa", "kda")])
@torch.no_grad()
def test_logits_are_those_of_the_models_forward(kind, placement):
    model, ids = make_hybrid(placement, kind), random_ids(2, 20)
    expected = model(ids, use_cache=False).logits
    runner = DecodeRunner(model, batch_size=2, capacity=20)
    runner.prefill(ids[:, :8].tolist())
    torch.testing.assert_close(runner.logits, expected[:, 7], rtol=1e-4, atol=1e-4)
    for position in range(8, 20):
        logits = runner.step(ids[:, position])
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_model_goes_on_working_with_its_projections_fused():
    model, ids = make_hybrid(("swa", "gdn", "mamba")), random_ids(2, 9)
    before = model(ids).logits
    names = set(model.state_dict())
    DecodeRunner(model, batch_size=1, capacity=16)
    torch.testing.assert_close(model(ids).logits, before)
    assert set(model.state_dict()) == names


def test_rows_do_not_depend_on_each_other_and_a_runner_can_be_used_again():
    model = make_hybrid(("fa", "kda", "mamba"))
    runner = DecodeRunner(model, batch_size=3, capacity=40)
    runner.generate([random_ids(28, seed=5).tolist()] * 3, NUM_NEW)  # leaves longer rows behind
    again = runner.generate(PROMPTS, NUM_NEW)
    alone = DecodeRunner(model, batch_size=1, capacity=40)
    assert [alone.generate([prompt], NUM_NEW)[0].token_ids for prompt in PROMPTS] == [
        row.token_ids for row in again
    ]


def test_rows_end_at_a_stop_token_and_log_probs_are_the_models():
    model = make_hybrid(("fa", "gdn", "fa"))
    runner = DecodeRunner(model, batch_size=3, capacity=40)
    whole = runner.generate(PROMPTS, NUM_NEW)
    stop = whole[0].token_ids[4]
    cut = runner.generate(PROMPTS, NUM_NEW, stop_ids=[stop])
    assert cut[0].finished
    assert cut[0].token_ids == whole[0].token_ids[: whole[0].token_ids.index(stop) + 1]
    with torch.no_grad():
        ids = torch.tensor([PROMPTS[1] + whole[1].token_ids])
        log_probs = model(ids).logits.log_softmax(-1)[0, len(PROMPTS[1]) - 1 : -1]
    expected = log_probs.gather(-1, torch.tensor(whole[1].token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(whole[1].log_probs), expected, rtol=1e-4, atol=1e-4)


def test_sampling_follows_the_models_distribution_and_its_seed():
    model = make_hybrid(("fa", "swa", "gdn"))
    batch = 600
    runner = DecodeRunner(model, batch_size=batch, capacity=8)
    first = runner.generate([PROMPTS[0]] * batch, 1, temperature=1.0, seed=3)
    again = runner.generate([PROMPTS[0]] * batch, 1, temperature=1.0, seed=3)
    assert [row.token_ids for row in first] == [row.token_ids for row in again]
    with torch.no_grad():
        expected = model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([row.token_ids[0] for row in first]), minlength=len(expected))
    assert (
        counts / batch - expected
    ).abs().sum() / 2 < 0.15  # total variation; about 0.1 for 61 tokens, 600 draws


@pytest.mark.parametrize("length", [5, 30])
@EVERY_PLACEMENT
def test_bytes_of_a_step_are_the_byte_models(placement, length):
    model = make_hybrid(placement, hidden_size=64, head_dim=16, intermediate_size=128)
    runner = DecodeRunner(model, batch_size=4, capacity=32)
    expected = decode_bytes_per_step(model_shape(model), placement, length, 4)
    assert runner.bytes_per_step(length) == pytest.approx(
        expected, rel=0.03
    )  # norms, biases, D and A are small


def test_report_says_how_far_a_step_is_from_its_bytes():
    runner = DecodeRunner(make_hybrid(("fa", "gdn", "fa")), batch_size=2, capacity=32)
    runner.fill(16)
    report = measure_decode(runner, bytes_per_s=1e9, steps=2, repeats=2)
    assert report.roofline_share == pytest.approx(report.bytes_per_step / 1e9 / report.seconds_per_step)
    assert report.tokens_per_s == pytest.approx(2 / report.seconds_per_step)
    assert report.bytes_per_step == report.weight_bytes + report.cache_bytes == runner.bytes_per_step(17)
    assert runner.lengths.tolist() == [16, 16]


def test_what_a_runner_refuses():
    model = make_hybrid(("fa", "fa", "fa"))
    with pytest.raises(UserError, match="exceeds the model's 256 positions"):
        DecodeRunner(model, batch_size=1, capacity=300)
    runner = DecodeRunner(model, batch_size=2, capacity=10)
    with pytest.raises(UserError, match="takes 2 of 1 to 10"):
        runner.prefill(PROMPTS)
    runner.prefill([[3] * 8, [4] * 6])
    with pytest.raises(UserError, match="hold up to 8 of 10"):
        runner.decode(4)
    runner.decode(3)
    other = HybridForCausalLM.from_teacher(tiny_teacher("olmo2"))
    with pytest.raises(UserError, match="layers of Olmo2ForCausalLM consist of"):
        DecodeRunner(other, batch_size=1, capacity=10)
