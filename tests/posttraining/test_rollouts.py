"""What is sampled and what it is worth; on policy, the training pass sees the probabilities that were sampled from."""

from dataclasses import replace

import pytest
import torch

from apriel_assets.distillation import losses
from apriel_assets.distillation.causal_lm import final_hidden_states, lm_head
from apriel_assets.posttraining.config import GrpoConfig
from apriel_assets.posttraining.rollouts import completion_log_probs, micro_batches, sample_rollouts
from tests.scoring.tiny_hybrid import make_problem_set, make_random_traces
from tests.scoring.tiny_supernet import TOKENIZER

CONFIG = GrpoConfig(samples=3, max_new_tokens=6, batch_size=5)


def sample(model, asked, **changes):
    config = replace(CONFIG, **changes)
    numbers = list(range(len(asked)))
    return sample_rollouts(model, TOKENIZER, asked, config, numbers=numbers, seed=0, step=4)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("placement", ["safe", "turbo", "fast"])
def test_on_policy_every_ratio_is_one(matryoshka, placement, temperature):
    asked = [(problem.task, problem) for problem in make_problem_set(4)]
    matryoshka.set_placement(placement)
    rollouts = sample(matryoshka, asked, temperature=temperature)
    batch = rollouts.traces.batch(range(len(rollouts.traces)))
    now = completion_log_probs(matryoshka, batch, temperature).detach()
    then = torch.tensor([own for completion in rollouts.log_probs for own in completion])
    assert len(now) == sum(map(len, rollouts.traces.completions)) > 30
    assert float((now - then).exp().sub(1).abs().max()) < 1e-4  # fp32, token by token against all at once
    matryoshka.set_placement("turbo" if placement != "turbo" else "fast")
    other = completion_log_probs(matryoshka, batch, temperature).detach()
    assert float((other - then).exp().sub(1).abs().max()) > 1e-2


def test_rewards_are_the_verdicts_of_the_groups(matryoshka, lesson):
    rollouts = sample(matryoshka, lesson, max_new_tokens=1, samples=16)
    assert rollouts.rewards.shape == (4, 16)
    said = [TOKENIZER.decode(ids, skip_special_tokens=True).strip() for ids in rollouts.traces.completions]
    wanted = [problem.answer for _, problem in lesson for _ in range(16)]
    assert rollouts.rewards.flatten().tolist() == [float(a == b) for a, b in zip(said, wanted, strict=True)]
    prompts = [tuple(TOKENIZER(problem.prompt).input_ids) for _, problem in lesson for _ in range(16)]
    assert list(rollouts.traces.prompts) == prompts


def test_samples_depend_on_seed_and_step_and_not_on_the_batch(matryoshka, lesson):
    first, again = (sample(matryoshka, lesson, batch_size=size) for size in (2, 64))
    assert first.traces == again.traces
    config = replace(CONFIG, max_new_tokens=6)
    other = sample_rollouts(matryoshka, TOKENIZER, lesson, config, numbers=[0, 1, 2, 3], seed=0, step=5)
    assert other.traces != first.traces


def test_log_probs_and_gradients_are_the_dense_ones(matryoshka, monkeypatch):
    monkeypatch.setitem(losses._CHUNK_LOGITS, "cpu", 3 * len(TOKENIZER))  # three tokens at a time
    matryoshka.set_placement("turbo")
    batch = make_random_traces(5, vocab_size=len(TOKENIZER)).batch(range(5))
    found = completion_log_probs(matryoshka, batch, 0.7)
    hidden = final_hidden_states(matryoshka, batch.input_ids)
    logits = lm_head(matryoshka)(hidden)[batch.mask] / 0.7
    dense = logits.log_softmax(-1).gather(-1, batch.targets[batch.mask][:, None])[:, 0]
    torch.testing.assert_close(found, dense)
    weights = torch.randn(len(dense), generator=torch.Generator().manual_seed(0))
    gradients = []
    for values in (found, dense):
        matryoshka.zero_grad()
        (weights * values).sum().backward(retain_graph=True)
        gradients.append(
            {name: p.grad.clone() for name, p in matryoshka.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


def test_micro_batches_hold_each_kept_completion_once():
    traces = make_random_traces(9)
    parts = list(micro_batches(traces, [0, 2, 3, 5, 8], 2))
    assert sorted(index for part in parts for index in part) == [0, 2, 3, 5, 8]
    assert [len(part) for part in parts] == [2, 2, 1]
