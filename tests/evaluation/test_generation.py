import collections

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import choose_tokens, generate
from apriel_assets.evaluation.tasks.problems import make_problems
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.config import MixerOptions, SlidingWindowConfig
from apriel_assets.hybrid.model import HybridForCausalLM


@pytest.fixture(scope="module")
def prompts():
    """Prompts of many lengths."""
    tasks = ("recall", "arithmetic", "copy")
    return [p.prompt for task in tasks for p in make_problems(TaskSpec(name=task), "test", 4, seed=0)]


@pytest.fixture(scope="module")
def model(tiny_llama, tokenizer):
    """A model whose completions end at very different lengths: the head leans towards end-of-sequence."""
    llama = tiny_llama()
    with torch.no_grad():
        llama.lm_head.weight[tokenizer.eos_token_id] *= 1.6
    return llama


def run(model, tokenizer, prompts, **changes):
    return generate(
        model, tokenizer, prompts, **{"max_new_tokens": 24, "temperature": 0.0, "batch_size": 8, **changes}
    )


def token_ids(completions):
    return [[completion.token_ids for completion in samples] for samples in completions]


def teacher_forced(model, tokenizer, prompt, completion):
    """Log-probabilities of a completion from one unpadded pass without a cache."""
    ids = tokenizer(prompt).input_ids
    logits = model(torch.tensor([ids + completion.token_ids]), use_cache=False).logits[0]
    log_probs = logits[len(ids) - 1 : -1].log_softmax(-1)
    return log_probs.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]


@torch.no_grad()
def test_greedy_equals_transformers_generate_token_for_token(model, tokenizer, prompts):
    ours = run(model, tokenizer, prompts)
    lengths = {len(samples[0].token_ids) for samples in ours}
    assert len(lengths) > 3, "the test needs rows that end at different times"
    assert {samples[0].finished for samples in ours} == {True, False}
    for prompt, (completion,) in zip(prompts, ours, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        theirs = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids.input_ids.shape[1] :]
        assert completion.token_ids == theirs.tolist()
        assert completion.text == tokenizer.decode(theirs, skip_special_tokens=True)


def test_sliding_window_model_equals_transformers_generate(tokenizer, prompts):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.3, sliding_window=8,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    mistral = MistralForCausalLM(config).eval()
    for prompt, (completion,) in zip(prompts, run(mistral, tokenizer, prompts), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        theirs = mistral.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids.input_ids.shape[1] :]
        assert completion.token_ids == theirs.tolist()


@torch.no_grad()
def test_hybrid_equals_its_own_generate_and_a_pass_without_cache(model, tokenizer, prompts):
    hybrid = HybridForCausalLM.from_teacher(model)
    hybrid.convert([1], "mamba")
    for placement in (("fa", "mamba"), ("mamba", "mamba"), ("swa", "mamba")):
        if placement[0] != "fa":
            hybrid.convert(
                [0], placement[0], keep=True, options=MixerOptions(swa=SlidingWindowConfig(window=8))
            )
        found = run(hybrid, tokenizer, prompts[::2])
        sampled = run(hybrid, tokenizer, prompts[::2], temperature=1.0, samples=2)
        assert len({len(samples[0].token_ids) for samples in found}) > 1, "the test needs rows that leave"
        for prompt, (greedy,), samples in zip(prompts[::2], found, sampled, strict=True):
            ids = tokenizer(prompt, return_tensors="pt")
            theirs = hybrid.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids.input_ids.shape[1] :]
            assert greedy.token_ids == theirs.tolist()
            for completion in (greedy, *samples):
                expected = teacher_forced(hybrid, tokenizer, prompt, completion)
                torch.testing.assert_close(torch.tensor(completion.log_probs), expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probs_equal_a_teacher_forced_pass(model, tokenizer, prompts, temperature):
    found = run(model, tokenizer, prompts, temperature=temperature, samples=3)
    for prompt, samples in zip(prompts, found, strict=True):
        for completion in samples:
            expected = teacher_forced(model, tokenizer, prompt, completion)
            torch.testing.assert_close(torch.tensor(completion.log_probs), expected, atol=1e-4, rtol=0)
            assert (completion.sampled_log_probs is None) == (temperature != 0.7)


@torch.no_grad()
def test_sampled_log_probs_are_those_of_the_tempered_distribution(model, tokenizer, prompts):
    (completion,), *_ = run(model, tokenizer, prompts[:2], temperature=0.5)
    ids = tokenizer(prompts[0]).input_ids
    logits = model(torch.tensor([ids + completion.token_ids])).logits[0, len(ids) - 1 : -1]
    expected = (logits / 0.5).log_softmax(-1).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.sampled_log_probs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_neither_batch_size_nor_neighbours_change_a_completion(model, tokenizer, prompts, temperature):
    whole = token_ids(run(model, tokenizer, prompts, temperature=temperature, samples=3, seed=5))
    for batch_size in (1, 4, 100):
        options = {"temperature": temperature, "samples": 3, "seed": 5, "batch_size": batch_size}
        assert token_ids(run(model, tokenizer, prompts, **options)) == whole
    assert (
        token_ids(run(model, tokenizer, prompts[:1], temperature=temperature, samples=3, seed=5)) == whole[:1]
    )


def test_seed_and_sample_number_change_what_is_sampled(model, tokenizer, prompts):
    first, again, other = (
        run(model, tokenizer, prompts, temperature=1.0, samples=2, seed=s) for s in (0, 0, 1)
    )
    assert token_ids(first) == token_ids(again) != token_ids(other)
    assert any(a.token_ids != b.token_ids for a, b in first)


def test_sampled_frequencies_are_the_models_probabilities(model, tokenizer, prompts):
    num = 4000
    (samples,) = run(
        model, tokenizer, prompts[:1], temperature=2.0, samples=num, max_new_tokens=1, batch_size=1000
    )
    counts = collections.Counter(completion.token_ids[0] for completion in samples)
    ids = torch.tensor([tokenizer(prompts[0]).input_ids])
    with torch.no_grad():
        probabilities = (model(ids).logits[0, -1] / 2.0).softmax(-1)
    for token, probability in enumerate(probabilities.tolist()):
        spread = (probability * (1 - probability) / num) ** 0.5
        assert abs(counts[token] / num - probability) < 4.5 * spread + 1e-3


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_choose_possible_tokens(uniform):
    logits = torch.tensor([[-torch.inf, 0.0, 1.0]])
    chosen, _ = choose_tokens(logits, 1.0, torch.tensor([uniform], dtype=torch.float64))
    assert chosen.tolist() == [1 if uniform == 0 else 2]


def test_training_mode_is_restored_and_dropout_is_off(tiny_llama, tokenizer, prompts):
    model = tiny_llama(attention_dropout=0.5).train()
    first = token_ids(run(model, tokenizer, prompts[:3]))
    assert model.training
    assert token_ids(run(model.eval(), tokenizer, prompts[:3])) == first


def test_progress_reaches_the_total(model, tokenizer, prompts):
    calls = []
    run(
        model,
        tokenizer,
        prompts,
        samples=2,
        progress=lambda done, total, **figures: calls.append((done, total)),
    )
    assert calls[-1] == (24, 24)
    assert calls == sorted(calls)


def test_no_prompts_give_no_completions(model, tokenizer):
    assert run(model, tokenizer, []) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"samples": 0}, "samples=0"),
        ({"seed": -1}, "seed=-1"),
        ({"max_new_tokens": 5000}, "positions"),
    ],
)
def test_wrong_arguments_are_refused(model, tokenizer, prompts, changes, message):
    with pytest.raises(UserError, match=message):
        run(model, tokenizer, prompts, **changes)


def test_a_prompt_without_tokens_is_refused(model, tokenizer):
    class Mute(type(tokenizer)):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs, add_special_tokens=False)

    mute = Mute(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="<eos>")
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        run(model, mute, ["start", ""])
